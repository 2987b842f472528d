"""The table and picture of summary scores, and a file of the summaries and references."""

from pathlib import Path
from typing import Any

from rich.console import Console

from infini_jax.config import Config
from infini_jax.evaluation.answers_tables import show_answers, write_predictions
from infini_jax.evaluation.knock_out import label_of
from infini_jax.evaluation.reading import documents_read
from infini_jax.evaluation.summarization import Summarized


def draw(found: dict[str, Summarized], results: dict[str, Any], folder: Path) -> dict[str, Path]:
  """Writes the summaries to `predictions.jsonl`, and draws ROUGE-1 by the tokens read."""
  from infini_jax import plots

  write_predictions(folder, {name: f.answers for name, f in found.items()})
  points = {
    label_of(name): [(s.tokens, 100 * s.scores["rouge1"]) for s in summarized.answers]
    for name, summarized in found.items()
  }
  x = "tokens of the document that were read"
  plots.png(plots.point_chart(points, x, "ROUGE-1"), folder / "summaries.png")
  return {"summaries": folder / "summaries.png"}


def show(
  found: dict[str, Summarized], results: dict[str, Any], config: Config, console: Console
) -> None:
  """Prints the scores with their 95% intervals, and the beginnings of a few summaries."""
  memory, e = found["memory"], config.evaluation
  read = documents_read(len(memory.answers), memory.about["cut"], e.max_tokens)
  show_answers(found, f"{e.split}: summaries of {read}, step {results['step']}", console)


def verdict(found: dict[str, Summarized], console: Console) -> None:
  """Prints a line if the memory does not help, or if the scores cannot show it."""
  if "empty" not in found:
    return
  # The first may be 0 where the second is not.
  memory, empty = (
    [found[variant].figures[name][0] for name in ("overall", "rouge1")]
    for variant in ("memory", "empty")
  )
  if not any(memory + empty):
    console.print(
      "No summary has a word of Latin letters in common with its reference, with the memory or "
      "without it. This does not show whether the memory works. docs/memory.md says how to find "
      "out why."
    )
  elif memory <= empty:
    console.print(
      "The memory does not help: from the last segment alone the summaries are as "
      "good. docs/memory.md says how to find out why."
    )
