"""Tables and the picture of perplexity, and what an ablation shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.columns import Columns
from rich.console import Console
from rich.table import Table

from infini_jax.config import Config
from infini_jax.evaluation import text_page
from infini_jax.evaluation.knock_out import label_of
from infini_jax.evaluation.perplexity import Scores, change, exp
from infini_jax.evaluation.reading import documents_read

if TYPE_CHECKING:
  from infini_jax.plots import Figure

NOTICEABLE = 1.001  # below this factor of perplexity, an ablation shows no use of the memory


def draw(scores: dict[str, Scores], results: dict[str, Any], folder: Path) -> dict[str, Path]:
  """Draws perplexity by position in the document, and writes the savings of words to text.html."""
  from infini_jax import plots

  profiles = {label_of(name): score.by_position for name, score in scores.items()}
  plots.png(by_position(profiles), folder / "positions.png")
  files = {"positions": folder / "positions.png"}
  memory, empty = (scores[name].losses if name in scores else None for name in ("memory", "empty"))
  if memory and empty and not scores["memory"].single:
    files["text"] = folder / "text.html"
    text_page.write(memory, empty, results, files["text"])
  return files


def by_position(
  profiles: Mapping[str, Mapping[Any, Sequence[float]]], styles: Sequence[int] = ()
) -> "Figure":
  """The chart of perplexity by position in the document.

  Args:
    profiles: by the name of a line, the tokens and nats of each bucket, by its first token.
    styles: of the lines; none: 0, 1, 2 ...
  """
  from infini_jax import plots

  starts = sorted({int(start) for profile in profiles.values() for start in profile})
  lines = []
  for i, (name, profile) in enumerate(profiles.items()):
    found = {int(start): _perplexity(*bucket) for start, bucket in profile.items()}
    places = [starts.index(start) for start in found]
    lines.append(plots.Line(name, places, list(found.values()), styles[i] if styles else i))
  x, y = "position in the document, from this token on", "perplexity per token"
  return plots.line_chart(lines, x, y, ticks=[f"{start:,}" for start in starts], legend=not styles)


def show(
  scores: dict[str, Scores], results: dict[str, Any], config: Config, console: Console
) -> None:
  """Prints perplexity, also by position and by memory updates, with the memory and in ablations."""
  by_position = _profile(scores, "by_position", "by position, tokens")
  by_updates = _profile(scores, "by_compressions", "by memory updates before")
  console.print(Columns([by_position, by_updates]))
  memory, e = scores["memory"], config.evaluation
  read = documents_read(memory.documents, memory.cut, e.max_tokens)
  inputs = f", the memory emptied every {e.input_tokens:,} tokens" if e.input_tokens else ""
  table = Table(title=f"{e.split}: {read}{inputs}, step {results['step']}")
  table.add_column("figure")
  table.add_column("value", justify="right", overflow="fold")
  table.add_row("perplexity per token", f"{memory.perplexity:.3f}")
  if memory.interval:
    table.add_row("  95% over documents", "{:.3f} to {:.3f}".format(*memory.interval))
  table.add_row("bits per byte", f"{memory.bits_per_byte:.4f}")
  table.add_row("perplexity per word", f"{memory.word_perplexity:.4g}")
  for name, out in scores.items():
    if name != "memory":
      more = change(out.perplexity, memory.perplexity)
      table.add_row(
        f"  {label_of(name)}: per token", f"{out.perplexity:.3f}" + (f" ({more})" if more else "")
      )
      table.add_row(f"  {label_of(name)}: bits per byte", f"{out.bits_per_byte:.4f}")
  for store in memory.by_source:
    own, *less = (f"{_perplexity(*score.by_source[store][1:]):.3f}" for score in scores.values())
    knocked_out = f" (ablations: {', '.join(less)})" if less else ""
    table.add_row(f"  {store}: per token", own + knocked_out)
  table.add_row("tokens, bytes", f"{memory.tokens:,}, {memory.bytes:,}")
  console.print(table)


def verdict(scores: dict[str, Scores], console: Console) -> None:
  """Prints a line if the memory does not help, or if it was never read."""
  if "empty" not in scores:
    return
  memory, empty = scores["memory"].perplexity, scores["empty"].perplexity
  if scores["memory"].single:
    console.print(
      "No segment was read after another, so the figures do not show the memory: "
      "evaluate longer documents, or raise config.evaluation.input_tokens or max_tokens."
    )
  elif (more := change(empty, memory)) and empty / memory < NOTICEABLE:
    console.print(
      f"The memory does not help: without it the perplexity is {more}. "
      f"Train longer, raise config.optimizer.gate_learning_rate, or use shorter segments and more "
      f"of them; docs/memory.md says how to find out why."
    )


def _profile(scores: dict[str, Scores], field: str, title: str) -> Table:
  """A table of perplexity in buckets that double, with the memory and in ablations."""
  table = Table(title=title)
  for name in ("from", "tokens", *scores):
    table.add_column(name, justify="right")
  for start, (tokens, _) in getattr(scores["memory"], field).items():
    values = [f"{_perplexity(*getattr(s, field)[start]):#.4g}" for s in scores.values()]
    table.add_row(f"{start:,}", f"{tokens:,}", *values)
  return table


def _perplexity(tokens: float, nats: float) -> float:
  return exp(nats / tokens)
