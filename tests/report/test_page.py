"""The report: a self-contained page with all results, and with escaped text."""

import base64
import dataclasses
import functools
import io
import json
import math
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from infini_jax import cli
from infini_jax.config import InputError
from infini_jax.data import prepare
from infini_jax.evaluation import gates as gates_lib
from infini_jax.evaluation.perplexity import Scores
from infini_jax.evaluation.retrieval import Cell, Recalled, wilson
from infini_jax.evaluation.tasks import jobs_of
from infini_jax.html import PNG
from infini_jax.report.page import report
from infini_jax.report.runs import read_runs
from tests.tiny import config, quiet

VOID = ("meta", "img", "br", "link")
COMMAND = "infini-jax eval --config='<script>alert(1)</script>' --workdir=a&b"


class Page(HTMLParser):
  """A parsed page. A tag that is not closed at its place is a failure."""

  def __init__(self, file):
    super().__init__()
    self.source = file.read_text("utf-8")
    self.open, self.headings, self.images, self.links = [], [], [], []
    self.tables, self.style, self.words = [], "", []
    self.feed(self.source)
    self.close()
    assert self.open == [], f"never closed: {self.open}"

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    assert not any(name.startswith("on") for name in attrs), f"a handler in <{tag}>"
    self.links += [attrs[name] for name in ("href", "src", "data", "action") if name in attrs]
    if tag not in VOID:
      self.open.append(tag)
    if tag in ("h1", "h2", "h3", "h4"):
      self.headings.append(int(tag[1]))
    elif tag == "img" or (tag == "svg" and "role" in attrs):
      self.images.append(attrs | {"alt": attrs.get("alt") or attrs["aria-label"]})
    elif tag == "table":
      self.tables.append({"caption": "", "rows": []})
    elif tag == "tr":
      self.tables[-1]["rows"].append({"cells": [], "marked": attrs.get("class") == "marked"})
    elif tag in ("th", "td"):
      assert tag == "td" or attrs["scope"] in ("row", "col"), "a header says of what"
      self.tables[-1]["rows"][-1]["cells"].append("")
    elif tag == "small" and "td" in self.open:
      self.tables[-1]["rows"][-1]["cells"][-1] += "|"

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

  def handle_data(self, data):
    if "style" in self.open:
      self.style += data
    elif "caption" in self.open:
      self.tables[-1]["caption"] += data
    elif "td" in self.open or "th" in self.open:
      self.tables[-1]["rows"][-1]["cells"][-1] += data
    self.words.append(data)

  @property
  def text(self):
    return "".join(self.words)

  def table(self, caption):
    """The rows of the first table with this caption: the first cell, and the others."""
    found = next((t for t in self.tables if t["caption"].startswith(caption)), None)
    assert found, f"no table {caption!r} among {[t['caption'] for t in self.tables]}"
    return {row["cells"][0]: row["cells"][1:] for row in found["rows"]}

  def marked(self, caption):
    (found,) = [t for t in self.tables if t["caption"] == caption]
    return [row["cells"][0] for row in found["rows"] if row["marked"]]


