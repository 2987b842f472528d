"""The tables of a report: evaluations, configs, environments."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from infini_jax.config import Config
from infini_jax.evaluation import retrieval_tables
from infini_jax.evaluation.perplexity import change, exp
from infini_jax.evaluation.perplexity import interval as of_documents
from infini_jax.evaluation.retrieval import Cell as Recall
from infini_jax.evaluation.retrieval import wilson
from infini_jax.html import Cell, folded, paragraph, table
from infini_jax.report.runs import Run

Row = Sequence[str | Cell]
TEXT = 1500  # the number of characters of a text that are shown


def tables_of(results: dict[str, Any]) -> str:
  """All tables of one evaluation, chosen by the kind of its results."""
  memory = results.get("memory")
  if memory is None:
    return gates(results["gates"]) if "gates" in results else ""
  if "by_position" in memory:
    return _perplexity_tables(results)
  if "cells" in memory:
    return _retrieval_table(results)
  found = variants(results)
  rows: list[Row] = [
    [plain(name), *(short(one[name]) if name in one else "" for one in found.values())]
    for name, _ in scalars(memory)
  ]
  made = table(f"Figures of {results['task']}", ["figure", *found], rows)
  return made + _predictions(results["predictions"]) if "predictions" in results else made


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


def differing(runs: Sequence[Run]) -> tuple[list[str], list[dict[str, Any]]]:
  """The fields in which the configs of runs differ, and all fields of each: by section.field."""
  flat = [_flat(json.loads(run.config.to_json())) for run in runs]
  every = dict.fromkeys(name for fields in flat for name in fields)
  return [name for name in every if len({str(fields.get(name)) for fields in flat}) > 1], flat


def configs(runs: list[Run]) -> str:
  """The fields in which runs differ, or that one run sets; and, folded, the whole config."""
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
  if len(runs) == 1:
    m, no_pattern = runs[0].config.model, Config()
    usual = no_pattern.with_fields(model={"mixer": m.mixer, "pattern": m.pattern})
    default = _flat(json.loads(usual.to_json()))
    default["model.pattern"] = _flat(json.loads(no_pattern.to_json()))["model.pattern"]
    given = [[name, shown(flat[0][name]), shown(default[name])] for name in flat[0]]
    rows = [row for row in given if row[1] != row[2]]
    first = table("Fields that are set", ["field", *names, "default"], rows, words=True)
  elif differ:
    first = table(
      "Fields in which they differ", ["field", *names], [row(name) for name in differ], words=True
    )
  else:
    first = paragraph("All of them have the same config.")
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


def _perplexity_tables(results: dict[str, Any]) -> str:
  memory, scores = results["memory"], variants(results)
  rows: list[Row] = []
  for name, score in scores.items():
    more = change(score["perplexity"], memory["perplexity"])
    rows.append(
      [
        name,
        Cell(number(score["perplexity"], 3), spread(score)),
        more if score is not memory else "",
        f"{score['bits_per_byte']:.4f}",
        f"{score['word_perplexity']:.4g}",
      ]
    )
  header = ["", "perplexity per token", "change", "bits per byte", "perplexity per word"]
  count = memory["documents"]
  what = f"{count:,} document{'s' * (count != 1)} of {results.get('split', 'the corpus')}"
  if cut := memory.get("cut"):
    what += f", {cut} of them cut at {results['settings']['evaluation']['max_tokens']:,} tokens"
  what += f": {memory['tokens']:,} tokens, {memory['bytes']:,} bytes"
  made = table(what + "; with 95% intervals" * bool(spread(memory)), header, rows)
  if sources := memory.get("by_source"):
    each: list[Row] = [
      [name, f"{documents:,}", f"{tokens:,}"]
      + [_perplexity(*score["by_source"][name][1:]) for score in scores.values()]
      for name, (documents, tokens, _) in sources.items()
    ]
    header = ["store", "documents", "tokens", *scores]
    made += table("Perplexity per token, by store of the mixture", header, each)
  made += _profile("Perplexity by position in the document", "by_position", scores)
  updates = _profile("Perplexity by memory updates before", "by_compressions", scores)
  documents: list[Row] = [
    [name, f"{tokens:,}", _perplexity(tokens, nats)]
    for name, tokens, nats in memory["per_document"]
  ]
  every = table("With the memory", ["document", "tokens", "perplexity per token"], documents)
  return made + folded("By memory updates", updates) + folded("Every document", every)


def _predictions(written: list[dict[str, Any]]) -> str:
  """The first texts that the model wrote, beside the references."""
  rows: list[Row] = []
  for one in written:
    what = {"reference": one["reference"], "with the memory": one["written"]}
    what |= {f"ablation: {name}": text for name, text in one["knocked_out"].items()}
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
  task, out = results["task"], dict(list(variants(results).items())[1:])
  cells = [recall_of(cell) for cell in results["memory"]["cells"]]
  with_depth = task == "passkey" or any(cell.depth for cell in cells)
  rows: list[Row] = []
  for i, cell in enumerate(cells):
    rows.append(
      [
        f"{cell.length:,}",
        *([f"{cell.depth:g}"] if with_depth else []),
        Cell(f"{cell.exact_match:.3f}", interval(wilson(cell.exact, cell.samples))),
        Cell(f"{cell.token_accuracy:.3f}", interval(cell.token_interval)),
        *(f"{retrieval_tables.measure(task, recall_of(o['cells'][i])):.3f}" for o in out.values()),
      ]
    )
  header = ["tokens", *(["depth"] if with_depth else []), "whole answers right"]
  samples = " or ".join(sorted({f"{cell.samples:,}" for cell in cells}))
  caption = f"Share recalled, of {samples} fresh examples a line, with 95% intervals"
  return table(caption, [*header, "answer tokens right", *out], rows)


def variants(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
  """The figures with the memory, of each ablation, and from before the adaptation, by name."""
  out = {f"ablation: {name}": found for name, found in results.get("knocked_out", {}).items()}
  return results.get("before", {}) | {"with the memory": results["memory"], **out}


def opened(found: dict[str, Any]) -> Cell:
  """The number of heads with a gate over 0.5, and the greatest gate."""
  heads = sum(len(row) for row in found["gates_LH"])
  return Cell(f"{found['opened_heads']} of {heads}", f"greatest gate {found['greatest']:.2f}")


def recall_of(cell: dict[str, Any]) -> Recall:
  """A cell of results.json as the object of the evaluation."""
  names = (field.name for field in dataclasses.fields(Recall))
  return Recall(**{name: cell[name] for name in names if name in cell})


def scalars(found: dict[str, Any]) -> list[tuple[str, float]]:
  """The names and values of the figures that are numbers."""
  return [(k, v) for k, v in found.items() if isinstance(v, int | float)]


def short(value: float) -> str:
  """A number as a short text for a table."""
  if isinstance(value, int):
    return f"{value:,}"
  return f"{value:,.4f}" if abs(value) < 10_000 else f"{value:.4g}"


def spread(scores: dict[str, Any]) -> str:
  """The interval of a perplexity, computed again: older programs wrote bounds below 1."""
  return interval(of_documents(scores["per_document"]))


def interval(bounds: Any) -> str:
  """Two bounds as text; empty if there are none."""
  return f"{number(bounds[0], 2)} to {number(bounds[1], 2)}" if bounds else ""


def number(value: float, digits: int) -> str:
  """A number with `digits` decimals; a large one with four significant digits."""
  return f"{value:,.{digits}f}" if abs(value) < 1e6 else f"{value:.4g}"


def _perplexity(tokens: int, nats: float) -> str:
  return number(exp(nats / tokens), 3)


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
