import importlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from data_fakes import write_corpus
from rich.console import Console

from infini_jax.config import InputError
from infini_jax.data import Store, open_or_prepare, prepare
from infini_jax.data.prepare import sample
from infini_jax.data.sources import list_documents


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
  assert not [name for name in one if name.endswith(".array_record") and one[name] != two[name]]


SCRIPT = """
import importlib, os, signal, sys, time
from pathlib import Path
from infini_jax.data import prepare, workers

read_text = workers.read_text

def slow(document):
  time.sleep(0.05)
  if sys.argv[3] == "die" and document.name.endswith("1.txt"):
    os.kill(os.getpid(), signal.SIGKILL)
  return read_text(document)

workers.read_text = slow
workers.SPAWN_ABOVE = 0
importlib.import_module("infini_jax.data.prepare").SMALLEST = 20_000

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


def test_killed_run_goes_on_and_ends_as_if_nothing_had_happened(tmp_path, quiet, monkeypatch):
  # The module, which the package's function of the same name hides.
  monkeypatch.setattr(importlib.import_module("infini_jax.data.prepare"), "SMALLEST", 20_000)
  corpus = write_corpus(tmp_path / "corpus", documents=64, characters=5_000)
  out = tmp_path / "out"
  process = start(tmp_path, corpus, out, "slow")
  deadline = time.monotonic() + 60
  while not list(out.glob("train/*.npz")):
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < deadline, "no shard after a minute"
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  # Its workers hold the other end of the pipe: this returns when they have ended, too.
  process.communicate(timeout=30)
  with pytest.raises(InputError, match="not complete; run the same"):
    Store.open(out)
  finished = {file: file.stat().st_mtime_ns for file in out.glob("*/*.npz")}
  (out / "train" / "00009.array_record.host.1.tmp").write_bytes(b"half")

  prepare(str(corpus), out, "train:300", workers=1, console=quiet)
  assert {file: file.stat().st_mtime_ns for file in finished} == finished, "shards were redone"
  prepare(str(corpus), tmp_path / "whole", "train:300", workers=1, console=quiet)
  one, two = files(out), files(tmp_path / "whole")
  assert one.keys() == two.keys(), "an interrupted run must leave the same files"
  assert not [name for name in one if not name.endswith(".npz") and one[name] != two[name]]
  for split in ("train", "validation", "test"):
    a, b = Store.open(out).split(split), Store.open(tmp_path / "whole").split(split)
    assert a.names == b.names and np.array_equal(a.tokens, b.tokens)


def test_other_plan_in_the_same_folder(corpus, store, tmp_path, quiet):
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
    (out / "store.json").unlink(missing_ok=True)  # also where it is not complete


def test_attempt_that_failed_early_does_not_stand_in_the_way(corpus, tmp_path, quiet):
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
    with pytest.raises(InputError, match="is no store; choose another --out"):
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


def test_store_json_says_what_a_person_asks(store):
  description = json.loads((store.folder / "store.json").read_text())
  assert description["tokenizer"] == "bytes"
  assert description["splits"]["train"].keys() == {
    "documents",
    "tokens",
    "bytes",
    "words",
    "shards",
  }


def test_sample_is_even_and_limited(tmp_path):
  corpus = write_corpus(tmp_path, documents=20, characters=2000)
  documents = list_documents(str(corpus))["train"]
  texts = list(sample(documents, characters=500))
  assert len(texts) == len(documents) and sum(map(len, texts)) <= 500