def scores(rng, factor=1.0):
  """Perplexity results of two documents, as in results.json."""
  documents = [(f"{i} <i>.txt", int(n), float(n * rng.uniform(2, 2.5) * factor)) for i, n in
               enumerate(rng.integers(100, 900, 2))]  # fmt: skip
  tokens, nats = sum(d[1] for d in documents), sum(d[2] for d in documents)
  buckets = {0: (100, nats / 3), 128: (tokens - 100, nats * 2 / 3)}
  return Scores(2, tokens, tokens // 5, 4 * tokens, nats, 2.0, buckets, buckets, documents)


def in_digits(value, bounds):
  """A figure with its interval: the last digit is at most a third of half of the interval."""
  digits = next(d for d in range(9) if 3 * 10.0**-d <= (bounds[1] - bounds[0]) / 2)
  return f"{value:,.{digits}f}|{bounds[0]:,.{digits}f} to {bounds[1]:,.{digits}f}"


def recalled(rng, exact=None):
  """Recall results as in results.json: two lengths, two depths."""
  cells = []
  for length in (1024, 4096):
    for depth in (0.0, 0.5):
      right = int(rng.integers(0, 21)) if exact is None else exact
      cells.append(Cell(length, depth, 20, right, 80, min(80, 4 * right)))
  return Recalled(tuple(cells), 9999, 3.0)


GATES_LH = np.array([[0.2, 0.6], [0.95, 0.7]])


@functools.cache
def picture():
  """The picture of the gates, drawn once for all runs."""
  with tempfile.TemporaryDirectory() as folder:
    gates_lib.draw(GATES_LH, Path(folder) / "gates.png")
    return (Path(folder) / "gates.png").read_bytes()


def write_run(folder, found=None, losses=(2.5, 1.25), family="single", **sections):
  """A workdir with a config, log lines, and evaluations: task -> (asked, memory, ablations)."""
  folder.mkdir(parents=True)
  c = config("corpus", **sections)
  content = {"config": json.loads(c.to_json()), "corpus": "x"}
  (folder / "run.json").write_text(json.dumps(content))
  lines = [
    {"step": 10 * i, "kind": "train", "loss": loss, "tokens_per_second": 1000.0 + i}
    for i, loss in enumerate(losses, 1)
  ]
  lines.append({"step": 20, "kind": "validation", "loss": 99.0})
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{")
  about = {
    "step": 20,
    "parameters": 1_234_567,
    "date": "2026-01-02T03:04:05+00:00",
    "seconds": 7.25,
    "command": COMMAND,
    "settings": {"evaluation": {"lengths": [1024, 4096]}, "task": {"family": family}},
    "environment": {"python": "3.11.0", "jax": "0.0.1", "device": "<abacus>"},
    "gates": {"gates_LH": GATES_LH.tolist(), **gates_lib.summary(GATES_LH)},
  }
  for name, (asked, memory, out) in (found or {}).items():
    place = folder / "evaluation" / name
    place.mkdir(parents=True)
    results = {"task": asked, **about}
    if memory is not None:
      out = {variant: figures.to_dict() for variant, figures in out.items()}
      results |= {"memory": memory.to_dict(), "knocked_out": out}
    (place / "results.json").write_text(json.dumps(results))
    (place / f"{name}.png").write_bytes(picture())
  return folder


def written(*folders, out=None):
  return Page(report([str(folder) for folder in folders], out, quiet()))


@pytest.fixture
def runs(rng, tmp_path):
  """Two runs: one evaluated on perplexity and keys, one on keys and its gates."""
  memory, out = scores(rng), scores(rng, 1.5)
  keys, no_keys = recalled(rng), recalled(rng, 0)
  first = write_run(
    tmp_path / "<b>one & 'only'",
    {"perplexity": ("perplexity", memory, {"empty": out}),
     "passkey": ("passkey", keys, {"empty": no_keys, "layer 1 cut": recalled(rng)})},
  )  # fmt: skip
  second = write_run(
    tmp_path / "two",
    {"knockout": ("passkey", recalled(rng, 20), {}), "gates": ("gates", None, {})},
    losses=(3.0, 0.5, 0.25),
    model={"rule": "delta", "layers": 3},
  )
  return first, second, memory, out, keys


def test_documents_that_were_left_out_are_told(runs, tmp_path):
  for i in range(9):
    (tmp_path / f"{i}.txt").write_bytes(b"\xff" if i == 4 else b"some text")
  prepare(f"text:{tmp_path}?bad=skip", runs[0] / "store", "bytes", console=quiet())
  table = written(*runs[:2]).table("What was measured")
  assert table["documents left out"] == ["1 that cannot be read", ""]


def test_the_goodput_of_a_run_is_shown_with_what_the_rest_went_to(runs):
  parts = {"steps": 7.5, "start": 0.5, "compile": 1.0, "input": 0, "save": 0, "lost": 0}
  line = {"kind": "goodput", "step": 20, "session": 1, "seconds": 10.0, "evaluation": 1.0, **parts}
  file = runs[0] / "metrics.jsonl"
  file.write_text(f"{json.dumps(line)}\n{file.read_text()}")
  table = written(*runs[:2]).table("What was measured")
  said = "75%|goodput 75%; evaluation 10%, compile 10%, start 5%"
  assert table["training, goodput"] == [said, ""]


@pytest.mark.rendered
def test_the_page_is_whole_and_self_contained(runs):
  for folders in (runs[:1], runs[:2]):
    page = written(*folders)
    assert page.source.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert page.links and all(link.startswith(("data:image/png;", "#")) for link in page.links)
    for outside in ("<script", "@import", "url(", "http:", "https:", "xmlns"):
      assert outside not in page.source.lower().replace("&lt;script", ""), f"{outside} in the page"
    for wanted in ("prefers-color-scheme: dark", "@media print", "tabular-nums"):
      assert wanted in page.style
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    steps = np.diff(page.headings)
    assert steps.max() == 1, f"a level of headings is left out: {page.headings}"
    assert all(table["caption"] and table["rows"] for table in page.tables)
    for image in page.images:
      assert len(image["alt"]) > 20, image["alt"]
      if "src" in image:
        png = base64.b64decode(image["src"].partition("base64,")[2])
        assert png.startswith(PNG)


def test_text_from_files_is_escaped(runs):
  page = written(*runs[:2])
  for given in (runs[0].name, COMMAND, "<abacus>", "0 <i>.txt"):
    assert given in page.text, "it is shown as it was given"
    assert given not in page.source, f"{given} is not escaped"


def test_headline_figures_stand_under_their_run(runs):
  first, second, memory, out, keys = runs
  table = written(first, second).table("What was measured")
  assert table.pop("figure") == [first.name, "two"]
  assert table["perplexity per token"] == [in_digits(memory.perplexity, memory.interval), ""]
  (empty, none) = table["the same, memory held empty"]
  assert (
    empty.startswith(in_digits(out.perplexity, out.interval).partition("|")[0] + "|+") and not none
  )
  bits, empty = table["bits per byte"][0].split("|memory held empty: ")
  assert float(bits) == pytest.approx(memory.bits_per_byte, abs=0.051)
  assert float(empty) == pytest.approx(out.bits_per_byte, abs=0.051)
  assert table["memory system"] == ["infini, linear", "infini, delta"]
  assert table["parameters"] == ["1,234,567"] * 2
  assert table["training steps"] == ["20", "30"], "validation is no step of training"
  assert table["training loss, last"] == ["1.25", "0.250"]
  assert table["evaluated at step"] == ["20", "20"], "one was trained on since"
  assert table["training, tokens/s"] == ["1,002", "1,002"]
  assert table["heads that opened"] == ["3 of 4|greatest gate 0.95"] * 2
  for length in (1024, 4096):
    shares = {cell.depth: cell.exact / 20 for cell in keys.cells if cell.length == length}
    worst = min(shares, key=shares.get)
    low, high = wilson(round(20 * shares[worst]), 20)
    where = f"at depth {worst:g}; elsewhere up to {max(shares.values()):.2f}"
    where = where if len(set(shares.values())) > 1 else ""
    got, of_knockout = table[f"passkey, {length:,} tokens, worst depth"]
    parts = [f"{shares[worst]:.2f}", f"{low:.2f} to {high:.2f}", where, "memory held empty: 0.00"]
    assert got == "|".join(filter(None, parts))
    assert of_knockout == "1.00|0.84 to 1.00", "the ablations of the run's own task count too"
  assert "training, MiB a device" not in table, "a row that no run has"


def test_each_evaluation_has_its_tables(runs):
  first, second, memory, out, keys = runs
  page = written(first)
  table = page.table(f"2 documents of the corpus: {memory.tokens:,} tokens")
  for row, figures in (("with the memory", memory), ("memory held empty", out)):
    assert table[row][0] == in_digits(figures.perplexity, figures.interval)
  tokens, nats = memory.by_position[128]
  row = page.table("Perplexity by position")["128"]
  assert row[:2] == [f"{tokens:,}", f"{np.exp(nats / tokens):#.3g}"]
  documents = page.table("With the memory")
  assert [documents[name][0] for name, *_ in memory.per_document] == [
    f"{tokens:,}" for _, tokens, _ in memory.per_document
  ]
  (table,) = [t for t in page.tables if t["caption"].startswith("Share recalled, of 20 fresh")]
  assert table["rows"][0]["cells"][-2:] == ["memory held empty", "memory with layer 1 cut"]
  for row, cell in zip(table["rows"][1:], keys.cells, strict=True):
    assert row["cells"][:2] == [f"{cell.length:,}", f"{cell.depth:g}"]
    assert row["cells"][2].startswith(f"{cell.exact_match:.2f}|")
    assert row["cells"][3].startswith(f"{cell.token_accuracy:.2f}")
  page = written(second)
  assert page.table("Gates")["memory heads (over 0.9)"] == ["1"]
  assert page.table("Gate by layer and head")["layer 2"] == ["0.950", "0.700"]


@pytest.mark.rendered
def test_runs_of_one_evaluation_share_a_picture(tmp_path, rng):
  found = {
    "perplexity": ("perplexity", scores(rng), {}),
    "passkey": ("passkey", recalled(rng), {}),
  }
  folders = [write_run(tmp_path / name, found) for name in ("one", "two")]
  page = written(*folders, write_run(tmp_path / "three"))
  alts = [image["alt"] for image in page.images]
  for what in ("Perplexity by position in the document", "Share recalled by length"):
    assert f"Line chart: {what}, with the memory; one, two" in alts, alts
  assert "Nothing was evaluated yet of three." in page.text


def test_needles_of_different_kinds_are_different_tasks(tmp_path, rng):
  found = ("needle", recalled(rng), {})
  folder = jobs_of(config("corpus"), ["needle"])[0].name
  one = write_run(tmp_path / "one", {folder: found})
  two = write_run(tmp_path / "two", {"needle-multikey": found}, family="multikey")
  page = written(one, two)
  table = page.table("What was measured")
  for column, family in enumerate(("single", "multikey")):
    row = table[f"needle, {family}, 1,024 tokens, worst depth"]
    assert row[column] and not row[1 - column]
    assert any(f"needle, {family}; {'two' if column else 'one'}" in i["alt"] for i in page.images)
  assert page.marked("Settings of the evaluations") == ["task.family"]


def test_the_config_is_whole_and_differences_are_marked(runs):
  page = written(*runs[:2])
  differ = ["model.layers", "infini.rule"]
  assert page.marked("The whole config") == differ
  table = page.table("Fields in which they differ")
  assert list(table)[1:] == differ
  assert (table["infini.rule"], table["model.layers"]) == (["linear", "delta"], ["2", "3"])
  whole = page.table("The whole config")
  assert whole["data.path"] == ["corpus"] * 2 and whole["evaluation.task"] == ["empty"] * 2
  alone = written(runs[1])
  assert alone.marked("The whole config") == []
  assert alone.table("Fields that are set")["infini.rule"] == ["delta", "linear"]
  assert "model.rope_theta" not in alone.table("Fields that are set"), "it is as by default"


def test_commands_and_what_computed_them_are_shown(runs):
  page = written(runs[0])
  (evaluated,) = [name for name in page.table("What computed them") if name != "evaluation"]
  assert evaluated == "perplexity, passkey", "one command, one line"
  row = page.table("What computed them")[evaluated]
  assert row == ["2026-01-02 03:04", "14.5", "20", "3.11.0", "0.0.1", "<abacus>"]
  assert page.table("Settings of the evaluations")["evaluation.lengths"] == ["(1024, 4096)"]


def test_figures_of_an_unknown_task_are_shown_too(tmp_path, rng):
  class Found:
    def __init__(self, beauty):
      self.beauty = beauty

    def to_dict(self):
      return {"deep_beauty": self.beauty, "tokens": 70, "texts": ["a"]}

  seen, unseen = rng.uniform(0, 9, 2)
  page = written(
    write_run(tmp_path / "r", {"poems": ("poems", Found(seen), {"empty": Found(unseen)})})
  )
  assert page.table("What was measured")["poems: deep beauty"] == [
    f"{seen:#.3g}|memory held empty: {unseen:#.3g}"
  ]
  assert page.table("Figures of poems")["deep beauty"] == [f"{seen:#.3g}", f"{unseen:#.3g}"]
  assert page.table("Figures of poems")["tokens"] == ["70", "70"]


def test_a_benchmark_has_its_table(tmp_path):
  class Found:
    def __init__(self, score):
      cell = {"task": "vt", "length": 4096, "samples": 2, "score": score, "nulls": 0}
      self.grid = [cell, cell | {"length": 8192, "score": 50.0}]

    def to_dict(self):
      return {"average": 1.0, "grid": self.grid}

  page = written(
    write_run(tmp_path / "r", {"ruler": ("ruler", Found(87.5), {"empty": Found(0.5)})})
  )
  assert page.table("Scores of 100, with the memory")["vt"][:3] == ["87.50", "50.00", "68.75"]
  assert page.table("Scores of 100, memory held empty")["vt"][:3] == ["0.50", "50.00", "25.25"]


def test_summaries_stand_beside_their_references(tmp_path, rng):
  folder = write_run(tmp_path / "r", {"summarization": ("summarization", recalled(rng), {})})
  results = folder / "evaluation" / "summarization" / "results.json"
  content = json.loads(results.read_text())
  content["memory"] = {"rouge1": 12.5, "overall": 3.5, "documents": 5}
  results.write_text(json.dumps(content))
  long = "word " * 1000
  lines = [
    {"name": f"tale {i}", "tokens": 9, "written": f"<b>{i}", "reference": long,
     "knocked_out": {"empty": f"none {i}"}}
    for i in range(5)
  ]  # fmt: skip
  file = results.with_name("predictions.jsonl")
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  page = written(folder)
  table = page.table("What was written")
  assert table["tale 1: with the memory"] == ["<b>1"], "escaped"
  assert table["tale 2: memory held empty"] == ["none 2"] and "tale 3: reference" not in table
  (reference,) = table["tale 0: reference"]
  assert long.startswith(reference.removesuffix(" ...")) and 1000 < len(reference) < 2000
  assert page.table("What was measured")["summarization: overall"] == ["3.50"]
  for torn in ("{", '"text"\n', "{}\n"):
    file.write_text(torn)
    with pytest.raises(InputError, match="evaluate the task again"):
      report([str(folder)], None, quiet())


@pytest.mark.parametrize(
  "cases", [5, pytest.param(30, marks=[pytest.mark.slow, pytest.mark.rendered])]
)
def test_damaged_results_are_reported_in_one_line(tmp_path, rng, cases):
  found = {
    "perplexity": ("perplexity", scores(rng), {"empty": scores(rng)}),
    "passkey": ("passkey", recalled(rng), {"empty": recalled(rng)}),
    "gates": ("gates", None, {}),
  }
  folder = write_run(tmp_path / "r", found, losses=())

  def places(value, path=()):
    if isinstance(value, dict | list):
      for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        yield from places(inner, (*path, key))

  refused = 0
  for name in found:
    file = folder / "evaluation" / name / "results.json"
    whole = file.read_text()
    for picture in file.parent.glob("*.png"):
      picture.unlink()
    every = list(places(json.loads(whole)))
    for i in rng.permutation(len(every))[:cases].tolist():
      content = json.loads(whole)
      *path, last = every[i]
      inner = content
      for key in path:
        inner = inner[key]
      inner[last] = [None, "text", {}, []][rng.integers(4)]
      file.write_text(json.dumps(content))
      try:
        report([str(folder)], None, quiet())
      except InputError as error:
        assert str(error).startswith(str(file)) and "\n" not in str(error)
        refused += 1
    file.write_text(whole)
  assert refused > (cases // 3 if cases > 9 else 0), "a weak test"
  report([str(folder)], None, quiet())


def test_a_run_without_any_evaluation_says_so(tmp_path):
  page = written(write_run(tmp_path / "bare", losses=()))
  assert "Nothing was evaluated yet" in page.text and "No step was logged yet" in page.text
  assert "Commands" not in page.text and page.images == []
  table = page.table("What was measured")
  assert list(table) == ["figure", "memory system", "trained on", "tokenizer"]


def test_where_the_page_goes_and_how_runs_are_called(tmp_path):
  a, b = write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run")
  out = io.StringIO()
  assert report([str(a)], None, Console(file=out, width=300)) == a / "report.html"
  assert f"wrote {a / 'report.html'}" in out.getvalue()
  assert report([str(a), str(b)], None, quiet()) == tmp_path / "a" / "report.html"
  chosen = tmp_path / "chosen.html"
  again = a / ".." / "run"
  page = written(a, b, again, out=str(chosen))
  assert page.table("What was measured")["figure"] == ["a/run", "b/run"], "each once, told apart"
  strange = write_run(tmp_path / "\udcff$\\frac$"), write_run(tmp_path / f"_{'x' * 200}")
  page = written(*strange)
  assert page.table("What was measured")["figure"] == ["\ufffd$\\frac$", strange[1].name]


def test_figures_that_are_not_finite_are_shown_as_such(tmp_path, rng):
  good = scores(rng)
  far = dataclasses.replace(good, nats=800.0 * good.tokens)
  assert far.perplexity == far.word_perplexity == math.inf
  bad = dataclasses.replace(
    good, nats=math.nan, per_document=[("a", 1, math.nan), ("\udcff.txt", 9, math.nan)],
    by_position={0: (good.tokens, math.nan), 128: (1, 800.0)},
  )  # fmt: skip
  found = {"perplexity": ("perplexity", bad, {})}
  page = written(write_run(tmp_path / "run", found, losses=()))
  assert page.table("What was measured")["perplexity per word"] == ["nan"]
  assert page.table("2 documents")["with the memory"][0] == "nan|nan to nan"
  places = page.table("Perplexity by position")
  assert [places[start][1] for start in ("0", "128")] == ["nan", "inf"]
  assert "?.txt" in page.table("With the memory"), "a name of bytes that are not text"


def test_wrong_inputs_are_one_line_that_names_the_file(tmp_path, rng, capsys):
  good = write_run(tmp_path / "good", {"passkey": ("passkey", recalled(rng), {})})
  file = good / "evaluation" / "passkey" / "results.json"

  def refused(*folders, out=None):
    with pytest.raises(InputError) as e:
      report([str(folder) for folder in folders], out, quiet())
    assert "\n" not in str(e.value)
    return str(e.value)

  assert "no run here" in refused(good, tmp_path / "nowhere")
  assert "make it first" in refused(good, out=str(tmp_path / "x" / "y.html"))
  assert "is a folder; name a file" in refused(good, out=str(tmp_path))
  assert "too long" in refused(good, out=f"{tmp_path}/{'x' * 300}")
  whole = file.read_text()
  for torn in (whole[: len(whole) // 2], "", "[]"):
    file.write_text(torn)
    assert str(file) in refused(good) and "evaluate the task again" in refused(good)
  file.write_text(json.dumps({k: v for k, v in json.loads(whole).items() if k != "environment"}))
  assert "has no 'environment'" in refused(good)
  assert cli.main(["report", f"--workdir={good}"]) == 2
  assert capsys.readouterr().err.startswith(f"infini-jax report: {file}: has no 'environment'")
  file.write_text(whole)
  assert cli.main(["report", f"--workdir={good}", f"--out={tmp_path / 'r.html'}"]) == 0
  assert "passkey" in Page(tmp_path / "r.html").text


def test_training_steps_are_those_that_were_saved(tmp_path):
  """Lines that a killed process logged after its last checkpoint are not part of the run."""
  write_run(tmp_path / "run", losses=(2.5, 1.25, 0.5))
  (run,) = read_runs([str(tmp_path / "run")])
  assert run.last == (30, 0.5)
  (tmp_path / "run" / "checkpoints" / "20").mkdir(parents=True)
  (tmp_path / "run" / "checkpoints" / "30.orbax-checkpoint-tmp").mkdir()
  assert run.last == (20, 1.25)
