"""`infini-jax card`: a page in Markdown that says what a run is, and what was measured of it.

It holds what the files of the run hold, and nothing else. What was not measured is left out, or is
blank where other rows of a table have it.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from infini_jax.config import Config, InputError, tokens_read
from infini_jax.data.store.evaluated import short_name
from infini_jax.evaluation.facts import measure_of
from infini_jax.evaluation.filing import Evaluated
from infini_jax.evaluation.published_tables import grid_of, rows_of
from infini_jax.files import write_text
from infini_jax.paths import file_to_write
from infini_jax.report.figures import number, recall_of, short
from infini_jax.report.runs import RunFiles, read_runs
from infini_jax.report.tables import plain, scalars, variants

FILE = "README.md"
BEGINS = b"---\n# written by infini-jax"  # a pattern for the first bytes of a card
COSTS = ("documents", "cut", "tokens", "words", "bytes", "nats", "seconds", "tokens_per_second")
LOCAL = re.compile(r"(?<![\w/.<*?\\-])(?:~\w*)?/(?:[^\s/,;?'\"]+/)*([^\s/,;?'\"]+)/?")
HEADER = """---
# written by infini-jax from what was measured
library_name: {library}
pipeline_tag: text-generation
tags:
- infini-attention
---
"""


def write(path: str, out: str | None, console: Console) -> Path:
  """Writes the card of a run.

  Args:
    path: the folder of the run.
    out: the file; None: README.md in the folder of the run.
    console: where the name of the file is printed.

  Returns:
    The path of the file.

  Raises:
    InputError: there is no run, a file of it cannot be read, or the file to write is another's.
  """
  text = card(path)
  file = file_to_write(out or f"{path.rstrip('/')}/{FILE}", "--out", begins=BEGINS)
  try:
    write_text(file, text)
  except OSError as error:
    raise InputError(f"--out={file}: cannot be written ({error.strerror}); give another") from None
  console.print(f"wrote {file}", highlight=False, soft_wrap=True)
  return file


def card(path: str, use: str = "", library: str = "infini_jax") -> str:
  """The card of a run, in Markdown.

  Args:
    path: the folder of the run.
    use: a section in Markdown that says how to use the files next to the card.
    library: what loads that, as the hub calls it.

  Raises:
    InputError: there is no run, or a file of it cannot be read.
  """
  (run,) = read_runs([path])
  parts = [HEADER.format(library=library), f"# {literal(Path(run.name).name)}", _what(run.config)]
  parts += [use] * bool(use) + ["## Model", _model(run), "## Training", _training(run)]
  parts += ["## Measured", *_measured(run)]
  return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table in Markdown."""
  line = lambda cells: "| " + " | ".join(literal(c).replace("|", "\\|") for c in cells) + " |"
  return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])


def literal(text: str) -> str:
  """A text of the run, such as a name, in which nothing is a tag of HTML."""
  return text.replace("<", "\\<")


def portable(text: str) -> str:
  """A text without the folders of this machine: of a path from the root, its last name is left."""
  return LOCAL.sub(lambda found: found[1], text)


def _what(config: Config) -> str:
  m = config.model
  systems = f"memory system {m.title}" if m.memory.remembers else f"mixer {m.title}"
  return f"A language model of `infini_jax`, {systems}, in segments of {m.segment_length:,} tokens."


def _model(run: RunFiles) -> str:
  m = run.config.model
  count = next((f"{r['parameters']:,}" for r in run.evaluations.values() if "parameters" in r), "")
  rows = [
    ["memory system", run.system],
    ["parameters", count],
    ["layers, width, feed-forward", f"{m.layers:,}, {m.width:,}, {m.ffn:,}"],
    ["query heads, key/value heads, their size", f"{m.heads}, {m.kv_heads}, {m.head_dim}"],
    ["vocabulary", f"{m.vocab_size:,}"],
    ["tokens of a segment", f"{m.segment_length:,}"],
    ["parameters are stored as", m.run.param_dtype],
    ["heads with a gate above 0.5", _opened(run)],
  ]
  return table(["", ""], [row for row in rows if row[1]])


