"""Table 1 of the paper, from real state trees."""

import pytest

from infini_jax import cli
from infini_jax.planner.memories import memories
from tests.tiny import config

# The paper's model: 12 layers, 8 heads of 128, segments of 2048; 65K keys in the ninth layer.
PAPER = {
  **{"layers": 12, "width": 1024, "heads": 8, "kv_heads": 8, "head_dim": 128, "ffn": 4096},
  **{"segment_length": 2048, "knn_layers": (9,), "knn_memory": 65_000},
  **{"compute_dtype": "bfloat16", "summary_tokens": 100},
}


def test_the_papers_figures_come_out():
  found = {m.mixer: m for m in memories(config(model=PAPER))}
  assert found["transformer_xl"].elements == 50_331_648  # 50M
  assert found["memorizing"].elements == 183_451_648  # 183M
  assert found["infini"].elements == 1_585_152  # 1.6M
  assert found["infini"].bytes == 4 * 1_585_152, "the memory is float32"
  assert found["transformer_xl"].bytes == 2 * 50_331_648
  assert round(found["memorizing"].elements / found["infini"].elements) == 116
  assert found["rmt"].elements == 2_457_600  # 2.5M
  assert found["local"].elements == 0


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_states_are_what_the_formulas_say(kv_heads):
  made = config(model={"kv_heads": kv_heads, "layers": 3, "knn_layers": (1, 3), "knn_memory": 24})
  for memory in memories(made):
    assert memory.elements == memory.closed, memory


def test_what_a_config_cannot_have_is_said(capsys, monkeypatch):
  monkeypatch.setenv("COLUMNS", "120")
  assert cli.main(["plan", "--config=configs/demo.py", "--table=memory"]) == 0
  shown = capsys.readouterr().out
  (row,) = [line for line in shown.splitlines() if "memorizing" in line]
  assert "config.model.knn_layers=(9,)" in row, "the demo has 4 layers"
  assert "transformer_xl" in shown and " a token" in shown
