"""Every link, heading and file that a page names exists; contents of the API reference."""

import ast
import re
import subprocess
import sys

import links
import paths
import pictures
import pytest
import reference

PAGES = [page for pattern in links.PAGES for page in sorted(links.ROOT.glob(pattern))]

PAGE = """# A page

## One & two: `three`

## Again
## Again

[top](#a-page), [here](#one--two-three), [second](#again-1), [other](docs/b.md#there),
[folder](docs), [far](https://example.org/none#x), `configs/demo.py`, `ops/infini.py:run`,
`models/mixers/NAME.py`, `tests/test_NAME.py`, `make extra-tpu`, `[code](none)`,
`runs/none`, `chapter.txt`

    python train.py --config=configs/demo.py   # [code](none)

```
# no heading
```
"""


@pytest.fixture
def page(tmp_path):
  """Writes a page beside docs/b.md, and returns what is wrong with it."""
  (tmp_path / "docs").mkdir()
  (tmp_path / "docs" / "b.md").write_text("# There\n")

  def check(text):
    file = tmp_path / "a.md"
    file.write_text(text)
    links.anchors.cache_clear()
    return [line.removeprefix(f"{file}:") for line in links.broken(file)]

  return check


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(links.ROOT)))
def test_every_link_and_name_of_a_page_exists(file):
  assert not links.broken(file)


def test_what_exists_is_not_reported(page):
  assert page(PAGE) == []


@pytest.mark.parametrize(
  "text, found",
  [
    ("[x](none.md)", "none.md: no such file"),
    ("[x](#none)", "#none: no such heading"),
    ("[x](#no-heading)", "#no-heading: no such heading"),
    ("[x](docs/b.md#none)", "docs/b.md#none: no such heading"),
    ("[x\ny](none.md)", "none.md: no such file"),
    ("[x]: none.md", "none.md: no such file"),
    ("`ops/none.py`", "ops/none.py: no such file"),
    ("`none/NAME.py`", "none/NAME.py: no such file"),
    ("`--config=configs/none.py:wide`", "configs/none.py: no such file"),
    ("`tests/none/`", "tests/none/: no such file"),
    ("\n    python benchmarks/none.py\n", "benchmarks/none.py: no such file"),
    ("```\ncat locks/none.lock\n```", "locks/none.lock: no such file"),
    ("`make none`", "make none: no such target"),
  ],
)
def test_what_does_not_exist_is_reported_with_its_line(page, text, found):
  (line,) = page(f"{PAGE}\n{text}\n")
  number, _, what = line.partition(": ")
  assert what == found
  assert found.split(":")[0].split()[-1] in f"{PAGE}\n{text}\n".splitlines()[int(number) - 1]


WORD = re.compile(r"[A-Za-z_][\w.]*")


def test_every_name_beside_a_file_in_a_recipe_is_in_that_file():
  """In a recipe, an item that names files names nothing else in code that is in none of them."""
  _, text = (links.ROOT / "CONTRIBUTING.md").read_text().split("## Add a task")
  checked = 0
  for item in re.split(r"\n(?=\d+\. |- |\n|\|)", text):
    spans = re.findall(r"`([^`]+)`", item)
    files = [links.ROOT / span for span in spans if (links.ROOT / span).is_file()]
    there = set(re.findall(r"\w+", "\n".join(file.read_text() for file in files)))
    for name in spans if files else ():
      if WORD.fullmatch(name) and not name.endswith((".json", ".md", "...")):
        missing = set(name.split(".")) - there
        assert not missing, f"{name}: not in {', '.join(str(file.name) for file in files)}: {item}"
        checked += 1
  assert checked > 50


def test_links_between_pages_in_html(tmp_path):
  (tmp_path / "in").mkdir()
  (tmp_path / "a.html").write_text(
    '<p id="x"><a href="#x">1</a><a href="in/b.html#y">2</a><a href="https://example.org">3</a>'
    '<a href="#none">4</a><a href="in/b.html#x">5</a><a href="none.html">6</a>'
  )
  (tmp_path / "in" / "b.html").write_text('<p id="y"><a href="../a.html">1</a>')
  wrong = links.broken_pages(tmp_path)
  assert [line.split(": ", 1)[1] for line in wrong] == [
    "#none: no such anchor",
    "in/b.html#x: no such anchor",
    "none.html: no such page",
  ]


