"""Draws the two pictures of README.md: `make pictures`.

    python docs/pictures.py [FOLDER]

`memory.svg` is a sketch of segments, local attention, memory and gates. `recall.svg` shows the
recalled share of keys by length. Its figures are read from the tables of docs/results.md. Both
follow the light or dark setting of the reader. The default folder is docs/.
"""

import re
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
STYLE = """
svg{--paper:#fff;--ink:#1b1f24;--soft:#57606a;--line:#8b98a5;--box:#f4f6f8;--one:#0a6fb0;
--two:#d0540a;--tint:#dcebf7}
@media (prefers-color-scheme:dark){svg{--paper:#14171a;--ink:#e3e7eb;--soft:#9aa5b1;--line:#6b7480;
--box:#1d2227;--one:#4aa3df;--two:#f08040;--tint:#173247}}
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink)}
.small{font-size:12px;fill:var(--soft)}.head{font-weight:600}
.mid{text-anchor:middle}.end{text-anchor:end}.one{fill:var(--one)}.two{fill:var(--two)}
rect{fill:var(--box);stroke:var(--line)}.paper{fill:var(--paper);stroke:none}
.memory{fill:var(--tint);stroke:var(--one);stroke-width:1.5}
.flow{fill:none;stroke:var(--line);stroke-width:1.5}
.read{fill:none;stroke:var(--one);stroke-width:2}.write{fill:none;stroke:var(--two);stroke-width:2}
.bare{fill:none;stroke:var(--line)}.cell{stroke:none}
"""
# The rows of recall.svg: a name, a heading of docs/results.md, the beginning of the row there (the
# cells of its first columns), and the column with the figures if the lengths are in rows.
ROWS = (
  ("0.1M parameters, linear, seed 0", "## The pass key", "linear | 0", None),
  ("the same, linear + delta, seed 0", "## The pass key", "delta | 0", None),
  ("the same, linear, seed 1", "## The pass key", "linear | 1", None),
  ("the same, linear + delta, seed 1", "## The pass key", "delta | 1", None),
  ("the same, linear, seed 2", "## The pass key", "linear | 2", None),
  ("the same, linear + delta, seed 2", "## The pass key", "delta | 2", None),
  ("SmolLM2-135M with an adapter", "### Keys in a very long text", "", "with the memory"),
  ("the same, memory held empty", "### Keys in a very long text", "", "memory held empty"),
  (
    "the paper's 1B, fine-tuned, published",
    "## An adapted model",
    "the paper's 1B, linear + delta, 400 steps on 5K",
    None,
  ),
  (
    "the paper's 1B, zero-shot, published",
    "## An adapted model",
    "the paper's 1B, linear + delta, zero-shot",
    None,
  ),
)
UNITS = {"K": 1024, "M": 1024**2}
# Blue to yellow with rising brightness, so that also the colour-blind can read it.
LOW, HIGH = (0, 34, 78), (254, 232, 56)


def table(page: str, heading: str, first: str) -> tuple[list[str], list[list[str]]]:
  """The header and the rows of the first table below a heading that has a row with this beginning.

  Raises:
    ValueError: there is none.
  """
  section = page.partition(f"\n{heading}\n")[2]
  for block in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
    if first in block:
      lines = (line.strip("|\n").split("|") for line in block.splitlines())
      rows = [[cell.strip() for cell in line] for line in lines]
      return rows[0], rows[2:]
  raise ValueError(f"docs/results.md: no table below {heading!r} has {first!r}")


def recalled(page: str) -> dict[str, dict[int, float]]:
  """For each row of the picture and length: the least recall of start, middle and end."""
  made = {}
  for name, heading, first, column in ROWS:
    header, rows = table(page, heading, first or str(column))
    if column:
      cells = {row[0]: row[header.index(column)] for row in rows}
    else:
      names = first.split(" | ")
      row = next(row for row in rows if row[: len(names)] == names)
      cells = dict(zip(header[len(names) :], row[len(names) :], strict=True))
    made[name] = {_length(n): _least(cell) for n, cell in cells.items() if cell}
  return made


def _length(text: str) -> int:
  number = text.replace(",", "")
  return int(number[:-1]) * UNITS[number[-1]] if number[-1] in UNITS else int(number)


def _least(cell: str) -> float:
  return min(float(part) for part in cell.split("/")) / (1 if "." in cell else 100)


