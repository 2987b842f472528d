"""The table of the scores of answers in conversations, and a file of the answers."""

from pathlib import Path
from typing import Any

from rich.console import Console

from infini_jax.config import Config
from infini_jax.evaluation.answers import Answered
from infini_jax.evaluation.answers_tables import show_answers, write_predictions


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
  show_answers(found, title, console)


def verdict(found: dict[str, Answered], console: Console) -> None:
  """Prints a line if the answers are as likely without the memory."""
  if "empty" not in found:
    return
  memory, empty = (found[name].figures["log_likelihood"][0] for name in ("memory", "empty"))
  if memory <= empty:
    console.print(
      "The memory does not help: from the last segment alone the answers are as "
      "likely. docs/memory.md says how to find out why."
    )
