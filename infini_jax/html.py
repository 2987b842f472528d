"""Elements of a self-contained HTML page: frame, style, tables, pictures. All text is escaped.

The page needs no network and no script. It follows the reader's light or dark setting. A table that
is too wide scrolls in its own box.
"""

import base64
import html
import urllib.parse
from collections.abc import Collection, Sequence
from typing import NamedTuple

BEGINS = rb"<!DOCTYPE html>"  # a pattern for the first bytes of a page
PNG = b"\x89PNG\r\n\x1a\n"  # the first bytes of a PNG file

LONG, LONG_NOTE = 32, 16  # a cell or a line of a note with more characters may take several lines

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1b1f24; --soft: #57606a; --line: #d5dbe1; --band: #f4f6f8;
  --mark: #fff1b8; --link: #0a58a8;
  --c1: #0a6fb0; --c2: #d0540a; --c3: #0f8f6a; --c4: #b4568f;
  --c5: #b07a00; --c6: #2f93c4; --c7: #6b4fa0; --c8: #6b7480;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --ink: #e3e7eb; --soft: #9aa5b1; --line: #343b43; --band: #1d2227;
    --mark: #4a3f12; --link: #7db7f0;
    --c1: #4aa3df; --c2: #f08040; --c3: #35c49a; --c4: #de8fc0;
    --c5: #e6b53c; --c6: #8fd0f0; --c7: #b39ae6; --c8: #a7b0ba;
  }
  img { filter: brightness(0.88); }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 62rem; margin: 0 auto; padding: clamp(1rem, 3vw, 2.5rem); }
main.wide { max-width: 100rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 0.25rem; }
h2 { font-size: 1.3rem; margin: 2.75rem 0 0.75rem; padding-top: 0.75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.1rem; margin: 1.75rem 0 0.5rem; }
h4 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
h1, h2, h3, h4, p, td, th, figcaption, li { overflow-wrap: break-word; }
a { color: var(--link); }
p { margin: 0 0 0.75rem; max-width: 46rem; }
.soft, small, figcaption { color: var(--soft); }
nav ul { list-style: none; margin: 1rem 0 0; padding: 0; display: flex; flex-wrap: wrap;
  gap: 0.25rem 1.25rem; }
.columns { display: grid; gap: 0 2rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
.columns > section { min-width: 0; }
.columns table { font-size: 0.82rem; min-width: 0; }
.columns :is(th, td) { padding: 0.3rem 0.4rem; }
.columns th:first-child { min-width: 4.5rem; width: auto; }
.columns caption span { max-width: min(24rem, calc(100vw - 2.5rem)); }
.legend { list-style: none; margin: 0.5rem 0 1rem; padding: 0; display: flex; flex-wrap: wrap;
  gap: 0.25rem 1.25rem; }
.legend li { min-width: 0; overflow-wrap: anywhere; }
.swatch { width: 1.6rem; height: 0.5rem; margin-right: 0.4rem; vertical-align: middle; }
.box { overflow-x: auto; margin: 0.75rem 0 1.25rem; max-width: 100%; }
.box:focus-visible, summary:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 0; min-width: min(100%, 22rem);
  font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: 0 0 0.4rem; font-size: 0.9rem; }
caption span { display: inline-block; position: sticky; left: 0; max-width: calc(100vw - 2.5rem); }
th, td { padding: 0.3rem 0.75rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--line); }
tbody th { font-weight: 400; }
th:first-child { text-align: left; padding-left: 0.4rem; min-width: 6.5rem; max-width: 16rem;
  position: sticky; left: 0; background: var(--paper); }
tbody tr:hover > * { background: var(--band); }
tbody tr.marked > * { background: var(--mark); }
th:first-child { width: clamp(6.5rem, 20vw, 15rem); min-width: clamp(6.5rem, 11vw, 11rem); }
tbody tr.group th { font-weight: 600; padding-top: 1rem; max-width: none; width: auto; }
tr.group span { display: inline-block; position: sticky; left: 0.4rem;
  max-width: calc(100vw - 2.5rem); }
