"""The section of evaluations: each question once, with the runs that answered it side by side."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from infini_jax import plots
from infini_jax.evaluation import gates, perplexity_tables, retrieval_tables
from infini_jax.html import columns, heading, image, link, paragraph, picture
from infini_jax.report import tables
from infini_jax.report.curves import names_of
from infini_jax.report.figures import recall_of
from infini_jax.report.groups import Group, Member, evaluated
from infini_jax.report.runs import RunFiles, shown

# The alternative text of a picture. The tables hold its figures.
PICTURES = {
  "positions": "Line chart of perplexity by position in the document",
  "gates": "Heat map of the gate of every head, by layer",
  "cells": "Heat map of the share recalled, by length of the text and depth",
  "summaries": "ROUGE-1 of every summary against the length of its document",
}
PAGES = {"text": "Passages of the text, each word coloured by what the memory saved or cost"}

Draw = Callable[[], Any]


def evaluations(runs: Sequence[RunFiles], folder: Path, drawn: bool = True) -> str:
  """All evaluations as HTML.

  Args:
    runs: of any workdirs.
    folder: links to other pages are relative to it.
    drawn: whether there are pictures.
  """
  made = ""
  style = {run.name: i for i, run in enumerate(runs)}
  for group in evaluated(runs):
    alone = len(runs) == 1
    step = f"step {group.members[0].results['step']:,}" if alone else ""
    made += heading(3, group.title, step)
    made += paragraph(group.description) if group.description else ""
    if drawn and len(group.members) > 1:
      made += _side_by_side(group, style)
    each = [_one(group.title, member, folder, not alone, drawn) for member in group.members]
    made += columns(each)
  missing = [run.name for run in runs if not run.evaluations]
  if missing and len(runs) == 1:
    made += paragraph("Nothing was evaluated yet; infini-jax eval evaluates a run.")
  elif missing:
    made += paragraph(f"Nothing was evaluated yet of {', '.join(missing)}.")
  return made


def _one(title: str, member: Member, folder: Path, named: bool, drawn: bool) -> str:
  """The tables and pictures of one evaluation."""
  run, name, results = member
  made = heading(4, run.name, f"step {results['step']:,}") if named else ""
  where = f"{title}; {run.name}, step {results['step']:,}"
  figures = _figures(results)
  pictures = ""
  for kind, draw in figures.items() if drawn else ():
    with shown(run, name):
      pictures += picture(plots.svg(draw()), f"{PICTURES[kind]}; {where}")
  made += tables.tables_of(results, pictures)
  known = {*figures, results["task"]} if figures else set()
  for file in run.pictures(name):  # those that only the evaluation could draw
    if file.stem not in known:
      shows = PICTURES.get(file.stem, f"Picture {file.stem}")
      made += image(file.read_bytes(), f"{shows}; {where}")
  for file in run.pages(name):
    made += link(os.path.relpath(file, folder), PAGES.get(file.stem, file.stem))
  return made


def _figures(results: dict[str, Any]) -> dict[str, Draw]:
  """What can be drawn from results: by kind, a function that draws it."""
  memory, out = results.get("memory"), results.get("knocked_out", {})
  if memory is None:
    return {"gates": lambda: gates.heat_map(results["gates"]["gates_LH"])}
  if "by_position" in memory:
    profiles = {name: found["by_position"] for name, found in tables.variants(results).items()}
    return {"positions": lambda: perplexity_tables.by_position(profiles)}
  if "cells" in memory:
    found = {name: one["cells"] for name, one in {"memory": memory, **out}.items()}
    cells = {name: [recall_of(cell) for cell in some] for name, some in found.items()}
    return {"cells": lambda: retrieval_tables.by_depth(cells, results)}
  return {}


def _side_by_side(group: Group, style: dict[str, int]) -> str:
  """One picture of the runs of a group, if their figures have an axis in common."""
  found = {m.run.name: m.results["memory"] for m in group.members if "memory" in m.results}
  styles = [style[name] for name in found]
  if len(found) < 2:
    return ""
  if all("by_position" in memory for memory in found.values()):
    profiles = {name: memory["by_position"] for name, memory in found.items()}
    figure = perplexity_tables.by_position(profiles, styles)
    what = "Perplexity by position in the document, with the memory"
  elif all("cells" in memory for memory in found.values()):
    recalls = {
      name: (style[name], [recall_of(cell) for cell in memory["cells"]])
      for name, memory in found.items()
    }
    figure = retrieval_tables.by_length(recalls, group.members[0].results)
    what = "Share recalled by length, with the memory"
  else:
    return ""
  runs = [member.run for member in group.members if member.run.name in found]
  alt = f"Line chart: {what}; {', '.join(found)}"
  return names_of(runs, style) + picture(plots.svg(figure), alt, what)
