"""Evaluation on any text (a folder, a file, one document, a store), with the run's tokenizer."""

import json
import shutil

import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.data import Store, load_tokenizer, prepare
from infini_jax.data.store.evaluated import short_name
from infini_jax.evaluation.evaluate import evaluate
from infini_jax.evaluation.filing import files, newest
from infini_jax.evaluation.tasks import chosen, open_task
from infini_jax.runs.workdir import open_inputs
from tests.tiny import changed, config, quiet


@pytest.fixture
def run(tmp_path, texts):
  """A run without training, with its own corpus and a vocabulary of pieces."""
  c = config(texts, data={"tokenizer": "train:300"}, model={"vocab_size": 300})
  workdir, store = open_inputs(c, str(tmp_path / "run"), quiet())
  workdir.claim(c, store.fingerprint)
  store.tokenizer.save(workdir.tokenizer)
  return c, workdir


def opened(run, path, console=None, task="perplexity", **evaluation):
  """The store and the documents that an evaluation of a path reads."""
  c, workdir = run
  c = changed(c, data=changed(c.data, path=str(path)))
  c = changed(c, evaluation=changed(c.evaluation, **evaluation))
  store = open_task(c, str(workdir.path), console or quiet(), task)
  e = chosen(c, store).evaluation
  return store, e.split, store.split(e.split, e.document)


def read(run, path, **evaluation):
  store, split, documents = opened(run, path, **evaluation)
  text = [
    store.tokenizer.decode(documents.read(d, 0, int(n))) for d, n in enumerate(documents.tokens)
  ]
  return split, dict(zip(documents.names, text, strict=True))


def test_the_runs_own_corpus_is_read_from_its_own_store_wherever_it_lies_now(run, texts, tmp_path):
  _, workdir = run
  store, split, documents = opened(run, texts)
  assert (store.folder, split, len(documents)) == (workdir.store, "test", 3)
  shutil.copytree(texts, tmp_path / "moved")
  assert opened(run, tmp_path / "moved")[0].folder == workdir.store
  assert not workdir.stores.exists()


def test_a_corpus_that_is_gone_is_read_from_the_runs_own_store(run, texts, tmp_path):
  c, workdir = run
  description = json.loads((workdir.store / "store.json").read_text())
  del description["sha256"]  # the edit is wanted
  gone = str(tmp_path / "gone")
  (workdir.store / "store.json").write_text(json.dumps(description | {"source": gone}))
  console = quiet()
  assert opened(run, gone, console)[0].folder == workdir.store
  assert "no such folder" in console.file.getvalue() and "own store" in console.file.getvalue()
  with pytest.raises(InputError, match="no such folder"):
    opened(run, tmp_path / "another")


def test_other_text_has_a_store_of_its_own_and_a_new_one_when_it_changes(run, texts, tmp_path):
  _, workdir = run
  before = {f: f.read_bytes() for f in workdir.store.rglob("*") if f.is_file()}
  books = tmp_path / "books"
  books.mkdir()
  for i in range(4):
    (books / f"{i}.txt").write_text(f"book {i} of a few")
  split, found = read(run, books, split="all")
  assert split == "all" and sorted(found) == ["0.txt", "1.txt", "2.txt", "3.txt"]
  assert found["2.txt"] == "book 2 of a few"
  first, again = opened(run, books)[0], opened(run, books)[0]
  assert first.folder == again.folder and first.folder.name.startswith("books-")
  assert first.folder.parent == workdir.stores
  plan = (first.folder / "plan.json").read_text()
  (first.folder / "plan.json").write_text("{")
  with pytest.raises(InputError, match="move it away, or delete this one"):
    opened(run, books)  # an evaluation has no --out
  (first.folder / "plan.json").write_text(plan)
  (books / "2.txt").write_text("book 2 of a few more")
  assert read(run, books, split="all")[1]["2.txt"] == "book 2 of a few more"
  assert opened(run, books)[0].text != first.text
  assert before == {f: f.read_bytes() for f in workdir.store.rglob("*") if f.is_file()}


