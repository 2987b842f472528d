"""Table 1 of the paper, computed from real state trees."""

import json

import pytest

from infini_jax import cli
from infini_jax.cli import load_config
from infini_jax.plan.memories import memories
from tests.tiny import config

PAPER = "configs/lm_paper.py"
L, H, E, D, N = 12, 8, 128, 1024, 2048  # the paper's model
STORE, PROMPTS = 65_000, 100  # keys of the store in the ninth layer; RMT's summaries


def test_the_papers_config_prints_the_papers_table_2(capsys, monkeypatch, tmp_path):
  """The sizes equal the paper's. Its compressions are quotients of rounded sizes."""
  monkeypatch.setenv("COLUMNS", "140")
  file = tmp_path / "table.json"
  command = ["plan", f"--config={PAPER}", "--table=memory", f"--json={file}"]
  assert cli.main(command) == 0
  found = {row["mixer"]: row for row in json.loads(file.read_text())}
  shown = capsys.readouterr().out
  for mixer, size, rounded in (
    ("transformer_xl", 50_331_648, 50),
    ("memorizing", 183_451_648, 183),
    ("rmt", 2_457_600, 2.5),
    ("infini", 1_585_152, 1.6),
  ):
    assert found[mixer]["elements"] == size
    assert round(size / 1e6, 0 if rounded > 10 else 1) == rounded
    (row,) = [line for line in shown.splitlines() if mixer in line]
    assert f" {size:,} " in row
    assert f" {183_451_648 / size:,.1f}x " in row
  assert found["infini"]["bytes"] == 4 * 1_585_152, "the memory is float32"
  assert found["transformer_xl"]["bytes"] == 2 * 50_331_648
  assert found["local"]["elements"] == 0


def test_states_are_what_the_papers_table_1_says():
  one = "--config.autocompressor.summary_steps=1"

  def config_of(mixer):
    carry = f"--config.data.carry_state={mixer != 'full'}"
    return load_config([f"--config={PAPER}", f"--config.model.mixer={mixer}", one, carry])

  found = {memory.mixer: memory.elements for memory in memories(config_of)}
  c, m = config_of("compressive").model.memory.compressed_memory, 1
  assert found["transformer_xl"] == (E + E) * H * N * L
  assert found["compressive"] == D * (c + N) * L
  assert found["memorizing"] == (E + E) * H * (N * L + STORE)  # Table 2: a store in one layer
  assert found["rmt"] == D * PROMPTS * L * 2
  assert found["infini"] == E * (E + 1) * H * L
  # For more steps, the paper counts D p (m + 1) l; here keys and values of all m p are stored.
  assert found["autocompressor"] == D * PROMPTS * (m + 1) * L


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_states_are_what_the_formulas_say(kv_heads):
  def config_of(mixer):
    return config(
      model={"kv_heads": kv_heads, "layers": 3, "mixer": mixer},
      data={"carry_state": mixer != "full"},
      memorizing={"knn_layers": (1, 3), "knn_memory": 24},
    )

  for memory in memories(config_of):
    assert memory.elements == memory.closed, memory


def test_a_pattern_has_a_row_for_each_of_its_systems(capsys, monkeypatch):
  monkeypatch.setenv("COLUMNS", "140")
  pattern = ["--config.model.pattern=infini,infini,local,full", "--config.data.carry_state=False"]
  assert cli.main(["plan", "--config=configs/demo.py", "--table=memory", *pattern]) == 0
  shown = capsys.readouterr().out
  for name, layers, numbers in (
    ("infini", 2, f"{2 * 3 * 32 * 33:,}"),
    ("local", 1, "0"),
    ("full", 1, f"{2 * 3 * 32:,} a token"),
  ):
    (row,) = [x for x in shown.splitlines() if f"{name}, {layers} layers of the pattern" in x]
    assert f" {numbers} " in row


def test_systems_that_a_config_cannot_have_are_named(capsys, monkeypatch):
  monkeypatch.setenv("COLUMNS", "120")
  assert cli.main(["plan", "--config=configs/demo.py", "--table=memory"]) == 0
  shown = capsys.readouterr().out
  (row,) = [line for line in shown.splitlines() if "memorizing" in line]
  assert "config.memorizing.knn_layers=(9,)" in row, "the demo has 4 layers"
  assert "transformer_xl" in shown and " a token" in shown
