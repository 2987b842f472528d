"""Tiny models to be served."""

from pathlib import Path

import jax.numpy as jnp

from infini_jax.data.tokenizers import ByteTokenizer
from infini_jax.inference import OpenedRun, open_run
from infini_jax.inference.engine import Engine
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import Workdir
from infini_jax.training.step import TrainState
from tests.data.chat.vocabulary import vocabulary
from tests.tiny import config, fake_params

GREEDY = {"temperature": 0.0}
SIZES = {"rule": "delta", "segment_length": 8, "kv_heads": 1}


class Unending(ByteTokenizer):
  """A tokenizer without an end token, so random weights never end a text."""

  eos = -1


def model(seed: int = 0, **fields):
  """The config and random parameters of a model; a chunk has 16 tokens."""
  carries = {"carry_state": fields.get("mixer") != "full"}
  c = config(model={**SIZES, **fields}, evaluation={"segments": 2}, data=carries)
  return c, fake_params(c.model, seed)


def unending(**fields) -> OpenedRun:
  """A model that never ends a text."""
  return OpenedRun(Engine(*model(**fields)), Unending())


def write_run(folder: Path, seed: int = 0, **fields) -> Path:
  """The folder of a run of random parameters, whose vocabulary has a chat template."""
  c, params = model(seed, **fields)
  workdir, tokenizer = Workdir(folder), vocabulary()
  workdir.claim(c, "text", tokenizer.fingerprint)
  tokenizer.save(workdir.tokenizer)
  with Checkpoints(workdir) as saved:
    saved.save(0, TrainState(jnp.zeros((), jnp.int32), params, None, None, None))
  return workdir.path


def opened(folder: Path) -> OpenedRun:
  """The run that `write_run` has written."""
  return open_run(folder)
