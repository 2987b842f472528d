"""The table of the scores of answers, and a file of the answers."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infini_jax.config import Config
from infini_jax.evaluation.chat import SCORES, Answered
from infini_jax.evaluation.knock_out import label_of
from infini_jax.evaluation.summarization_tables import write_predictions

SHOWN = 3  # the answers that are printed


def draw(found: dict[str, Answered], results: dict[str, Any], folder: Path) -> dict[str, Path]:
  """Writes the answers to `predictions.jsonl`; there is no picture."""
  write_predictions(folder, {name: f.answers for name, f in found.items()})
  return {}


def show(
  found: dict[str, Answered], results: dict[str, Any], config: Config, console: Console
) -> None:
  """Prints the scores with their 95% intervals, and a few answers."""
  memory = found["memory"]
  title = f"{config.evaluation.split}: {len(memory.answers):,} answers, step {results['step']}"
  lost = {name: memory.about[name] for name in ("cut", "left_out", "bad") if memory.about[name]}
  if lost:
    title += "; " + ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in lost.items())
  table = Table(title=title, caption="95% intervals over conversations, by resampling")
  table.add_column("")
  for name in ("exact match", "F1 of words", "ROUGE-L", "log-likelihood a token"):
    table.add_column(name, justify="right")
  for name, answered in found.items():
    figures = [*map(answered.mean, SCORES), answered.log_likelihood]
    cells = [f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, (low, high) in figures]
    table.add_row(label_of(name), *cells)
  console.print(table)
  for answer in memory.answers[:SHOWN]:
    for label, text in (("written", answer.written), ("reference", answer.reference)):
      console.print(f"{answer.name}, {label}: {text[:300]!r}", markup=False, highlight=False)


def verdict(found: dict[str, Answered], console: Console) -> None:
  """Prints a line if the answers are as likely without the memory."""
  if "empty" not in found:
    return
  memory, empty = found["memory"].log_likelihood[0], found["empty"].log_likelihood[0]
  if memory <= empty:
    console.print(
      "The memory carries nothing that helps: from the last segment alone the answers are as "
      "likely. docs/memory.md says how to find out why."
    )