def test_a_changed_letter_is_noticed_at_any_place(run, tmp_path):
  file = tmp_path / "lines.jsonl"
  for last in ("a", "b"):
    lines = [{"text": f"line {i}"} for i in range(5)] + [{"text": f"the last {last}"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read(run, f"jsonl:{file}", split="all")[1]
    assert f"the last {last}" in found.values() and len(found) == 6


def test_a_file_and_a_corpus_of_one_document_are_read_whole(run, tmp_path):
  for name in ("a story.txt", "page.html", "no_ending"):
    (tmp_path / name).write_text(f"once in {name}")
    for split in ("test", "validation", "all"):
      assert read(run, tmp_path / name, split=split) == ("all", {name: f"once in {name}"})
  (tmp_path / "one.jsonl").write_text(json.dumps({"text": "a line"}) + "\n")
  split, found = read(run, f"jsonl:{tmp_path}/one.jsonl")
  assert (split, list(found.values())) == ("all", ["a line"])
  with pytest.raises(InputError, match=r"is not text by itself; write jsonl:.*one.jsonl"):
    opened(run, tmp_path / "one.jsonl")
  c = config(tmp_path / "page.html")
  with pytest.raises(InputError, match="is a file: give the folder"):
    open_inputs(c, str(tmp_path / "training"), quiet())


def test_text_without_any_to_train_on_can_be_evaluated(run, tmp_path):
  lines = "".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(3))
  (tmp_path / "test.jsonl").write_text(lines)
  split, found = read(run, f"jsonl:{tmp_path}/test.jsonl")
  assert (split, list(found.values())) == ("test", ["line 0", "line 1", "line 2"])
  two = tmp_path / "two"
  two.mkdir()
  for name in ("a.md", "b.md"):
    (two / name).write_text(name)
  assert read(run, two) == ("test", {"a.md": "a.md", "b.md": "b.md"})
  with pytest.raises(InputError, match=r"split='train': .*two has no .* test \(2\), or 'all'"):
    opened(run, two, split="train")


def test_one_document_is_found_by_its_name_in_any_split(run, texts):
  for given, name in (("train/03.txt", "train/03.txt"), ("07.txt", "train/07.txt")):
    split, found = read(run, texts, document=given)
    assert (split, list(found)) == ("train", [name])
    assert found[name] == (texts / name).read_text()
  with pytest.raises(
    InputError, match=r"'00.txt': 3 documents have this name, such as train/00.txt"
  ):
    opened(run, texts, document="00.txt")
  with pytest.raises(InputError, match=r"'train/3.txt': no document .* such as train/0"):
    opened(run, texts, document="train/3.txt")


def test_a_store_in_other_tokens_is_refused_with_a_possible_remedy(run, texts, tmp_path):
  _, workdir = run
  prepare(str(texts), tmp_path / "bytes", "bytes", console=quiet())
  with pytest.raises(InputError) as e:
    opened(run, tmp_path / "bytes")
  line = str(e.value)
  assert "\n" not in line and "--out" not in line and repr(str(texts)) in line
  remedy = line.rpartition("--tokenizer=")[2]
  prepare(str(texts), tmp_path / "same", remedy, console=quiet())
  store, split, documents = opened(run, tmp_path / "same")
  assert (store.folder, split, len(documents)) == (tmp_path / "same", "test", 3)
  assert store.text == Store.open(workdir.store).text, "the same text, wherever it was prepared"


def test_training_on_other_text_names_a_remedy_that_train_has(run, tmp_path):
  c, workdir = run
  books = tmp_path / "books"
  books.mkdir()
  for i in range(4):
    (books / f"{i}.txt").write_text(f"book {i}")
  with pytest.raises(InputError) as e:
    open_inputs(changed(c, data=changed(c.data, path=str(books))), str(workdir.path), quiet())
  assert "choose another --workdir, or set config.data.path back" in str(e.value)
  assert "--out" not in str(e.value)


def test_needles_can_be_hidden_in_other_text(run, tmp_path):
  c, workdir = run
  (tmp_path / "filler.txt").write_text("Some words stand here. " * 40)
  c = changed(c, evaluation=changed(c.evaluation, lengths=(900,)))
  for field in ("data", "needle"):
    name = {"data": "path", "needle": "filler"}[field]
    other = changed(
      c, **{field: changed(getattr(c, field), **{name: str(tmp_path / "filler.txt")})}
    )
    task = open_task(other, str(workdir.path), quiet(), "needle")
    assert task.store.folder.parent == workdir.stores


@pytest.mark.slow
def test_two_corpora_have_separate_named_results(trained, tmp_path):
  c, workdir, _ = trained
  shutil.copytree(workdir, tmp_path / "run")
  (tmp_path / "mine.txt").write_text("this is mine, and no one else's " * 5)
  c = changed(c, evaluation=changed(c.evaluation, knock_out=()))
  mine = changed(c, data=changed(c.data, path=str(tmp_path / "mine.txt")))
  found = {}
  for one in (c, mine):
    evaluate(one, str(tmp_path / "run"), quiet(), tasks=("perplexity",))
    found[one.data.path] = newest(tmp_path / "run", "perplexity")
  assert len(list(files(tmp_path / "run" / "evaluation"))) == 2
  for path, results in found.items():
    assert results["corpus"]["path"] == path
  results = found[str(tmp_path / "mine.txt")]
  text = (tmp_path / "mine.txt").read_bytes()
  assert (results["split"], results["memory"]["bytes"]) == ("all", len(text))
  assert [name for name, *_ in results["memory"]["per_document"]] == ["mine.txt"]
  assert results["tokenizer"] == load_tokenizer("bytes").fingerprint
  assert np.isfinite(results["memory"]["perplexity"])


@pytest.mark.parametrize(
  "path,name",
  [
    ("a/books", "books"),
    ("a/books/", "books"),
    ("text:a/books", "books"),
    ("a/mark[1]?.txt", "mark[1]?.txt"),
    ("jsonl:a/x.jsonl?text=content", "x.jsonl"),
    ("jsonl:crawl/*.jsonl.gz", "crawl"),
    (r"jsonl:a/what\?.jsonl?text=content", "what?.jsonl"),
    ("tfds:pg19?data_dir=gs://b/tfds", "pg19"),
    ("mix:stores/books=2,stores/code=1", "books+code"),
    ("python-stdlib", "python-stdlib"),
  ],
)
def test_names_of_corpora(path, name):
  assert short_name(path) == name
