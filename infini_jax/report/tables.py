"""The tables of a report: evaluations, configs, environments."""

import json
from collections.abc import Sequence
from typing import Any

from infini_jax.config import Config
from infini_jax.evaluation import published_tables
from infini_jax.evaluation.facts import facts_of, measure_of
from infini_jax.evaluation.knock_out import label_of
from infini_jax.evaluation.perplexity import exp
from infini_jax.evaluation.perplexity import interval as of_documents
from infini_jax.evaluation.retrieval import wilson
from infini_jax.html import Cell, folded, paragraph, table
from infini_jax.report.figures import (
  bits,
  changed,
  measured,
  per_word,
  perplexity,
  recall_of,
  recalled,
  said,
)
from infini_jax.report.runs import RunFiles

INTACT, EMPTY = label_of("memory"), label_of("empty")  # names of columns
Row = Sequence[str | Cell]
FIRST = 14  # the fields in which runs differ that are shown unfolded
TEXT = 1500  # the number of characters of a text that are shown


def tables_of(results: dict[str, Any], drawn: str = "") -> str:
  """All tables of one evaluation, chosen by the kind of its results.

  Args:
    results: the content of `results.json`.
    drawn: pictures of the same figures, which come after the first table.
  """
  memory = results.get("memory")
  if memory is None:
    return (gates(results["gates"]) if "gates" in results else "") + drawn
  if "by_position" in memory:
    return _perplexity_tables(results, drawn)
  if "cells" in memory:
    return drawn + _retrieval_table(results)
  found = variants(results)
  if "grid" in memory:
    drawn += "".join(published(name, one) for name, one in found.items())
  rows: list[Row] = [
    [plain(name), *(said(one[name]) if name in one else "" for one in found.values())]
    for name, _ in scalars(memory)
  ]
  made = drawn + table(f"Figures of {results['task']}", ["figure", *found], rows)
  return made + _predictions(results["predictions"]) if "predictions" in results else made


def published(name: str, found: dict[str, Any]) -> str:
  """The scores of a benchmark by task and length, in its layout."""
  header, *rows = published_tables.rows_of(published_tables.grid_of(found))
  return table(f"Scores of 100, {name}", header, rows)


def gates(found: dict[str, Any]) -> str:
  """The numbers of local, mixing and memory heads, and every gate."""
  gates_LH = found["gates_LH"]
  heads = range(1, len(gates_LH[0]) + 1)
  each = [[f"layer {i}", *(f"{gate:.3f}" for gate in row)] for i, row in enumerate(gates_LH, 1)]
  counts: list[Row] = [
    ["heads that opened (over 0.5)", opened(found).figure],
    ["local heads (under 0.1)", str(found["local_heads"])],
    ["mixers (between)", str(found["mixer_heads"])],
    ["memory heads (over 0.9)", str(found["memory_heads"])],
    ["least gate", f"{found['least']:.3f}"],
    ["greatest gate", f"{found['greatest']:.3f}"],
  ]
  return table(
    "Gates: the memory's share in a head's output", ["figure", "value"], counts
  ) + folded(
    "Every gate", table("Gate by layer and head", ["layer", *map("head {}".format, heads)], each)
  )


def differing(runs: Sequence[RunFiles]) -> tuple[list[str], list[dict[str, Any]]]:
  """The fields in which the configs of runs differ, and all fields of each: by section.field."""
  flat = [_flat(json.loads(run.config.to_json())) for run in runs]
  every = dict.fromkeys(name for fields in flat for name in fields)
  return [name for name in every if len({str(fields.get(name)) for fields in flat}) > 1], flat


