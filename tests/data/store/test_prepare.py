import gc
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from rich.console import Console
from sentencepiece import SentencePieceTrainer

from infini_jax.config import InputError
from infini_jax.data import Store, open_or_prepare, prepare
from infini_jax.data.sources import base, open_corpus
from tests.data.data_fakes import write_corpus


def files(folder):
  return {
    str(file.relative_to(folder)): file.read_bytes()
    for file in sorted(folder.rglob("*"))
    if file.is_file()
  }


def test_trained_tokenizer_travels_with_the_store(corpus, tmp_path, quiet):
  store = prepare(str(corpus), tmp_path / "out", "train:340", console=quiet)
  assert (store.spec, store.tokenizer.size) == ("train:340", 340)
  shutil.move(tmp_path / "out", tmp_path / "moved")
  documents = Store.open(tmp_path / "moved").split("train")
  text = Store.open(tmp_path / "moved").tokenizer.decode(documents.read(0, 0, 40))
  assert text.startswith("Document ")


def test_complete_store_is_left_as_it_is(store, corpus, tmp_path, quiet):
  shutil.copytree(store.folder, tmp_path / "out")
  before = files(tmp_path / "out")
  shutil.copytree(corpus, tmp_path / "elsewhere")  # a corpus may move
  for path in (corpus, tmp_path / "elsewhere"):
    again = prepare(str(path), tmp_path / "out", "bytes", console=quiet)
    assert again.fingerprint == store.fingerprint
  assert files(tmp_path / "out") == before


def test_same_corpus_gives_the_same_files_on_any_number_of_processes(tmp_path, quiet):
  corpus = write_corpus(tmp_path / "corpus", documents=24, characters=400_000)
  for workers in (1, 2):
    prepare(str(corpus), tmp_path / str(workers), "bytes", workers=workers, console=quiet)
  one, two = files(tmp_path / "1"), files(tmp_path / "2")
  assert sum(name.endswith(".array_record") for name in one) > 3
  assert one.keys() == two.keys()
  assert not [name for name in one if one[name] != two[name]]


SCRIPT = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from infini_jax.data import prepare
from infini_jax.data.store import workers
from infini_jax.data.sources import base

entry = workers._entry

def slow(name, text, ids):
  if multiprocessing.parent_process():
    time.sleep(0.05)
    if sys.argv[3] == "die" and name.endswith("1.txt"):
      os.kill(os.getpid(), signal.SIGKILL)
  return entry(name, text, ids)

workers._entry = slow
workers.SPAWN_ABOVE = 0
base.SMALLEST = 20_000

if __name__ == "__main__":
  prepare(sys.argv[1], Path(sys.argv[2]), "train:300", workers=2)
