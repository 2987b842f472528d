"""The table of the scores of answers, some of the answers, and a file of all."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infini_jax.evaluation.answers import Answered
from infini_jax.evaluation.knock_out import label_of
from infini_jax.files import atomic

LABELS = {
  "exact_match": "exact match",
  "f1": "F1 of words",
  "rouge1": "ROUGE-1",
  "rouge2": "ROUGE-2",
  "rougeL": "ROUGE-L",
  "overall": "overall",
  "log_likelihood": "log-likelihood a token",
}
SHOWN = 3  # the answers that are printed


def show_answers(found: Mapping[str, Answered], title: str, console: Console) -> None:
  """Prints the scores with their 95% intervals, and a few answers."""
  table = Table(title=title, caption="95% intervals over documents, by resampling")
  table.add_column("")
  figures = {name: answered.figures for name, answered in found.items()}
  for name in figures["memory"]:
    table.add_column(LABELS[name], justify="right")
  for variant, those in figures.items():
    table.add_row(label_of(variant), *(cell(*figure) for figure in those.values()))
  console.print(table)
  for answer in found["memory"].answers[:SHOWN]:
    for label, text in (("written", answer.written), ("reference", answer.reference)):
      console.print(f"{answer.name}, {label}: {text[:300]!r}", markup=False, highlight=False)


def cell(value: float, interval: tuple[float, float]) -> str:
  """A figure with its interval."""
  digits = 3 if abs(value) < 10 else 1
  shown, low, high = (f"{x:.{digits}f}" for x in (value, *interval))
  return f"{shown} ({low} to {high})"


def write_predictions(folder: Path, found: Mapping[str, Sequence[Any]]) -> None:
  """Writes `predictions.jsonl`: each text of the whole memory, with those of the ablations.

  Args:
    folder: of the results.
    found: by the name of the ablation, the texts: named tuples with a field `written`. A field
      `scores` becomes a field for each score.
  """
  file = folder / "predictions.jsonl"
  with atomic(file) as temporary, temporary.open("w", encoding="utf-8") as opened:
    for i, one in enumerate(found["memory"]):
      line = one._asdict()
      line |= line.pop("scores", {})
      others = {name: texts[i].written for name, texts in found.items() if name != "memory"}
      opened.write(json.dumps(line | {"knocked_out": others}, ensure_ascii=False) + "\n")
