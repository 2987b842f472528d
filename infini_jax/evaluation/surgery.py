"""The cost of adding a memory to a trained model: perplexity of the original, at step 0, and now.

All models read the same documents. The original reads them with full attention in windows of one
segment, and, if it was trained on longer texts, also in windows of that length. Windows are
independent. The state of the adapted model goes on from segment to segment. At step 0 it has the
parameters of the original and gates at their start values, so the difference is the effect of these
gates.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from infini_jax.config import Config, InputError, WarmConfig, check
from infini_jax.data import Store
from infini_jax.evaluation.knock_out import INTACT, Variant
from infini_jax.evaluation.perplexity import Advance, Perplexity, Scores, change
from infini_jax.evaluation.reading import documents_read
from infini_jax.models import abstract_params, completed
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import Workdir

ORIGINAL, STEP_0 = Variant("original"), Variant("step 0")
WIDE = Variant("original, its window")
TOLERATED = 0.01  # the largest change of perplexity at step 0 that shut gates explain


@dataclasses.dataclass(frozen=True)
class Cost:
  """The result of one model."""

  perplexity: float
  bits_per_byte: float
  documents: int
  cut: int  # documents that were not read to their end
  tokens: int
  tokens_per_second: float

  def to_dict(self) -> dict[str, Any]:
    """The figures for JSON."""
    return dataclasses.asdict(self)


class Surgery:
  """Evaluates the original, the model at step 0 and the trained model on the same documents."""

  def __init__(self, config: Config, mesh: Mesh, store: Store):
    self._config, self._mesh = config, mesh
    e = config.evaluation
    read = (mesh, store.split(e.split, e.document), store.tokenizer)
    before = originals(config)
    self._originals = {variant: Perplexity(c, *read) for variant, c in before.items()}
    self._adapted = Perplexity(config, *read)
    self._before = before[ORIGINAL].model

  @property
  def chunks(self) -> int:
    """The chunks of one run, the last value of `advance`."""
    return self._adapted.chunks

  def run(self, params: Any, variant: Variant = INTACT, *, advance: Advance | None = None) -> Cost:
    """Reads every document; `params` are those of the trained model."""
    if original := self._originals.get(variant):
      count = advance and (lambda done, text: advance(done * self.chunks // original.chunks, text))
      return _cost(original.run(self._start, advance=count))
    if variant == STEP_0:
      key = jax.random.key(self._config.train.seed)
      params = completed(self._config.model, self._start, key, self._mesh)
    return _cost(self._adapted.run(params, advance=advance))

  @functools.cached_property
  def _start(self) -> Any:
    """The parameters of the original."""
    with Checkpoints(Workdir(self._config.train.start_from)) as saved:
      return saved.restore_params(abstract_params(self._before, self._mesh))[0]


def originals(config: Config) -> dict[Variant, Config]:
  """The configs of the original: windows of one segment, and of its training length, if longer.

  The config of a converted run contains the training length of the original.

  Raises:
    InputError: the run was not started from an original, or the original has no checkpoint.
  """
  m, path = config.model, config.train.start_from
  if not path:
    raise InputError(
      "--task=surgery: config.train.start_from is empty: there is no original to compare with; "
      "leave it out"
    )
  run = Workdir(path)
  its_own = run.config()
  there, N = its_own.model, m.segment_length
  if not there.is_plain or m.is_plain:
    raise InputError(
      f"--task=surgery: the mixer is {there.title!r} in config.train.start_from={path!r} and "
      f"{m.title!r} here: evaluate the run that started from one with 'full'"
    )
  with Checkpoints(run) as saved:
    if saved.latest() is None:
      raise InputError(f"config.train.start_from={path!r}: no checkpoint there; train it first")
  model = dataclasses.replace(
    there, segment_length=N, run=dataclasses.replace(m.run, param_dtype=there.run.param_dtype)
  )
  windows = {ORIGINAL: 1, WIDE: its_own.evaluation.input_tokens // N}
  found = {}
  for variant, segments in windows.items():
    if variant is ORIGINAL or segments > 1:
      few = min(segments, config.evaluation.segments)
      found[variant] = dataclasses.replace(
        config,
        model=model,
        data=dataclasses.replace(config.data, carry_state=False),
        train=dataclasses.replace(config.train, part="all", rollout=(), distill_weight=0.0),
        warm=WarmConfig(),
        evaluation=dataclasses.replace(
          config.evaluation, input_tokens=segments * N, segments=few, knock_out=()
        ),
      )
      check(found[variant])
  return found


def draw(costs: dict[str, Cost], results: dict[str, Any], folder: Path) -> dict[str, Path]:
  """Draws nothing: the table has all figures."""
  return {}


def show(costs: dict[str, Cost], results: dict[str, Any], config: Config, console: Console) -> None:
  """Prints the figures."""
  original, m = costs[ORIGINAL.name], config.model
  starts = [f"{x.memory.gate_init:g}" for x in m.by_system.values() if x.memory.gated]
  rows = {
    ORIGINAL.name: f"the original, windows of {m.segment_length:,}",
    WIDE.name: "the original, windows as long as its training's",
    STEP_0.name: f"adapted, step 0, gates at {', '.join(starts)}",
    INTACT.name: f"adapted, step {results['step']:,}",
  }
  e = config.evaluation
  read = documents_read(original.documents, original.cut, e.max_tokens)
  what = f"{e.split}: {read}, {original.tokens:,} tokens"
  table = Table(title=f"the surgery: {what}")
  for name in ("", "perplexity per token", "change", "bits per byte"):
    table.add_column(name, justify="right" if name else "left")
  for name, text in rows.items():
    if name not in costs:
      continue
    cost = costs[name]
    more = "" if cost is original else change(cost.perplexity, original.perplexity)
    table.add_row(text, f"{cost.perplexity:.3f}", more, f"{cost.bits_per_byte:.4f}")
  console.print(table)


def verdict(costs: dict[str, Cost], console: Console) -> None:
  """Prints a line if the adapted model at step 0 differs from the original."""
  before, after = costs[ORIGINAL.name].perplexity, costs[STEP_0.name].perplexity
  if (more := change(after, before)) and abs(after / before - 1) > TOLERATED:
    console.print(
      f"At step 0 the perplexity is {more} of the original's: the adapted model is another "
      f"one. Compare config.model with the run.json that it started from (train.py prints what "
      f"differs), or set gate_init of its memory lower; docs/adapt.md"
    )


def _cost(scores: Scores) -> Cost:
  speed = scores.tokens / scores.seconds
  totals = scores.documents, scores.cut, scores.tokens
  return Cost(scores.perplexity, scores.bits_per_byte, *totals, speed)
