"""Training on a mixture whose weights change: told, logged, and resumed to the bit."""

import io

import jax
import numpy as np
import pytest
from rich.console import Console

from infini_jax.config import InputError
from infini_jax.data import prepare
from infini_jax.runs.metrics import read_metrics
from infini_jax.training.loop import train
from tests.tiny import changed, config, quiet, write_corpus


@pytest.mark.slow
def test_a_run_with_stages_is_told_logged_and_resumed_to_the_bit(tmp_path):
  for name, documents, characters in (("short", 60, 60), ("long", 4, 4000)):
    texts = write_corpus(tmp_path / "texts" / name, documents, characters)
    prepare(str(texts), tmp_path / name, "bytes", console=quiet())
  long, short = tmp_path / "long", tmp_path / "short"
  c = config(
    data={"path": f"mix:{long}=3,{short}=1", "stages": ("2=0:1", "4=1:1")},
    train={"steps": 6, "checkpoint_every": 3, "eval_every": 0, "log_every": 1},
  )
  out = io.StringIO()
  whole = train(c, str(tmp_path / "whole"), Console(file=out, width=500))
  for told in (
    f"step 0: new documents are {long} 75.0%, {short} 25.0%",
    f"step 2: new documents are {long} 0.0%, {short} 100.0%",
    f"step 4: new documents are {long} 50.0%, {short} 50.0%",
  ):
    assert out.getvalue().count(told) == 1
  rows = read_metrics(tmp_path / "whole")
  assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
  assert [row[f"mixture/{long}"] for row in rows] == [0.75, 0.75, 0.0, 0.0, 0.5, 0.5]
  train(changed(c, train=changed(c.train, steps=3)), str(tmp_path / "parts"), quiet())
  parts = train(c, str(tmp_path / "parts"), quiet())
  pairs = zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True)
  assert all(np.array_equal(a, b) for a, b in pairs)
  assert [row["loss"] for row in read_metrics(tmp_path / "parts")] == [row["loss"] for row in rows]
  other = changed(c, data=changed(c.data, stages=("2=0:1", "5=1:1")))
  with pytest.raises(InputError, match="config.data.stages: "):
    train(other, str(tmp_path / "parts"), quiet())
