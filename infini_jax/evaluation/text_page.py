"""`text.html`: passages of the text; the colour of a word shows what the memory saved or cost."""

import math
from pathlib import Path
from typing import Any

from infini_jax.evaluation.passages import (
  Losses,
  Passage,
  Word,
  passages,
  shares_seen,
  words,
)
from infini_jax.files import write_text
from infini_jax.html import document, escape, paragraph, table

# Red, green, blue: two colours that the colour-blind can tell apart, on a light and a dark page.
SAVED, LOST = "0, 114, 206", "224, 123, 0"
FULL = 4.0  # nats of the strongest colour
LISTED = 8  # the most words of a passage that are listed with their earlier positions
NAMED = 0.5  # the least nats that such a word has saved


def write(memory: Losses, empty: Losses, results: dict[str, Any], file: Path) -> None:
  """Writes the page.

  Args:
    memory: the loss of every token with the memory.
    empty: the loss of every token with the memory held empty.
    results: the content of `results.json`.
    file: the path of the page.
  """
  N = results["segment_length"]
  helped, harmed = passages(memory, empty)
  sections = [("What is shown", _legend(memory, empty, N))]
  for title, some in (("Most helped", helped), ("Most harmed", harmed)):
    if some:
      sections.append((title, "".join(_passage(p, memory, empty, N) for p in some)))
  below = f"{results['corpus']['name']}, {results['split']}; step {results['step']:,}"
  write_text(file, document("What the memory saved, word by word", below, sections, False))


def _legend(memory: Losses, empty: Losses, segment_length: int) -> str:
  nats = [empty.nats[d].sum() - memory.nats[d].sum() for d in memory.nats]
  tokens = sum(map(len, memory.nats.values()))
  samples = "".join(_colored(f" {x:+g} ", x, f"{x:+g} nats saved") for x in (4, 2, 1, -1, -2, -4))
  text = (
    f"The colour of a word is its loss with the memory held empty, minus its loss with the memory: "
    f"blue is saved, orange is lost. Segments have {segment_length:,} tokens; what is in the "
    f"same segment is seen without the memory. Over {tokens:,} tokens the memory saved "
    f"{sum(nats) / max(1, tokens):.4f} nats each."
  )
  of_helped, of_all = shares_seen(memory, empty, segment_length)
  seen = (
    f"Of the tokens with more than 1 nat saved, {of_helped:.0%} are also in an earlier segment of "
    f"the document; of all tokens after a first segment, {of_all:.0%} are."
  )
  known = paragraph(seen) if math.isfinite(of_helped) else ""
  return f"{paragraph(text)}{known}<p>Nats saved: {samples}</p>"


def _passage(passage: Passage, memory: Losses, empty: Losses, segment_length: int) -> str:
  found = words(passage, memory, empty, segment_length)
  name = memory.names[passage.document]
  title = f"{name}, tokens {passage.start:,} to {passage.stop:,}: {passage.saved:+.1f} nats saved"
  text = "".join(_colored(word.text, word.saved, _said(word)) for word in found)
  best = sorted((w for w in found if w.saved >= NAMED), key=lambda w: -w.saved)[:LISTED]
  rows = [
    [
      word.text.strip(),
      f"{word.empty:.2f}",
      f"{word.memory:.2f}",
      f"{word.before:,}",
      f"{word.distance:,}" if word.before else "",
    ]
    for word in best
    if word.text.strip()
  ]
  header = ["word", "nats, empty", "nats, memory", "times before", "tokens since the last"]
  listed = table("words that were helped, and where they are in earlier segments", header, rows)
  shown = f'<p style="white-space: pre-wrap; line-height: 1.9">{text}</p>'
  return f"<h3>{escape(title)}</h3>{shown}{listed if rows else ''}"


def _said(word: Word) -> str:
  places = f"{word.before:,} times before, last {word.distance:,} tokens ago"
  return (
    f"{word.empty:.2f} nats empty, {word.memory:.2f} with the memory; "
    f"{places if word.before else 'in no earlier segment'}"
  )


def _colored(text: str, saved: float, title: str) -> str:
  strength = min(abs(saved) / FULL, 1) * 0.65
  color = SAVED if saved > 0 else LOST
  style = f"background: rgba({color}, {strength:.2f}); border-radius: 3px"
  return f'<span style="{style}" title="{escape(title)}">{escape(text)}</span>'