def entries():
  """The letters and words of the glossary, with their meanings; a list, so that none is lost."""
  glossary = (links.ROOT / "docs" / "architecture.md").read_text().split("## Letters and words")[1]
  rows = [line.split("|")[1:3] for line in glossary.splitlines() if line.startswith("| ")]
  return [(name.strip("` "), said) for names, said in rows for name in names.split(",")]


NAMED = re.compile(r"\b([a-z]\w*_\d?([A-Z]+))\b|(?<![.\w])([A-Z]_([A-Z]+))\b")  # q_BTHE, M_BKEU
SHAPE = re.compile(r"\b(?:Float|Bool|Int)\[\w+, \"([^\"]*)\"")  # of jaxtyping
EINSUM = re.compile(r"\"([A-Z]+,[A-Z]+->[A-Z]+)\"")


def letters_of(file):
  """The dimension letters of a file, each with a place where it is."""
  text = file.read_text()
  found = {x: m[0] for m in NAMED.finditer(text) for x in m[2] or m[4]}
  found |= {x: said for said in SHAPE.findall(text) for x in re.findall(r"\b[A-Z]\b", said)}
  found |= {x: said for said in EINSUM.findall(text) for x in said if x.isalpha()}
  for node in ast.walk(ast.parse(text)):
    stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    name = node.id if stored else node.arg if isinstance(node, ast.arg) else ""
    found |= {name: f"line {node.lineno}"} if len(name) == 1 and name.isupper() else {}
  return found


def test_the_glossary_has_one_entry_and_one_meaning_for_every_letter_of_an_array():
  names = [name for name, _ in entries()]
  assert len(names) == len(set(names)), "a letter or a word has two entries"
  for name, said in entries():
    assert len(name) > 1 or ";" not in said, f"{name} has two meanings"
  used = set()
  for file in (*links.ROOT.glob("benchmarks/*.py"), *links.ROOT.glob("infini_jax/**/*.py")):
    for letter, where in letters_of(file).items():
      assert letter in names, f"{file.name}: {where}: the letter {letter} has no entry"
      used.add(letter)
  unused = {name for name in names if len(name) == 1 and name.isupper()} - used
  assert not unused, f"no array has the letters {unused}"


def test_a_type_variable_is_not_a_letter():
  for file in (links.ROOT / "infini_jax").rglob("*.py"):
    made = re.findall(r"\b(?:TypeVar|ParamSpec)\(\"(\w+)\"", file.read_text())
    assert all(len(name) > 1 for name in made), f"{file.name}: a letter is a dimension: {made}"


def test_the_reference_shows_what_packages_export_and_whole_rooms():
  names = reference.modules()
  for room in (*reference.WHOLE, *reference.ALSO, "infini_jax.inference", "infini_jax.data"):
    assert room in names
  for room in reference.WHOLE:
    assert any(name.startswith(f"{room}.") for name in names)
  assert "infini_jax.cli" not in names


def test_comments_behind_fields_are_their_descriptions():
  said = reference.comments("infini_jax.config.schema")
  assert reference.comments("infini_jax.config.model")["SizesConfig.layers"] == "L"
  shown = reference.comments("infini_jax.config")
  assert shown["ALL_SPLITS"] == said["ALL_SPLITS"]


def test_the_picture_has_the_files_of_the_path_in_their_order():
  drawn = (links.ROOT / "docs" / "paths.svg").read_text()
  boxes = re.findall(r'class="f">([\w/]+\.py)<', drawn)
  files = paths.listed()
  assert boxes[: len(files)] == files, "make pictures"
  assert len(files) <= 9, "a reader follows a batch through nine files at most"


def test_the_pictures_of_the_readme_are_those_of_the_tables():
  for name, svg in pictures.pictures().items():
    assert (links.ROOT / "docs" / name).read_text() == svg, "make pictures"
    assert len(svg) < 100_000 and "prefers-color-scheme:dark" in svg
    assert f"](docs/{name})" in (links.ROOT / "README.md").read_text()
  found = pictures.recalled((links.ROOT / "docs" / "results.md").read_text())
  assert len(found) == len(pictures.ROWS) and all(found.values())
  assert found["SmolLM2-135M with an adapter"][1_048_576] == 1.0
  assert found["the paper's 1B, zero-shot, published"][32_768] == 0.11, "a percent"


@pytest.mark.slow
def test_the_picture_is_that_of_todays_code(tmp_path):
  made = tmp_path / "paths.svg"
  command = [sys.executable, "docs/paths.py", str(made)]
  done = subprocess.run(command, cwd=links.ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  assert made.read_text() == (links.ROOT / "docs" / "paths.svg").read_text(), "make pictures"
