"""Finds broken links in the pages of the repository and in the pages of the API reference.

    python docs/links.py

A page may link to files and to headings, and may name files of the repository in code. Each of them
must exist. A link is relative to the page. A name is relative to the page, the top folder,
infini_jax/, configs/ or benchmarks/. A word in capitals means any name. Links to other sites
are not checked.
"""

import re
import sys
from fnmatch import fnmatch
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parent.parent
PAGES = ("*.md", "docs/*.md", "launch/*.md")
FOLDERS = (".", "infini_jax", "configs", "benchmarks")  # the folders that names are relative to
EXAMPLES = {"adapted.py", "mine/small.py"}  # files of a user, which do not exist here

BLOCK = re.compile(r"^```(?s:.*?)^```$|(?<=\n\n)(?: {4}.*\n|\n)+", re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)[^)]*\)|^\[[^\]]+\]: (\S+)", re.MULTILINE)
HEADING = re.compile(r"^#+ +(.+?) *#*$", re.MULTILINE)
NAME = re.compile(r"(?<![\w./<*-])[\w.-]+(?:/[\w.*-]+)*\.(?:py|md|toml|lock|sh|yaml|sbatch)\b")
INSIDE = re.compile(
  r"(?<![\w./-])(?:docs|tests|configs|benchmarks|launch|locks|infini_jax)/[\w./-]*"
)
MAKE = re.compile(r"^make ([\w-]+)")


def blanked(text: str, pattern: re.Pattern) -> str:
  """A text with every match of a pattern replaced by blanks; other characters keep their places."""
  return pattern.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)


@cache
def anchors(page: Path) -> set[str]:
  """The anchors of a page's headings, as sites that show Markdown make them."""
  found: set[str] = set()
  for title in HEADING.findall(blanked(page.read_text(), BLOCK)):
    shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
    slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
    names = (slug, *(f"{slug}-{i}" for i in range(1, len(found) + 1)))
    found.add(next(name for name in names if name not in found))
  return found


@cache
def targets() -> list[str]:
  """The targets of the Makefile; % means any name."""
  return re.findall(r"^([\w%-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def wrong_link(page: Path, link: str) -> str:
  """What is wrong with a link of a page; empty if nothing is."""
  there = urlsplit(link)
  if there.scheme or there.netloc:
    return ""
  file = page.parent / unquote(there.path) if there.path else page
  if not file.exists():
    return f"{link}: no such file"
  if there.fragment and (file.suffix != ".md" or there.fragment not in anchors(file)):
    return f"{link}: no such heading"
  return ""


def wrong_name(page: Path, name: str) -> str:
  """What is wrong with a file's name in code; empty if nothing is."""
  pattern = re.sub(r"(?<![A-Za-z])[A-Z]{2,}(?![A-Za-z])", "*", name)
  for folder in (page.parent, *(ROOT / folder for folder in FOLDERS)):
    if (folder / name).exists() or (pattern != name and any(folder.glob(pattern))):
      return ""
  return "" if name in EXAMPLES else f"{name}: no such file"


def broken(page: Path) -> list[str]:
  """The broken links and names of a page, each with its line number."""
  text = page.read_text()
  wrong = []

  def note(offset: int, what: str) -> None:
    if what:
      wrong.append(f"{page}:{text.count(chr(10), 0, offset) + 1}: {what}")

  prose = blanked(text, BLOCK)
  code_parts = [*BLOCK.finditer(text), *SPAN.finditer(prose)]
  for m in LINK.finditer(blanked(prose, SPAN)):
    note(m.start(), wrong_link(page, m[1] or m[2]))
  for start, code in ((m.start(), m[0]) for m in code_parts):
    found = {m.start(): m[0] for p in (INSIDE, NAME) for m in p.finditer(code)}
    for offset, name in found.items():
      note(start + offset, wrong_name(page, name))
    if (asked := MAKE.match(code.strip("`"))) and not any(
      fnmatch(asked[1], target.replace("%", "*")) for target in targets()
    ):
      note(start, f"make {asked[1]}: no such target")
  return sorted(wrong)


class Page(HTMLParser):
  """The links and the anchors of an HTML page."""

  def __init__(self, file: Path):
    super().__init__()
    self.links: list[str] = []
    self.anchors: set[str] = set()
    self.feed(file.read_text())

  def handle_starttag(self, tag, attrs):
    """Stores the link and the id of a tag."""
    given = dict(attrs)
    if tag == "a" and given.get("href"):
      self.links.append(given["href"])
    if given.get("id"):
      self.anchors.add(given["id"])


def broken_pages(folder: Path) -> list[str]:
  """The broken links of the HTML pages below a folder."""
  pages = {file.resolve(): Page(file) for file in folder.rglob("*.html")}
  wrong = set()
  for file, page in pages.items():
    for link in page.links:
      there = urlsplit(link)
      if there.scheme or there.netloc:
        continue
      target = (file.parent / unquote(there.path)).resolve() if there.path else file
      if target not in pages:
        wrong.add(f"{file}: {link}: no such page")
      elif there.fragment and unquote(there.fragment) not in pages[target].anchors:
        wrong.add(f"{file}: {link}: no such anchor")
  return sorted(wrong)


def main() -> int:
  """Prints every broken link; returns 1 if there is one, else 0."""
  wrong = [
    line for pattern in PAGES for page in sorted(ROOT.glob(pattern)) for line in broken(page)
  ]
  print(*wrong, sep="\n", end="\n" if wrong else "")
  return int(bool(wrong))


if __name__ == "__main__":
  sys.exit(main())