def differences(runs: list[RunFiles]) -> str:
  """The fields in which the configs of runs differ: the first of them, and the others folded."""
  differ, flat = differing(runs)
  names = [run.name for run in runs]
  # Fields come last if only one memory system has them and its runs do not differ in them.
  only = lambda name: len({str(fields[name]) for fields in flat if name in fields}) < 2
  differ = sorted(differ, key=only)
  if not differ:
    return paragraph("All of them have the same config.")
  rows = [[name, *(shown(fields.get(name, "")) for fields in flat)] for name in differ]
  title = "Fields in which they differ"
  more = len(rows) - FIRST
  if more < 3:
    return table(title, ["field", *names], rows, words=True)
  first = table(title, ["field", *names], rows[:FIRST], words=True)
  return first + folded(
    f"{more} other fields", table(title, ["field", *names], rows[FIRST:], words=True)
  )


def configs(runs: list[RunFiles]) -> str:
  """The fields that a single run sets; and, folded, the whole config."""
  differ, flat = differing(runs)
  names = [run.name for run in runs]
  every = dict.fromkeys(name for fields in flat for name in fields)
  row = lambda name: [name, *(shown(fields.get(name, "")) for fields in flat)]
  whole = table(
    "The whole config",
    ["field", *names],
    [row(name) for name in every],
    words=True,
    marked=differ,
  )
  if len(runs) > 1:
    return folded("The whole config", whole)
  m, no_pattern = runs[0].config.model, Config()
  usual = no_pattern.with_fields(model={"mixer": m.mixer, "pattern": m.pattern})
  default = _flat(json.loads(usual.to_json()))
  default["model.pattern"] = _flat(json.loads(no_pattern.to_json()))["model.pattern"]
  given = [[name, shown(flat[0][name]), shown(default[name])] for name in flat[0]]
  rows = [row for row in given if row[1] != row[2]]
  first = table("Fields that are set", ["field", *names, "default"], rows, words=True)
  return first + folded("The whole config", whole)


def environments(commands: dict[str, list[dict[str, Any]]]) -> str:
  """The dates, machines and settings of all evaluations.

  Args:
    commands: the results of each command, by a label.
  """
  first = {name: results[0] for name, results in commands.items()}
  columns = list(dict.fromkeys(key for r in first.values() for key in r["environment"]))
  rows: list[Row] = []
  for name, results in commands.items():
    seconds, date = sum(r["seconds"] for r in results), max(r["date"] for r in results)
    machine = [str(first[name]["environment"].get(column, "")) for column in columns]
    step = f"{first[name]['step']:,}"
    rows.append([name, date[:16].replace("T", " "), f"{seconds:,.1f}", step, *machine])
  made = table(
    "What computed them", ["evaluation", "UTC", "seconds", "step", *columns], rows, words=True
  )
  flat = [_flat(results["settings"]) for results in first.values()]
  fields = dict.fromkeys(field for settings in flat for field in settings)
  values = {field: [shown(settings.get(field, "")) for settings in flat] for field in fields}
  whole = table(
    "Settings of the evaluations",
    ["field", *first],
    [[field, *those] for field, those in values.items()],
    words=True,
    marked=[field for field, those in values.items() if len(set(those)) > 1],
  )
  return made + folded("Settings of the evaluations", whole)


def _perplexity_tables(results: dict[str, Any], drawn: str) -> str:
  memory, scores = results["memory"], variants(results)
  rows: list[Row] = []
  for name, score in scores.items():
    rows.append(
      [
        name,
        perplexity(score),
        changed(score, memory) if score is not memory else "",
        bits(score),
        per_word(score),
      ]
    )
  header = ["", "perplexity per token", "change", "bits per byte", "perplexity per word"]
  count = memory["documents"]
  what = f"{count:,} document{'s' * (count != 1)} of {results.get('split', 'the corpus')}"
  if cut := memory.get("cut"):
    what += f", {cut} of them cut at {results['settings']['evaluation']['max_tokens']:,} tokens"
  what += f": {memory['tokens']:,} tokens, {memory['bytes']:,} bytes"
  made = table(
    what + "; with 95% intervals" * bool(of_documents(memory["per_document"])), header, rows
  )
  if stores := memory.get("by_source"):
    each: list[Row] = [
      [name, f"{documents:,}", f"{tokens:,}"]
      + [_perplexity(*score["by_source"][name][1:]) for score in scores.values()]
      for name, (documents, tokens, _) in stores.items()
    ]
    header = ["store", "documents", "tokens", *scores]
    made += table("Perplexity per token, by store of the mixture", header, each)
  made += drawn
  positions = _profile("Perplexity by position in the document", "by_position", scores)
  updates = _profile("Perplexity by memory updates before", "by_compressions", scores)
  documents: list[Row] = [
    [name, f"{tokens:,}", _perplexity(tokens, nats)]
    for name, tokens, nats in memory["per_document"]
  ]
  every = table("With the memory", ["document", "tokens", "perplexity per token"], documents)
  made += folded("By position in the document", positions)
  return made + folded("By memory updates", updates) + folded("Every document", every)


