"""The table at the top of a report: one column for each run, one row for each headline figure."""

from collections.abc import Callable
from functools import partial
from typing import Any

from infini_jax.evaluation.filing import WEIGHTS, Evaluated, is_averaged, told_apart
from infini_jax.evaluation.perplexity import change
from infini_jax.evaluation.retrieval_tables import measure
from infini_jax.html import Cell, table
from infini_jax.report.runs import Run
from infini_jax.report.tables import (
  Row,
  number,
  opened,
  plain,
  recall_of,
  scalars,
  short,
  spread,
  variants,
)
from infini_jax.runs.goodput import in_words

Shown = str | Cell | None  # None stays blank
Results = dict[str, Any]  # what a results.json holds

# Figures of an evaluation that are costs or sizes, not results.
COSTS = ("documents", "cut", "tokens", "words", "bytes", "nats", "seconds", "tokens_per_second")


def headline(runs: list[Run]) -> str:
  """The table as HTML. It has a row only if a run has that figure."""
  asked = _asked_of(runs)
  figures: dict[str, Callable[[Run], Shown]] = {
    "memory system": lambda run: run.system,
    "trained on": lambda run: run.config.task.name,
    "documents left out": lambda run: _unread(run.training.get("unread_documents")),
    "parameters": _parameters,
    "training steps": lambda run: f"{run.last[0]:,}" if run.last else None,
    "training loss, last": lambda run: f"{run.last[1]:.4f}" if run.last else None,
    "training, tokens/s": lambda run: _size(run.training["training_tokens_per_second"], 1),
    "training, goodput": lambda run: _goodput(run.training.get("goodput")),
    "training, MiB a device": lambda run: _size(run.training["training_step_bytes"], 2**20),
    "evaluated at step": _steps,
  }
  for task in sorted(asked, key=lambda task: task != "perplexity"):  # perplexity comes first
    for key, apart in told_apart(asked[task]).items():
      behind = f" ({apart})" if apart else ""
      made = _perplexities(key) if task == "perplexity" else _rows_of(task, key, runs)
      figures |= {f"{name}{behind}": figure for name, figure in made.items()}
  figures["heads that opened"] = lambda run: opened(run.gates) if run.gates else None
  rows: list[Row] = []
  for name, figure in figures.items():
    cells = [figure(run) or "" for run in runs]
    if any(cells):
      rows.append([name, *cells])
  return table("What was measured; a blank was not", ["figure", *(run.name for run in runs)], rows)


def _asked_of(runs: list[Run]) -> dict[str, dict[str, Evaluated]]:
  """All evaluations, by task and by key. Results with the same key may be in one row."""
  asked: dict[str, dict[str, Evaluated]] = {}
  for evaluated in (Evaluated.of(found) for run in runs for found in run.evaluations.values()):
    asked.setdefault(evaluated.asked, {}).setdefault(evaluated.key, evaluated)
  return asked


def _perplexities(key: str) -> dict[str, Callable[[Run], Shown]]:
  return {
    "perplexity per token": _of(key, _perplexity),
    "the same, memory held empty": _of(key, _knocked_out),
    "bits per byte": _of(key, partial(_scalar, "bits_per_byte")),
    "perplexity per word": _of(key, partial(_scalar, "word_perplexity")),
  }


def _rows_of(task: str, key: str, runs: list[Run]) -> dict[str, Callable[[Run], Shown]]:
  """The rows of a task: recall by length, or else every figure that it has."""
  results = [found for run in runs if (found := run.results(key)) and "memory" in found]
  lengths = {cell["length"] for found in results for cell in found["memory"].get("cells", ())}
  if lengths:
    depths = {cell["depth"] for found in results for cell in found["memory"].get("cells", ())}
    worst = ", worst depth" * (len(depths) > 1)
    return {
      f"{task}, {n:,} tokens{worst}": _of(key, partial(_recalled, n)) for n in sorted(lengths)
    }
  names = dict.fromkeys(name for found in results for name, _ in scalars(found["memory"]))
  return {
    f"{task}: {plain(name)}": _of(key, partial(_scalar, name))
    for name in names
    if name not in COSTS
  }


def _of(key: str, figure: Callable[[Results], Shown]) -> Callable[[Run], Shown]:
  """A figure of the results with this key.

  A note names the step if it is not the newest, and the parameters if they are not the last ones.
  """

  def of(run: Run) -> Shown:
    results = run.results(key)
    if not results or "memory" not in results:
      return None
    shown = figure(results)
    notes = [f"step {results['step']:,}"] * (results["step"] != run.steps[-1])
    notes += [f"{WEIGHTS[True]} of the parameters"] * is_averaged(results)
    if shown is None or not notes:
      return shown
    cell = shown if isinstance(shown, Cell) else Cell(shown)
    return cell._replace(note="\n".join(filter(None, [cell.note, *notes])))

  return of


def _parameters(run: Run) -> Shown:
  return next((f"{found['parameters']:,}" for found in run.evaluations.values()), None)


def _steps(run: Run) -> Shown:
  """The evaluated steps; training may have continued after them."""
  return ", ".join(f"{step:,}" for step in run.steps)


def _goodput(shares: dict[str, float] | None) -> Shown:
  return Cell(f"{shares['steps']:.0%}", in_words(shares)) if shares else None


def _unread(count: int | None) -> Shown:
  return f"{count:,} that cannot be read" if count else None


def _size(value: float | None, unit: int) -> Shown:
  return f"{value / unit:,.0f}" if value else None


def _scalar(name: str, results: Results) -> Shown:
  empty = results.get("knocked_out", {}).get("empty", {})
  value, out = results["memory"].get(name), empty.get(name)
  if value is None:
    return None
  return Cell(short(value), "" if out is None else f"memory held empty: {short(out)}")


def _perplexity(results: Results) -> Shown:
  memory = results["memory"]
  return Cell(number(memory["perplexity"], 3), spread(memory))


def _knocked_out(results: Results) -> Shown:
  out = results["knocked_out"].get("empty")
  if out is None:
    return None
  more = change(out["perplexity"], results["memory"]["perplexity"])
  return Cell(number(out["perplexity"], 3), more)


def _recalled(length: int, results: Results) -> Shown:
  """Recall at one length and the depth where it is lowest, and with the memory held empty."""
  cells = {
    name: [recall_of(cell) for cell in found["cells"] if cell["length"] == length]
    for name, found in variants(results).items()
  }
  memory, empty = cells["with the memory"], cells.get("ablation: empty")
  if not memory:
    return None
  share = partial(measure, results["task"])
  worst = min(range(len(memory)), key=lambda i: share(memory[i]))
  least, most = share(memory[worst]), max(map(share, memory))
  notes = []
  if least < most:
    notes.append(f"at depth {memory[worst].depth:g}; elsewhere up to {most:.3f}")
  if empty:
    notes.append(f"memory held empty: {share(empty[worst]):.3f}")
  return Cell(f"{least:.3f}", "\n".join(notes))