td { white-space: nowrap; }
td small.long { min-width: 7rem; max-width: 15rem; margin-left: auto; white-space: normal; }
td.long { white-space: normal; min-width: 14rem; max-width: 26rem; overflow-wrap: anywhere; }
.words td, .words th { text-align: left; }
td small { display: block; font-size: 0.8rem; }
h3 small, h4 small { font-weight: 400; }
figure { margin: 0.75rem 0 1.5rem; }
figure > svg { display: block; width: 100%; max-width: 34rem; height: auto; }
svg text { font-family: inherit; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { font-size: 0.9rem; margin-bottom: 0.35rem; }
details { margin: 0.5rem 0 1rem; }
summary { cursor: pointer; color: var(--link); }
pre { font: 0.85rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  background: var(--band); border: 1px solid var(--line); border-radius: 4px;
  padding: 0.6rem 0.8rem; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0.5rem 0; }
@media print {
  body { font-size: 10.5pt; }
  main, main.wide { max-width: none; padding: 0; }
  nav, details:not([open]) { display: none; }
  .columns { display: block; }
  .box { overflow: visible; }
  figure, tr, pre { break-inside: avoid; }
  h2, h3, h4 { break-after: avoid; }
  th:first-child { position: static; }
}
"""


class Cell(NamedTuple):
  """A figure, lines of a note below it in small letters, and what the pointer shows over it."""

  figure: str
  note: str = ""
  exact: str = ""


def escape(text: object) -> str:
  """Text as HTML."""
  return html.escape(str(text))


def table(
  caption: str,
  header: Sequence[str],
  rows: Sequence[Sequence[str | Cell]],
  *,
  words: bool = False,
  marked: Collection[str] = (),
) -> str:
  """A table in its own box. The first column has the names of the rows.

  Args:
    caption: what the table shows.
    header: the names of the columns.
    rows: rows with as many cells as the header; an empty cell stays blank. A row of one cell is a
      heading of the rows below it.
    words: whether the cells are words, aligned left; else they are figures, aligned right.
    marked: the names of highlighted rows.
  """
  head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
  body = []
  for name, *cells in rows:
    if not cells:
      wide = f'<th scope="row" colspan="{len(header)}"><span>{escape(name)}</span></th>'
      body.append(f'<tr class="group">{wide}</tr>')
      continue
    row = "".join(_td(cell) for cell in cells)
    mark = ' class="marked"' if name in marked else ""
    body.append(f'<tr{mark}><th scope="row">{escape(name)}</th>{row}</tr>')
  kind = ' class="words"' if words else ""
  return (
    f'<div class="box" role="region" aria-label="{escape(caption)}" tabindex="0">'
    f"<table{kind}><caption><span>{escape(caption)}</span></caption>"
    f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
  )


def picture(svg: str, alt: str, caption: str = "") -> str:
  """A picture inside the page.

  Args:
    svg: the `svg` element.
    alt: what it shows, for readers who cannot see it.
    caption: a line above it.
  """
  above = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
  named = svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)
  return f"<figure>{above}{named}</figure>"


def image(png: bytes, alt: str, caption: str = "") -> str:
  """A PNG picture inside the page; empty if the bytes are not a PNG file."""
  if not png.startswith(PNG):
    return ""
  picture = f"data:image/png;base64,{base64.b64encode(png).decode()}"
  above = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
  return f'<figure>{above}<img src="{picture}" alt="{escape(alt)}"></figure>'


def columns(parts: Sequence[str]) -> str:
  """Elements side by side, as many as the page has room for; a single one has its usual width."""
  if len(parts) < 2:
    return "".join(parts)
  each = "".join(f"<section>{part}</section>" for part in parts)
  return f'<div class="columns">{each}</div>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
  """A legend of several pictures: for each entry a swatch (an `svg` element) and a name."""
  each = "".join(f"<li>{swatch}{escape(name)}</li>" for swatch, name in entries)
  return f'<ul class="legend">{each}</ul>'


def heading(level: int, text: str, note: str = "") -> str:
  """A heading, with a note after it in small letters."""
  small = f" <small>{escape(note)}</small>" if note else ""
  return f"<h{level}>{escape(text)}{small}</h{level}>"


def paragraph(text: str) -> str:
  """A paragraph."""
  return f"<p>{escape(text)}</p>"


def link(path: str, text: str) -> str:
  """A paragraph with a link to another page. The path is relative to this page."""
  return f'<p><a href="{escape(urllib.parse.quote(path))}">{escape(text)}</a></p>'


def folded(summary: str, content: str) -> str:
  """Content that is hidden until the reader opens it."""
  return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def code(text: str) -> str:
  """A text in a fixed-width font, such as a command."""
  return f"<pre>{escape(text)}</pre>"


def document(title: str, below: str, sections: Sequence[tuple[str, str]], wide: bool) -> str:
  """The whole page.

  Args:
    title: the title of the page.
    below: a line under the title.
    sections: the name of each section (for its heading and the list of contents), and its HTML.
    wide: whether the page has columns.
  """
  links, bodies = "", ""
  for number, (name, content) in enumerate(sections, 1):
    links += f'<li><a href="#s{number}">{escape(name)}</a></li>'
    bodies += f'<section id="s{number}">{heading(2, name)}{content}</section>\n'
  kind = ' class="wide"' if wide else ""
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main{kind}>
<header><h1>{escape(title)}</h1><p class="soft">{escape(below)}</p></header>
<nav aria-label="Contents"><ul>{links}</ul></nav>
{bodies}</main>
</body>
</html>
"""


def _td(cell: str | Cell) -> str:
  figure, note, exact = cell if isinstance(cell, Cell) else Cell(cell)
  kinds = (' class="long"' * (len(line) > LONG_NOTE) for line in note.splitlines())
  below = "".join(
    f"<small{kind}>{escape(line)}</small>"
    for kind, line in zip(kinds, note.splitlines(), strict=True)
  )
  kind = ' class="long"' if len(figure) > LONG else ""
  title = f' title="{escape(exact)}"' if exact else ""
  return f"<td{kind}{title}>{escape(figure)}{below}</td>"