def _predictions(written: list[dict[str, Any]]) -> str:
  """The first texts that the model wrote, with the references."""
  rows: list[Row] = []
  for one in written:
    what = {"reference": one["reference"], INTACT: one["written"]}
    what |= {label_of(name): text for name, text in one["knocked_out"].items()}
    rows += [[f"{one['name']}: {who}", cut(text)] for who, text in what.items()]
  text = table("What was written, and the references", ["document", "text"], rows, words=True)
  return folded(f"The first {len(written)} texts", text)


def cut(text: str) -> str:
  """The first `TEXT` characters of a text."""
  return text if len(text) <= TEXT else f"{text[:TEXT]} ..."


def _profile(caption: str, field: str, scores: dict[str, dict[str, Any]]) -> str:
  buckets = next(iter(scores.values()))[field]
  rows: list[Row] = [
    [f"{int(start):,}", f"{tokens:,}"]
    + [_perplexity(*score[field][start]) for score in scores.values()]
    for start, (tokens, _) in buckets.items()
  ]
  return table(caption, ["from", "tokens", *scores], rows)


def _retrieval_table(results: dict[str, Any]) -> str:
  measure, out = measure_of(results), dict(list(variants(results).items())[1:])
  cells = [recall_of(cell) for cell in results["memory"]["cells"]]
  with_depth = bool(facts_of(results).depth_of)
  rows: list[Row] = []
  for i, cell in enumerate(cells):
    rows.append(
      [
        f"{cell.length:,}",
        *([f"{cell.depth:g}"] if with_depth else []),
        measured(cell.exact_match, wilson(cell.exact, cell.samples)),
        measured(cell.token_accuracy, cell.token_interval),
        *(recalled(measure, recall_of(o["cells"][i])).figure for o in out.values()),
      ]
    )
  header = ["tokens", *(["depth"] if with_depth else []), "whole answers right"]
  samples = " or ".join(sorted({f"{cell.samples:,}" for cell in cells}))
  caption = f"Share recalled, of {samples} fresh examples a line, with 95% intervals"
  return table(caption, [*header, "answer tokens right", *out], rows)


def variants(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
  """The figures with the memory, of each ablation, and from before the adaptation, by name."""
  out = {label_of(name): found for name, found in results.get("knocked_out", {}).items()}
  return results.get("before", {}) | {INTACT: results["memory"], **out}


def opened(found: dict[str, Any]) -> Cell:
  """The number of heads with a gate over 0.5, and the greatest gate."""
  heads = sum(len(row) for row in found["gates_LH"])
  return Cell(f"{found['opened_heads']} of {heads}", f"greatest gate {found['greatest']:.2f}")


def scalars(found: dict[str, Any]) -> list[tuple[str, float]]:
  """The names and values of the figures that are numbers."""
  return [(k, v) for k, v in found.items() if isinstance(v, int | float)]


def _perplexity(tokens: int, nats: float) -> str:
  return said(exp(nats / tokens))


def plain(name: str) -> str:
  """A field's name in words."""
  return name.replace("_", " ")


def _flat(config: dict[str, dict[str, Any]]) -> dict[str, Any]:
  return {
    f"{section}.{name}": v for section, fields in config.items() for name, v in fields.items()
  }


def shown(value: Any) -> str:
  """The value of a field as text."""
  return "empty" if value == "" else str(tuple(value) if isinstance(value, list) else value)
