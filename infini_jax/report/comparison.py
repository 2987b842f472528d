"""A table of many runs for the console: differences of configs, and figures, best first."""

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from infini_jax.config import InputError
from infini_jax.evaluation.facts import measure_of
from infini_jax.evaluation.filing import Evaluated
from infini_jax.report.figures import recall_of, short
from infini_jax.report.groups import trained
from infini_jax.report.headline import COSTS
from infini_jax.report.runs import RunFiles
from infini_jax.report.tables import differing, plain, scalars, shown

TRAINING = "training loss"  # the mean over the last tenth of the logged steps
PART = 10
OTHER = "≠"  # behind a figure that is not comparable with the first
OF_TEXT = ("bits_per_byte", "word_perplexity")  # comparable for any tokenizers
LESS = ("loss", "perplexity", "bits", "nats", "seconds")  # words of figures that are better if less
USUAL = ("perplexity", "validation perplexity", TRAINING)  # what sorts, the first that a run has


def comparison(runs: Sequence[RunFiles], by: Sequence[str]) -> Table:
  """The table.

  Args:
    runs: of any workdirs.
    by: names of figures. The first sorts the runs; a run without it comes last. None: the
      perplexity of an evaluation, that of a validation, or the training loss.

  Raises:
    InputError: no run has a figure of this name.
  """
  about = {run.name: _measured(run) for run in runs}
  of: Any
  for of, some in trained(runs).items():
    for run in some:
      if (loss := training_loss(run)) is not None:
        about[run.name][TRAINING] = loss, of
  for of, some in trained([run for run in runs if run.validated], validated=True).items():
    for run in some:
      own = {k: v for k, v in scalars(run.validated[-1]) if k not in (*COSTS, "step")}
      about[run.name] |= {f"validation {plain(k)}": (v, of) for k, v in own.items()}
  found = {name: {n: value for n, (value, _) in own.items()} for name, own in about.items()}
  every = list(dict.fromkeys(name for of_run in found.values() for name in of_run))
  chosen = [_chosen(name, every) for name in by] or [n for n in USUAL if n in every][:1]
  columns = list(dict.fromkeys([*chosen, *[TRAINING] * (TRAINING in every)]))
  fields, flat = differing(runs)
  values = dict(zip(found, flat, strict=True))
  last = [field.partition(".")[2] for field in fields]
  titles = [n if last.count(n) == 1 else f for f, n in zip(fields, last, strict=True)]

  def order(run: RunFiles) -> float:
    value = found[run.name].get(chosen[0], math.nan) if chosen else math.nan
    if math.isnan(value):
      return math.inf
    return value if any(word in chosen[0] for word in LESS) else -value

  title = f"{len(runs)} run{'s' * (len(runs) > 1)}" + (
    f", the best {chosen[0]} first" if chosen else ""
  )
  table = Table(title=title)
  for name in ("run", *titles):
    table.add_column(name, overflow="fold")
  for name in ("step", *columns):
    table.add_column(name, justify="right")
  first: dict[str, Any] = {}  # what the first figure of each column is of
  for run in sorted(runs, key=order):
    mine = [shown(values[run.name].get(field, "")) for field in fields]
    step = f"{run.last[0]:,} of {run.config.train.steps:,}" if run.last else "0"
    cells = []
    for name in columns:
      value, of = about[run.name].get(name, (None, None))
      other = value is not None and first.setdefault(name, of) != of
      cells.append("" if value is None else short(value) + f" {OTHER}" * other)
      if other:
        table.caption = f"{OTHER} of another text, tokenizer or protocol than the first"
    table.add_row(run.name, *mine, step, *cells)
  return table


def training_loss(run: RunFiles) -> float | None:
  """The mean loss of the last tenth of the logged steps; None: no step is logged."""
  losses = [loss for _, loss in run.losses]
  tail = losses[-max(1, len(losses) // PART) :]
  return sum(tail) / len(tail) if tail else None


def _measured(run: RunFiles) -> dict[str, tuple[float, Any]]:
  """The figures of a run's evaluations by name: the value, and what it can be compared by."""
  made: dict[str, tuple[float, Any]] = {}
  for name, what in run.names.items():
    results = run.evaluations[name]
    memory, one = results.get("memory", {}), Evaluated.of(results)
    alone = one.facts.measure == "perplexity" and what.partition(":")[0] == name
    what = "" if alone else f"{what}: "
    if "cells" in memory:
      shares = [measure_of(results).share(recall_of(cell)) for cell in memory["cells"]]
      made[f"{what}recalled"] = sum(shares) / len(shares), (one.key, one.tokenizer)
    for field, value in scalars(memory):
      if field not in COSTS:
        tokenizer = "" if field in OF_TEXT else one.tokenizer
        made[f"{what}{plain(field)}"] = value, (one.key, tokenizer)
  return made


def _chosen(name: str, every: Sequence[str]) -> str:
  """The figure of this name, or the only one whose name contains it.

  Raises:
    InputError: there is none, or several.
  """
  some = [name] if name in every else [one for one in every if name in one]
  if len(some) != 1:
    raise InputError(
      f"--by={name}: {'several figures have it' if some else 'no run has it'}; choose one of "
      f"{', '.join(some or every) or 'those that infini-jax eval makes'}"
    )
  return some[0]