"""


def start(tmp_path, corpus, out, mode):
  (tmp_path / "script.py").write_text(SCRIPT)
  command = [sys.executable, str(tmp_path / "script.py"), str(corpus), str(out), mode]
  return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_killed_worker_is_reported_with_the_remedy(tmp_path):
  corpus = write_corpus(tmp_path / "corpus", documents=64, characters=5_000)
  process = start(tmp_path, corpus, tmp_path / "out", "die")
  printed, _ = process.communicate(timeout=60)
  assert process.returncode == 1
  assert "InputError" in printed and "a worker was killed" in printed.splitlines()[-1], printed


@pytest.mark.parametrize("kind", [pytest.param("text", marks=pytest.mark.slow), "jsonl"])
def test_a_killed_run_continues_and_writes_the_same_store(tmp_path, quiet, monkeypatch, kind):
  monkeypatch.setattr(base, "SMALLEST", 20_000)
  corpus = write_corpus(tmp_path / "corpus", documents=64, characters=5_000)
  if kind == "jsonl":  # a part fills three shards, because a hash divides its documents
    rows = [{"text": file.read_text()} for file in sorted(corpus.rglob("*.txt"))]
    corpus = f"jsonl:{tmp_path}/all.jsonl"
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  out = tmp_path / "out"
  process = start(tmp_path, corpus, out, "slow")
  deadline = time.monotonic() + 60
  while not list(out.glob("test/*.npz" if kind == "jsonl" else "train/*.npz")):
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < deadline, "no shard after a minute"
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  # The workers hold the other end of the pipe, so this returns after they have ended too.
  process.communicate(timeout=30)
  with pytest.raises(InputError, match="not complete; run the command"):
    Store.open(out)
  whole = [f for f in out.glob("*/*.npz") if kind == "text" or (out / "test" / f.name).exists()]
  whole = [f for f in whole if f.with_suffix(".array_record").exists()]  # the rest has no documents
  finished = {file: file.stat().st_mtime_ns for file in whole}
  (out / "train" / "00009.array_record.host.1.tmp").write_bytes(b"half")

  prepare(str(corpus), out, "train:300", workers=1, console=quiet)
  assert {file: file.stat().st_mtime_ns for file in finished} == finished, "shards were redone"
  prepare(str(corpus), tmp_path / "whole", "train:300", workers=1, console=quiet)
  one, two = files(out), files(tmp_path / "whole")
  assert one.keys() == two.keys(), "an interrupted run must leave the same files"
  assert not [name for name in one if one[name] != two[name]]
  for split in ("train", "validation", "test"):
    a, b = Store.open(out).split(split), Store.open(tmp_path / "whole").split(split)
    assert a.names == b.names and np.array_equal(a.tokens, b.tokens)


def test_another_plan_in_the_same_folder_is_refused(corpus, store, tmp_path, quiet):
  out = tmp_path / "out"
  shutil.copytree(store.folder, out)
  other = write_corpus(tmp_path / "other", documents=30, characters=3000)
  some = sorted(other.rglob("*.txt"))[0]
  some.write_text(some.read_text() + "more")
  for arguments, match in (
    ((str(other), out, "bytes"), "other documents"),
    ((str(corpus), out, "train:300"), "other tokenizer .*train:300 here"),
    ((str(corpus), out, "bytes", None, 9), r"other min_tokens \(1 there, 9 here\)"),
  ):
    with pytest.raises(InputError, match=match + ".*choose another --out, or delete"):
      prepare(*arguments, console=quiet)
    (out / "store.json").unlink(missing_ok=True)  # the same for an incomplete store


def test_two_plans_in_one_folder_at_the_same_time_are_refused(corpus, tmp_path, quiet, monkeypatch):
  """The second starts after the first has claimed the folder, before it has written a shard."""
  module, out = sys.modules[prepare.__module__], tmp_path / "out"
  write = module.write_shards

  def interrupted(*arguments):
    monkeypatch.setattr(module, "write_shards", write)
    prepare(str(corpus), out, "bytes", min_tokens=2, console=quiet)
    write(*arguments)

  monkeypatch.setattr(module, "write_shards", interrupted)
  with pytest.raises(InputError, match="with other settings has written into it .*delete it"):
    prepare(str(corpus), out, "bytes", console=quiet)


def test_an_attempt_that_failed_early_does_not_block_the_next_one(corpus, tmp_path, quiet):
  with pytest.raises(InputError, match="train:99999.*too high"):
    prepare(str(corpus), tmp_path / "out", "train:99999", console=quiet)
  prepare(str(corpus), tmp_path / "out", "train:300", console=quiet)
  assert Store.open(tmp_path / "out").tokenizer.size == 300


def test_short_documents_are_dropped(tmp_path, quiet):
  for i in range(10):
    for split in ("train", "validation", "test"):
      file = tmp_path / "corpus" / split / f"{i}.txt"
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_text("x" * i)
  lengths = {}
  for min_tokens in (0, 1, 4):
    out = tmp_path / str(min_tokens)
    store = prepare(str(tmp_path / "corpus"), out, "bytes", None, min_tokens, quiet)
    lengths[min_tokens] = store.split("test").tokens.tolist()
  assert lengths == {0: list(range(1, 10)), 1: list(range(1, 10)), 4: list(range(4, 10))}
  with pytest.raises(InputError, match=r"no training tokens \(min_tokens=99\)"):
    prepare(str(tmp_path / "corpus"), tmp_path / "none", "bytes", None, 99, quiet)
  with pytest.raises(InputError, match="not complete"):
    Store.open(tmp_path / "none")


def test_document_that_is_not_text_is_named(tmp_path, quiet):
  corpus = write_corpus(tmp_path / "corpus")
  (corpus / "latin.txt").write_bytes("naïve".encode("latin1"))
  with pytest.raises(InputError, match="latin.txt: not UTF-8"):
    prepare(str(corpus), tmp_path / "out", "bytes", console=quiet)


def test_folder_of_something_else_is_not_touched(corpus, tmp_path, quiet):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "thesis.tex").write_text("years of work")
  for out in (tmp_path / "out", tmp_path / "out" / "thesis.tex"):
    with pytest.raises(InputError, match="not a store; choose another --out"):
      prepare(str(corpus), out, "bytes", console=quiet)
  assert list(files(tmp_path / "out")) == ["thesis.tex"]


def test_open_or_prepare(corpus, store, tmp_path, quiet):
  made = open_or_prepare(str(corpus), "bytes", tmp_path / "cache", quiet)
  assert made.folder == tmp_path / "cache" and made.fingerprint == store.fingerprint
  opened = open_or_prepare(str(store.folder), "bytes", tmp_path / "unused")
  assert opened.folder == store.folder and not (tmp_path / "unused").exists()
  with pytest.raises(InputError, match="'bytes', not 'train:300': set config.data.tokenizer"):
    open_or_prepare(str(store.folder), "train:300", tmp_path / "unused")
  with pytest.raises(InputError, match="no such folder"):
    open_or_prepare("", "bytes", tmp_path / "unused")


@pytest.mark.parametrize("terminal", [False, True])
def test_ends_with_a_table(corpus, tmp_path, terminal):
  console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
  prepare(str(corpus), tmp_path / "[odd] name", "bytes", console=console)
  printed = console.file.getvalue()
  assert "[odd] name (bytes)" in re.sub("\x1b\\[[0-9;]*m", "", printed)
  assert "bytes per token" in printed and "1.00" in printed and "validation" in printed


def test_store_json_describes_the_store(store):
  description = json.loads((store.folder / "store.json").read_text())
  assert description["tokenizer"] == "bytes"
  assert description["splits"]["train"].keys() == {
    "documents",
    "tokens",
    "bytes",
    "words",
    "characters",
    "empty",
    "short",
    "bad",
    "shards",
  }


def test_left_out_files_and_document_lengths_are_reported(tmp_path):
  sizes = {"train": [0, 3, 64, 127, 128, 300, 0], "validation": [64], "test": []}
  for split, own in sizes.items():
    rows = [json.dumps({"text": "x" * size}) + "\n" for size in own]
    (tmp_path / f"{split}.jsonl").write_text("".join(rows))
  console = Console(file=io.StringIO(), width=200)
  prepare(f"jsonl:{tmp_path}", tmp_path / "out", "bytes", None, 9, console)
  printed = console.file.getvalue()
  assert "left out: 2 empty documents, such as train.jsonl:0;" in printed
  assert "left out: 1 documents of fewer than 9 tokens" in printed
  assert "test: has no documents" in printed and "validation: has" not in printed
  rows = [line.replace("│", " ").split() for line in printed.splitlines() if " to " in line]
  found = {(row[0], row[2]): row[3:] for row in rows if row[1:2] == ["to"]}
  assert found == {
    ("64", "127"): ["2", "1", "0"],
    ("128", "255"): ["1", "0", "0"],
    ("256", "511"): ["1", "0", "0"],
  }


def test_store_is_verified_before_it_is_complete(tmp_path, quiet, monkeypatch):
  file = tmp_path / "all.jsonl"
  rows = [json.dumps({"text": f"document {i} " * 9}) + "\n" for i in range(200)]
  file.write_text("".join(rows))

  def then(change, match):
    """Checks the error if the corpus or the store changes after the last shard."""

    def write(*args):
      write_shards(*args)
      change()

    module = sys.modules["infini_jax.data.store.prepare"]
    write_shards = module.write_shards
    with monkeypatch.context() as patch:
      patch.setattr(module, "write_shards", write)
      with pytest.raises(InputError, match=match):
        prepare(f"jsonl:{file}", tmp_path / "out", "bytes", console=quiet)
    assert not (tmp_path / "out" / "store.json").exists()
    shutil.rmtree(tmp_path / "out")

  other = "".join(rows).replace("document", "octopus!")
  then(lambda: file.write_text(other), r"its text of .*jsonl:\d+ is not that of the corpus")
  file.write_text("".join(rows))
  records = tmp_path / "out" / "train" / "00000.array_record"
  then(lambda: records.write_bytes(records.read_bytes()[:-900]), "missing or damaged.*delete")
  prepare(f"jsonl:{file}", tmp_path / "out", "bytes", console=quiet)


def test_a_tokenizer_that_drops_characters_is_reported(tmp_path):
  for i in range(3):
    (tmp_path / f"{i}.txt").write_text(f"two  spaces, and a new\nline {i}")
  with open(tmp_path / "drops.model", "wb") as model:  # runs of white space become one space
    texts = iter(["two spaces, and a new line 0123456789"])
    SentencePieceTrainer.train(
      sentence_iterator=texts, model_writer=model, vocab_size=60, hard_vocab_limit=False,
      minloglevel=2,
    )  # fmt: skip
  for tokenizer, told in ((f"sentencepiece:{tmp_path}/drops.model", True), ("bytes", False)):
    out = io.StringIO()
    prepare(str(tmp_path), tmp_path / f"out{told}", tokenizer, console=Console(file=out, width=200))
    assert "3 documents are as in the corpus" in out.getvalue()
    assert ("drops or changes characters, in 3 of these" in out.getvalue()) == told


def rows_with_few_held_out(file):
  """Documents of which a hash holds out few: most parts have none for validation or test."""
  rows = [json.dumps({"text": f"document {i} " * 9, "sum": f"{i}"}) + "\n" for i in range(150)]
  file.write_text("".join(rows))
  return f"jsonl:{file}?summary=sum"


def test_a_shard_without_documents_is_not_written(tmp_path, quiet, monkeypatch):
  monkeypatch.setattr(base, "SMALLEST", 1500)
  spec = rows_with_few_held_out(tmp_path / "all.jsonl")
  parts = open_corpus(spec).parts
  expected = [[r for r in part.read() if r.split == "test"] for part in parts]
  filled = [number for number, found in enumerate(expected) if found]
  assert 0 < len(filled) < len(parts) - 5, "a weak test: a part should have none"
  store = prepare(spec, tmp_path / "out", "bytes", console=quiet)
  for folder in ("test", "test.summaries"):
    names = [f"{n:05d}.{end}" for n in filled for end in ("array_record", "npz")]
    assert sorted(file.name for file in (tmp_path / "out" / folder).iterdir()) == names
  assert store.splits["test"]["shards"] == len(filled)
  for documents in (store.split("test"), Store.open(tmp_path / "out").split("test")):
    texts = [
      store.tokenizer.decode(documents.read(i, 0, n)) for i, n in enumerate(documents.tokens)
    ]
    assert texts == [record.text for found in expected for record in found]
  assert store.summaries("test").names == store.split("test").names


def test_a_job_without_documents_is_not_done_again(tmp_path, quiet, monkeypatch):
  monkeypatch.setattr(base, "SMALLEST", 1500)
  spec = rows_with_few_held_out(tmp_path / "all.jsonl")
  module, out = sys.modules[prepare.__module__], tmp_path / "out"
  write_shards, done = module.write_shards, []

  def killed(jobs, *arguments):
    write_shards(jobs[:5], *arguments)
    raise KeyboardInterrupt

  def count(jobs, *arguments):
    done.append(len(jobs))
    write_shards(jobs, *arguments)

  monkeypatch.setattr(module, "write_shards", killed)
  with pytest.raises(KeyboardInterrupt):
    prepare(spec, out, "bytes", console=quiet)
  monkeypatch.setattr(module, "write_shards", count)
  prepare(spec, out, "bytes", console=quiet)
  prepare(spec, tmp_path / "whole", "bytes", console=quiet)
  assert done == [done[1] - 5, len(open_corpus(spec).parts)]
  assert files(out) == files(tmp_path / "whole")


def test_many_small_files_make_few_shards(tmp_path, quiet):
  (tmp_path / "in").mkdir()
  for i in range(300):
    (tmp_path / "in" / f"{i:03}.jsonl").write_text(json.dumps({"text": f"document {i}"}) + "\n")
  store = prepare(f"jsonl:{tmp_path}/in", tmp_path / "out", "bytes", console=quiet)
  assert [totals["shards"] for totals in store.splits.values()] == [1, 1, 1]
  assert sum(totals["documents"] for totals in store.splits.values()) == 300
  assert sum(len(content) for content in files(tmp_path / "out").values()) < 1_000_000


def test_stores_of_the_first_format_are_opened_but_not_continued(corpus, store, tmp_path, quiet):
  """An interrupted store may have shards of other parts than this version makes."""
  out = tmp_path / "out"
  shutil.copytree(store.folder, out)
  old = json.loads((out / "store.json").read_text()) | {"format": 1}
  del old["shards"], old["sha256"]
  (out / "store.json").write_text(json.dumps(old))
  plan = json.loads((out / "plan.json").read_text()) | {"format": 1}
  (out / "plan.json").write_text(json.dumps(plan))
  opened = prepare(str(corpus), out, "bytes", console=quiet)
  assert opened.fingerprint == store.fingerprint, "runs that were trained on it would not go on"
  for split in store.splits:
    assert opened.split(split).names == store.split(split).names
  (out / "store.json").unlink()
  with pytest.raises(
    InputError, match=r"made with other format \(1 there, 2 here\); choose another"
  ):
    prepare(str(corpus), out, "bytes", console=quiet)


def test_the_name_of_a_store_must_be_utf8(corpus, tmp_path, quiet):
  with pytest.raises(InputError, match="bytes of this name are not UTF-8; choose another --out"):
    prepare(str(corpus), tmp_path / "\udcff", "bytes", console=quiet)


def test_files_left_out_of_a_folder_are_reported(corpus, tmp_path):
  shutil.copytree(corpus, tmp_path / "in")
  (tmp_path / "in" / "thesis.docx").touch()
  console = Console(file=io.StringIO(), width=200)
  prepare(str(tmp_path / "in"), tmp_path / "out", "bytes", console=console)
  assert "left out: 1 files (1 .docx)\n" in console.file.getvalue()


@pytest.fixture
def usual_collection():
  """Garbage is collected as often as for users; other tests collect it less often, to be faster."""
  here = gc.get_threshold()
  gc.set_threshold(700, 10, 10)
  yield
  gc.set_threshold(*here)


@pytest.mark.slow
@pytest.mark.usefixtures("usual_collection")
def test_memory_does_not_grow_with_the_corpus(tmp_path, quiet, monkeypatch):
  monkeypatch.setattr(base, "SMALLEST", 50_000)
  monkeypatch.setattr(base, "LARGEST", 50_000)
  peaks = {}
  for turn, documents in ((0, 100), (0, 1600), (1, 100), (1, 1600)):  # turn 0 fills caches
    file = tmp_path / f"{documents}.jsonl"
    file.write_text("".join(json.dumps({"text": f"{i:04}" * 300}) + "\n" for i in range(documents)))
    tracemalloc.start()
    out = tmp_path / f"{documents} {turn}"
    prepare(f"jsonl:{file}", out, "bytes", workers=1, console=quiet)
    peaks[documents] = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
  small, large = peaks.values()
  assert large < 1.5 * small + 100_000, f"peaks of {peaks} bytes: something is held"


def test_summaries_are_stored_with_their_documents(tmp_path, quiet):
  rows = [{"text": "t" * i, "sum": f"of {i}" if i % 3 else None} for i in range(40)]
  for split in ("train", "validation", "test"):
    (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  spec = f"jsonl:{tmp_path}?summary=sum"
  store = prepare(spec, tmp_path / "out", "bytes", None, 5, quiet)
  documents, summaries = store.split("test"), Store.open(store.folder).summaries("test")
  assert documents.tokens.tolist() == list(range(5, 40)) and summaries.names == documents.names
  for i, size in enumerate(documents.tokens.tolist()):
    text = store.tokenizer.decode(summaries.read(i, 0, int(summaries.tokens[i])))
    assert text == (f"of {size}" if size % 3 else "")
  plain = prepare(f"jsonl:{tmp_path}", tmp_path / "plain", "bytes", None, 5, quiet)
  assert plain.fingerprint != store.fingerprint and not plain.has_summaries
  with pytest.raises(InputError, match=r"without summaries; .*\?summary=FIELD"):
    plain.summaries("test")


def test_sample_is_even_and_limited(tmp_path):
  corpus = write_corpus(tmp_path, documents=20, characters=2000)
  folder = open_corpus(str(corpus))
  texts = list(folder.sample(500))
  assert len(texts) == len(folder.train) and sum(map(len, texts)) <= 500
