"""The table and picture of summary scores, and a file of the summaries and references."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infini_jax.config import Config
from infini_jax.evaluation.knock_out import label_of
from infini_jax.evaluation.reading import documents_read
from infini_jax.evaluation.summarization import ROUGES, Summarized


def draw(found: dict[str, Summarized], results: dict[str, Any], folder: Path) -> dict[str, Path]:
  """Writes the summaries to `predictions.jsonl`, and draws ROUGE-1 by the tokens read."""
  from infini_jax import plots

  write_predictions(folder, {name: f.summaries for name, f in found.items()})
  points = {
    label_of(name): [(s.tokens, 100 * s.rouge1) for s in summarized.summaries]
    for name, summarized in found.items()
  }
  x = "tokens of the document that were read"
  plots.png(plots.point_chart(points, x, "ROUGE-1"), folder / "summaries.png")
  return {"summaries": folder / "summaries.png"}


def show(
  found: dict[str, Summarized], results: dict[str, Any], config: Config, console: Console
) -> None:
  """Prints the scores, and the beginning of one summary."""
  memory, e = found["memory"], config.evaluation
  read = documents_read(len(memory.summaries), memory.cut, e.max_tokens)
  title = f"{e.split}: summaries of {read}, step {results['step']}"
  table = Table(title=title)
  table.add_column("")
  for name in ("ROUGE-1", "ROUGE-2", "ROUGE-L", "overall"):
    table.add_column(name, justify="right")
  for name, summarized in found.items():
    scores = [f"{summarized.mean(rouge):.1f}" for rouge in ROUGES]
    table.add_row(label_of(name), *scores, f"{summarized.overall:.2f}")
  console.print(table)
  first = memory.summaries[0]
  for label, text in (("written", first.written), ("reference", first.reference)):
    console.print(f"{first.name}, {label}: {text[:300]!r}", markup=False, highlight=False)


def verdict(found: dict[str, Summarized], console: Console) -> None:
  """Prints a line if the memory does not help, or if the scores cannot show it."""
  if "empty" not in found:
    return
  memory, empty = found["memory"], found["empty"]
  score = lambda summarized: (summarized.overall, summarized.mean("rouge1"))  # the first may be 0
  if not any(score(memory) + score(empty)):
    console.print(
      "No summary shares a word of Latin letters with its reference, with the memory or without: "
      "this says nothing of the memory. docs/memory.md says how to find out why."
    )
  elif score(memory) <= score(empty):
    console.print(
      "The memory carries nothing that helps: from the last segment alone the summaries are as "
      "good. docs/memory.md says how to find out why."
    )


def write_predictions(folder: Path, found: dict[str, Sequence[Any]]) -> None:
  """Writes `predictions.jsonl`: each text of the whole memory, with those of the ablations.

  Args:
    folder: of the results.
    found: by the name of the ablation, the texts: named tuples with a field `written`.
  """
  with open(folder / "predictions.jsonl", "w", encoding="utf-8") as file:
    for i, one in enumerate(found["memory"]):
      others = {name: texts[i].written for name, texts in found.items() if name != "memory"}
      line = one._asdict() | {"knocked_out": others}
      file.write(json.dumps(line, ensure_ascii=False) + "\n")