def _opened(run: RunFiles) -> str:
  if (found := run.gates) is None:
    return ""
  return f"{found['opened_heads']} of {sum(map(len, found['gates_LH']))}"


def _training(run: RunFiles) -> str:
  c, last = run.config, run.last
  if last is None:
    return "Nothing was trained in this run: it was converted."
  step, loss = last
  rows = [
    ["task", c.task.name],
    ["data", c.data.path and short_name(c.data.path)],
    ["started from", c.train.start_from and short_name(c.train.start_from)],
    ["trained parameters", c.train.part],
    ["optimizer, learning rate", f"{c.optimizer.name}, {c.optimizer.learning_rate:g}"],
    ["steps", f"{step:,}"],
    ["tokens read", f"{tokens_read(c, step):,.0f}"],
    ["training loss, last logged", f"{loss:.4f}"],
    ["seed", str(c.train.seed)],
  ]
  return table(["", ""], [row for row in rows if row[1]])


def _measured(run: RunFiles) -> list[str]:
  parts = []
  for name, title in run.names.items():
    results = run.evaluations[name]
    if "memory" not in results:
      continue  # of the gates alone
    try:
      title = literal(portable(title))
      parts += [f"### {title[0].upper()}{title[1:]}", *_evaluation(results, str(run.path))]
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
      file = run.path / "evaluation" / name / "results.json"
      why = " ".join(f"{type(error).__name__} {error}".split())
      raise InputError(f"{file}: cannot be shown ({why}); evaluate the task again") from None
  return parts or ["Nothing was evaluated: `python eval.py --workdir=RUN` does it."]


def _evaluation(results: dict[str, Any], path: str) -> list[str]:
  """What was asked, the figures, and the command, with RUN instead of the run's path."""
  found, about = results["environment"], Evaluated.of(results).description
  machine = " ".join(str(found[key]) for key in ("devices", "device") if key in found)
  when = f"Step {results['step']:,}, {results['date'][:10]}" + f", on {machine}" * bool(machine)
  parts = [f"{when}." + f" Protocol: {literal(portable(about))}." * bool(about), _table_of(results)]
  if command := results.get("command"):
    parts.append("    " + portable(command.replace(path, "RUN")))
  return parts


def _table_of(results: dict[str, Any]) -> str:
  """The figures of an evaluation, with the memory and in every ablation."""
  found, memory = variants(results), results["memory"]
  if "cells" in memory:
    measure = measure_of(results)
    share = lambda one, i: f"{measure.share(recall_of(one['cells'][i])):.3f}"
    rows = [
      [f"{cell['length']:,}", f"{cell['depth']:g}", f"{cell['samples']:,}"]
      + [share(one, i) if i < len(one["cells"]) else "" for one in found.values()]
      for i, cell in enumerate(memory["cells"])
    ]
    return table(["tokens", "depth", "examples", *found], rows)
  if "grid" in memory:
    parts = [f"{memory['samples']:,} samples, {memory['tokens']:,} tokens; scores of 100."]
    for name, one in found.items():
      header, *rows = rows_of(grid_of(one))
      parts += [f"{name[0].upper()}{name[1:]}:", table(header, rows)]
    return "\n\n".join(parts)
  names = [name for name, _ in scalars(memory) if name not in COSTS]
  text = lambda one, name: _figure(name, one[name]) if name in one else ""
  rows = [[plain(name), *(text(one, name) for one in found.values())] for name in names]
  counts = [name for name in ("documents", "tokens", "bytes") if name in memory]
  rows += [[f"{name} read", f"{memory[name]:,}"] + [""] * (len(found) - 1) for name in counts]
  return table(["", *found], rows)


def _figure(name: str, value: float) -> str:
  return number(value, 3) if "perplexity" in name else short(value)