def recall_svg(found: dict[str, dict[int, float]]) -> str:
  """The picture of recall by length: a row for each model, a column for each length."""
  lengths = sorted({length for row in found.values() for length in row})
  left, top, wide, high = 262, 66, 72, 32
  width, height = left + wide * len(lengths) + 12, top + high * len(found) + 58
  parts = [
    _text(14, 24, "Share of keys recalled, by tokens of the text", "head"),
    _text(14, 54, "key at the start, in the middle, at the end", "small"),
  ]
  for i, length in enumerate(lengths):
    parts.append(_text(left + i * wide + wide / 2, 54, _short(length), "small mid"))
  for k, (name, row) in enumerate(found.items()):
    y = top + k * high
    parts.append(_text(14, y + 20, name))
    for i, length in enumerate(lengths):
      x = left + i * wide
      if length not in row:
        parts.append(_text(x + wide / 2, y + 20, "\u00b7", "small mid"))
        continue
      share = row[length]
      red, green, blue = (round(a + (b - a) * share) for a, b in zip(LOW, HIGH, strict=True))
      ink = "#000" if share > 0.5 else "#fff"
      parts.append(
        f'<rect class="cell" x="{x + 1}" y="{y + 1}" width="{wide - 2}" height="{high - 2}" rx="3" '
        f'style="fill:rgb({red},{green},{blue})"/>'
      )
      parts.append(
        f'<text class="mid" x="{x + wide / 2:g}" y="{y + 20}" style="fill:{ink}">{share:.2f}</text>'
      )
  for i, below in enumerate(
    (
      "The worst of the three depths, whole keys (the paper: tokens). A dot was not measured.",
      "The tables of docs/results.md have the number of keys of each cell (100 to 1) and commands.",
    )
  ):
    parts.append(_text(14, height - 32 + 18 * i, below, "small"))
  return _svg(width, height, "Share of keys recalled, by length of the text", parts)


def memory_svg() -> str:
  """The sketch of three segments and the memory that is carried between them."""
  parts = []
  step, first = 270, 150
  for s in range(4):  # memories, each between two segments
    x = first - 40 + s * step
    name = "empty" if s == 0 else f"M, z after {s}"
    parts.append(f'<rect class="memory" x="{x - 44}" y="300" width="88" height="40" rx="8"/>')
    parts.append(_text(x, 325, name, "mid"))
    if s < 3:
      parts.append(_arrow("flow", f"M{x + 44} 320 H{x + step - 50}"))
      parts.append(_text(x + step / 2, 338, "carried on", "small mid"))
      parts.append(_arrow("read", f"M{x + 22} 300 V94 H{x + 72}"))
      parts.append(_text(x + 26, 86, "read", "small one"))
  for s in range(3):
    x = first + s * step
    mid = x + 95
    parts.append(_text(mid, 32, "output", "mid"))
    parts.append(_arrow("flow", f"M{mid} 78 V46"))
    parts.append(f'<rect x="{x + 38}" y="78" width="114" height="32" rx="16"/>')
    parts.append(_text(mid, 99, "gate", "mid"))
    parts.append(_arrow("flow", f"M{mid} 140 V118"))
    parts.append(f'<rect x="{x}" y="140" width="190" height="66" rx="6"/>')
    parts.append(_text(x + 12, 169, "local attention"))
    parts.append(_text(x + 12, 189, "in the segment", "small"))
    stairs = "".join(f"h8 V{190 - 8 * i} " for i in range(6))
    parts.append(f'<path class="bare" d="M{x + 128} 198 {stairs}V198 z"/>')
    parts.append(_arrow("flow", f"M{mid} 232 V214"))
    for i in range(8):
      parts.append(f'<rect x="{x + 3 + i * 23}" y="232" width="20" height="20" rx="3"/>')
    parts.append(_text(mid, 272, f"segment {s + 1}: N tokens", "small mid"))
    parts.append(_arrow("write", f"M{x + 190} 242 H{x + 210} V292"))
    parts.append(_text(x + 216, 262, "write", "small two"))
  for i, line in enumerate(
    (
      "The memory (M, z) of a head has one size, whatever was read. A segment reads, then writes.",
      "A learned gate of each head mixes what is read from the memory with local attention.",
    )
  ):
    parts.append(_text(24, 376 + 20 * i, line, "small"))
  return _svg(1020, 412, "Segments, local attention, memory and gates of Infini-attention", parts)


def _short(length: int) -> str:
  return f"{length // 1024**2}M" if length >= 1024**2 else f"{length // 1024}K"


def _text(x: float, y: float, text: str, kind: str = "") -> str:
  named = f' class="{kind}"' if kind else ""
  return f'<text x="{x:g}" y="{y:g}"{named}>{escape(text)}</text>'


def _arrow(kind: str, path: str) -> str:
  return f'<path class="{kind}" d="{path}" marker-end="url(#{kind})"/>'


def _svg(width: int, height: int, title: str, parts: list[str]) -> str:
  colors = {"flow": "line", "read": "one", "write": "two"}
  markers = "".join(
    f'<marker id="{kind}" viewBox="0 0 8 8" markerWidth="9" markerHeight="9" refX="5" refY="4" '
    f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" '
    f'style="fill:var(--{color})"/></marker>'
    for kind, color in colors.items()
  )
  head = (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
    f'height="{height}" role="img"><title>{escape(title)}</title><style>{STYLE}</style>'
  )
  ground = f'<rect class="paper" width="{width}" height="{height}" rx="8"/>'
  return "\n".join([head, f"<defs>{markers}</defs>", ground, *parts, "</svg>"]) + "\n"


def pictures() -> dict[str, str]:
  """The pictures by the names of their files."""
  page = (ROOT / "docs" / "results.md").read_text("utf-8")
  return {"memory.svg": memory_svg(), "recall.svg": recall_svg(recalled(page))}


def main() -> int:
  """Writes the pictures; returns an exit status."""
  folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"
  for name, svg in pictures().items():
    (folder / name).write_text(svg, "utf-8")
    print(folder / name)
  return 0


if __name__ == "__main__":
  sys.exit(main())
