"""The table at the top of a report: one column for each run, one row for each headline figure."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from infini_jax.evaluation.facts import measure_of
from infini_jax.evaluation.filing import WEIGHTS, Evaluated, is_averaged, told_apart
from infini_jax.html import Cell, table
from infini_jax.report.figures import (
  bits,
  changed,
  per_word,
  perplexity,
  recall_of,
  recalled,
  said,
  short,
)
from infini_jax.report.groups import trained
from infini_jax.report.runs import RunFiles
from infini_jax.report.tables import EMPTY, INTACT, Row, opened, plain, scalars, variants
from infini_jax.runs.goodput import in_words

Shown = str | Cell | None  # None stays blank
Key = tuple[str, str | None]  # what was asked of which text, and the tokenizer; None: any
Results = dict[str, Any]  # what a results.json holds

# Figures of an evaluation that are costs or sizes, not results.
COSTS = ("documents", "cut", "tokens", "words", "bytes", "nats", "seconds", "tokens_per_second")


def headline(runs: list[RunFiles]) -> str:
  """The table as HTML. It has a row only if a run has that figure.

  Figures in one row may be compared: they are of the same text, tokenizer and task.
  """
  figures: dict[str, Callable[[RunFiles], Shown]] = {
    "memory system": lambda run: run.system,
    "trained on": _trained_on,
    "tokenizer": _tokenizer,
    "documents left out": lambda run: _unread(run.training.get("unread_documents")),
    "parameters": _parameters,
    "training steps": lambda run: f"{run.last[0]:,}" if run.last else None,
  }
  for apart, some in trained(runs).items():
    behind = f" ({apart})" if apart else ""
    figures[f"training loss, last{behind}"] = partial(_loss, frozenset(r.name for r in some))
  figures |= {
    "training, tokens/s": lambda run: _size(run.training["training_tokens_per_second"], 1),
    "training, goodput": lambda run: _goodput(run.training.get("goodput")),
    "training, MiB a device": lambda run: _size(run.training["training_step_bytes"], 2**20),
    "evaluated at step": _steps,
  }
  made: dict[str, dict[str, Callable[[RunFiles], Shown]]] = {"": figures}
  asked = _asked_of(runs)
  of_text = {task: any(map(_is_perplexity, some.values())) for task, some in asked.items()}
  for task in sorted(asked, key=lambda task: not of_text[task]):  # perplexity comes first
    for key, apart in _apart(asked[task]).items():
      own = _per_token(key, runs) if of_text[task] else _rows_of(task, key, runs)
      made.setdefault(f"{task}: {apart}" if apart else "", {}).update(own)
    if of_text[task]:
      texts = {key: replace(one, tokenizer="") for (key, _), one in asked[task].items()}
      for text, apart in _apart(texts).items():
        group = f"{task}, any tokenizer: {apart}" if apart else ""
        made.setdefault(group, {}).update(_per_text((text, None)))
  made.setdefault("gates" if len(made) > 1 else "", {})["heads that opened"] = _opened
  rows: list[Row] = []
  for group, those in made.items():
    cells = {name: [figure(run) or "" for run in runs] for name, figure in those.items()}
    own_rows: list[Row] = [[name, *row] for name, row in cells.items() if any(row)]
    rows += [[group], *own_rows] if group and own_rows else own_rows
  caption = "What was measured; a blank was not"
  if len(runs) > 1:
    caption += (
      ". Losses, perplexities and shares in one row are of the same text, tokenizer and task"
    )
  return table(caption, ["figure", *(run.name for run in runs)], rows)


def _asked_of(runs: list[RunFiles]) -> dict[str, dict[Key, Evaluated]]:
  """All evaluations, by task and by key. Results with the same key may be in one row."""
  asked: dict[str, dict[Key, Evaluated]] = {}
  for one in (Evaluated.of(found) for run in runs for found in run.evaluations.values()):
    asked.setdefault(one.asked, {}).setdefault((one.key, one.tokenizer), one)
  return asked


def _is_perplexity(one: Evaluated) -> bool:
  return one.facts.measure == "perplexity"


def _apart(some: dict[Any, Evaluated]) -> dict[Any, str]:
  """What distinguishes evaluations of one task."""
  names = {str(i): one for i, one in enumerate(some.values())}
  return dict(zip(some, told_apart(names).values(), strict=True))


def _per_token(key: Key, runs: list[RunFiles]) -> dict[str, Callable[[RunFiles], Shown]]:
  """Figures that are comparable for one tokenizer only."""
  first = next((run for run in runs if run.results(*key)), None)
  made = {
    "perplexity per token": _of(key, lambda results: perplexity(results["memory"])),
    "the same, memory held empty": _of(key, _knocked_out),
  }
  if first and sum(bool(run.results(*key)) for run in runs) > 1:
    made[f"perplexity against {first.name}"] = partial(_against, first, key)
  return made


def _per_text(key: Key) -> dict[str, Callable[[RunFiles], Shown]]:
  """Figures that are comparable for any tokenizers."""
  return {
    "bits per byte": _of(key, partial(_with_empty, bits)),
    "perplexity per word": _of(key, partial(_with_empty, per_word)),
  }


def _rows_of(task: str, key: Key, runs: list[RunFiles]) -> dict[str, Callable[[RunFiles], Shown]]:
  """The rows of a task: recall by length, or else every figure that it has."""
  results = [found for run in runs if (found := run.results(*key)) and "memory" in found]
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


def _of(key: Key, figure: Callable[[Results], Shown]) -> Callable[[RunFiles], Shown]:
  """A figure of the results with this key.

  A note names the step if it is not the newest, and the parameters if they are not the last ones.
  """

  def of(run: RunFiles) -> Shown:
    results = run.results(*key)
    if not results or "memory" not in results:
      return None
    shown = figure(results)
    notes = [f"step {results['step']:,}"] * (results["step"] != run.steps[-1])
    notes += [f"{WEIGHTS[True]} of the parameters"] * is_averaged(results)
    if not shown or not notes:
      return shown
    cell = shown if isinstance(shown, Cell) else Cell(shown)
    return cell._replace(note="\n".join(filter(None, [cell.note, *notes])))

  return of


def _parameters(run: RunFiles) -> Shown:
  return next((f"{found['parameters']:,}" for found in run.evaluations.values()), None)


def _steps(run: RunFiles) -> Shown:
  """The evaluated steps; training may have continued after them."""
  return ", ".join(f"{step:,}" for step in run.steps)


def _goodput(shares: dict[str, float] | None) -> Shown:
  return Cell(f"{shares['steps']:.0%}", in_words(shares)) if shares else None


def _unread(count: int | None) -> Shown:
  return f"{count:,} that cannot be read" if count else None


def _size(value: float | None, unit: int) -> Shown:
  return f"{value / unit:,.0f}" if value else None


def _opened(run: RunFiles) -> Shown:
  return opened(run.gates) if run.gates else None


def _trained_on(run: RunFiles) -> Shown:
  task = run.config.task
  return Cell(task.name, "" if task.kind.asks else run.config.data.path)


def _tokenizer(run: RunFiles) -> Shown:
  found = {(results.get("tokenizer") or "")[:6] for results in run.evaluations.values()}
  return Cell(run.config.data.tokenizer, ", ".join(sorted(found - {""})))


def _loss(names: frozenset[str], run: RunFiles) -> Shown:
  if run.name not in names or not run.last:
    return None
  return Cell(said(run.last[1]), "", f"{run.last[1]:.6g}")


def _against(first: RunFiles, key: Key, run: RunFiles) -> Shown:
  """The change of the perplexity against the first run that was evaluated so."""
  own, others = run.results(*key), first.results(*key)
  if run is first or not own or not others:
    return None
  return changed(own["memory"], others["memory"])


def _scalar(name: str, results: Results) -> Shown:
  empty = results.get("knocked_out", {}).get("empty", {})
  value, out = results["memory"].get(name), empty.get(name)
  if value is None:
    return None
  note = "" if out is None else f"memory held empty: {said(out)}"
  return Cell(said(value), note, short(value))


def _with_empty(figure: Callable[[Results], Cell], results: Results) -> Shown:
  empty, cell = results.get("knocked_out", {}).get("empty"), figure(results["memory"])
  return cell._replace(note=f"memory held empty: {figure(empty).figure}") if empty else cell


def _knocked_out(results: Results) -> Shown:
  out = results["knocked_out"].get("empty")
  if out is None:
    return None
  more = changed(out, results["memory"])
  text = more if isinstance(more, str) else f"{more.figure} ({more.note})"
  return perplexity(out)._replace(note=text)


def _recalled(length: int, results: Results) -> Shown:
  """Recall at one length and the depth where it is lowest, and with the memory held empty."""
  cells = {
    name: [recall_of(cell) for cell in found["cells"] if cell["length"] == length]
    for name, found in variants(results).items()
  }
  memory, empty = cells[INTACT], cells.get(EMPTY)
  if not memory:
    return None
  measure = measure_of(results)
  share = measure.share
  worst = min(range(len(memory)), key=lambda i: share(memory[i]))
  best = max(range(len(memory)), key=lambda i: share(memory[i]))
  cell = recalled(measure, memory[worst])
  notes = [cell.note]
  if share(memory[worst]) < share(memory[best]):
    most = recalled(measure, memory[best]).figure
    notes.append(f"at depth {memory[worst].depth:g}; elsewhere up to {most}")
  if empty:
    notes.append(f"memory held empty: {recalled(measure, empty[worst]).figure}")
  return cell._replace(note="\n".join(notes))
