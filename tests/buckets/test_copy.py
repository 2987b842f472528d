"""A copy and its store: what each of them has after changes on one side, on both, and a kill."""

import os

import numpy as np
import pytest

from infini_jax import buckets
from infini_jax.buckets import copy as copies
from infini_jax.config import InputError

RUN = "s3://bucket/runs/a"


def put(file, content):
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_bytes(content)


def tree(folder):
  return {
    f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()
  }


def test_random_changes_arrive_on_another_machine(remote, rng):
  """The store has what the copy has after each flush, and another machine sees it."""
  copy = buckets.keep(RUN)
  copy.mkdir(parents=True)
  for turn in range(6):
    for _ in range(rng.integers(1, 5)):
      names = sorted(tree(copy))
      if names and rng.random() < 0.4:
        (copy / rng.choice(names)).unlink()
      else:
        put(copy / f"{rng.integers(3)}" / f"{rng.integers(4)}", rng.bytes(rng.integers(0, 50)))
    buckets.flush()
    wanted = tree(copy)
    found = remote.files("runs/a")
    found.pop(copies.MANIFEST, None)
    assert found == wanted, f"turn {turn}: the store has something else"
    kept = dict(buckets._copies)
    remote.machine(f"machine {turn}")
    assert tree(buckets.fetch(RUN)) == wanted
    remote.machine("here")
    buckets._copies.update(kept)


def test_a_process_that_was_killed_before_a_pass_loses_nothing(remote):
  put(buckets.keep(RUN) / "1", b"one")
  buckets.flush()
  put(buckets.fetch(RUN) / "2", b"two")
  remote.machine("here")  # killed, and started again on the same machine
  assert tree(buckets.keep(RUN)) == {"1": b"one", "2": b"two"}
  buckets.flush()
  assert remote.files("runs/a")["2"] == b"two"


@pytest.mark.parametrize("more", [b"", b"more"])
def test_a_process_that_was_killed_in_a_pass_continues(remote, monkeypatch, more):
  """What was written to the store is not in the record, and the file may have grown since."""
  copy = buckets.keep(RUN)
  put(copy / "metrics.jsonl", b"1")
  buckets.flush()
  put(copy / "metrics.jsonl", b"12")
  put(copy / "new", b"x")
  with monkeypatch.context() as patch:
    patch.setattr(copies.Copy, "_note", lambda *_: None)
    buckets.flush()
  (remote.root / "bucket" / "runs" / "a" / copies.MANIFEST).write_text(
    '{"files": {"metrics.jsonl": 1}}'
  )
  put(copy / "metrics.jsonl", b"12" + more)
  remote.machine("here")
  buckets.keep(RUN)
  buckets.flush()
  remote.machine("there")
  assert tree(buckets.fetch(RUN)) == {"metrics.jsonl": b"12" + more, "new": b"x"}


def test_half_of_a_pass_is_not_seen(remote, monkeypatch):
  copy = buckets.keep(RUN)
  put(copy / "checkpoints" / "1" / "x", b"one")
  buckets.flush()
  put(copy / "checkpoints" / "2" / "a", b"two")
  put(copy / "checkpoints" / "2" / "b", b"two")
  write, left = copies.Bucket.write, [1]

  def some(self, name, content):
    if not left:
      raise OSError("killed")
    left.pop()
    return write(self, name, content)

  monkeypatch.setattr(copies.Bucket, "write", some)
  with pytest.raises(OSError):
    buckets._copies[RUN].push()
  monkeypatch.setattr(copies.Bucket, "write", write)
  assert len(remote.files("runs/a/checkpoints/2")) == 1
  remote.machine("there")
  assert set(tree(buckets.fetch(RUN))) == {"checkpoints/1/x"}
  remote.machine("here")
  buckets.keep(RUN)
  buckets.flush()
  assert set(remote.files("runs/a/checkpoints/2")) == {"a", "b"}


def test_what_is_being_written_is_not_brought(remote):
  copy = buckets.keep(RUN)
  for name in ("1.orbax-checkpoint-tmp-7/x", "run.json.a1b2c3d4.tmp", "run.json"):
    put(copy / name, b"x")
  buckets.flush()
  assert set(remote.files("runs/a")) == {"run.json", copies.MANIFEST}


def test_two_machines_that_write_are_told_and_keep_what_they_have(remote):
  put(buckets.keep(RUN) / "run.json", b"1")
  buckets.flush()
  here = dict(buckets._copies)
  remote.machine("there")
  put(buckets.keep(RUN) / "run.json", b"22")
  buckets.flush()
  remote.machine("here")
  buckets._copies.update(here)
  own = here[RUN].path / "run.json"
  put(own, b"333")
  with pytest.raises(InputError, match="another machine writes run.json too"):
    buckets.flush()
  assert own.read_bytes() == b"333" and remote.files("runs/a")["run.json"] == b"22"
  remote.machine("here")
  with pytest.raises(InputError, match="has changed there and in the copy"):
    buckets.fetch(RUN)
  os.rename(here[RUN].path, here[RUN].path.with_name("aside"))
  assert tree(buckets.fetch(RUN)) == {"run.json": b"22"}


def test_two_machines_that_write_other_files_both_succeed(remote):
  """As a training on one machine, and an evaluation of it on another."""
  put(buckets.keep(RUN) / "metrics.jsonl", b"1")
  buckets.flush()
  here = dict(buckets._copies)
  remote.machine("there")
  put(buckets.keep(RUN) / "evaluation" / "results.json", b"2")
  buckets.flush()
  remote.machine("here")
  buckets._copies.update(here)
  put(here[RUN].path / "metrics.jsonl", b"11")
  buckets.flush()
  remote.machine("third")
  wanted = {"metrics.jsonl": b"11", "evaluation/results.json": b"2"}
  assert tree(buckets.fetch(RUN)) == wanted


def test_a_fetch_that_was_killed_begins_again(remote, monkeypatch):
  for name in "abc":
    put(remote.root / "bucket" / "corpus" / name, name.encode() * 1000)
  download = copies.Bucket.download

  def killed(self, name, file):
    if name == "b":
      raise KeyboardInterrupt
    download(self, name, file)

  monkeypatch.setattr(copies.Bucket, "download", killed)
  with pytest.raises(KeyboardInterrupt):
    buckets.fetch("s3://bucket/corpus")
  monkeypatch.setattr(copies.Bucket, "download", download)
  remote.machine("here")
  assert set(tree(buckets.fetch("s3://bucket/corpus"))) == set("abc")


def test_only_what_has_changed_is_fetched_again(remote, monkeypatch):
  for name in "abc":
    put(remote.root / "bucket" / "corpus" / name, name.encode())
  buckets.fetch("s3://bucket/corpus")
  put(remote.root / "bucket" / "corpus" / "b", b"new")
  (remote.root / "bucket" / "corpus" / "c").unlink()
  remote.machine("here")
  asked, download = [], copies.Bucket.download
  monkeypatch.setattr(
    copies.Bucket, "download", lambda self, n, f: (asked.append(n), download(self, n, f))
  )
  assert tree(buckets.fetch("s3://bucket/corpus")) == {"a": b"a", "b": b"new"}
  assert asked == ["b"]


def test_a_file_inside_of_a_folder_and_a_pattern(remote):
  for name in ("a.jsonl", "b.jsonl", "c.txt"):
    put(remote.root / "bucket" / "corpus" / name, name.encode())
  assert set(tree(buckets.fetch("s3://bucket/corpus", "*.jsonl"))) == {"a.jsonl", "b.jsonl"}
  assert buckets.fetch("s3://bucket/corpus/c.txt").read_bytes() == b"c.txt"
  assert set(tree(buckets.fetch("s3://bucket/corpus/"))) == {"a.jsonl", "b.jsonl", "c.txt"}


@pytest.mark.parametrize("url", ["s3://bucket", "s3:///x", "s3://bucket/../x", "gs://bucket//x"])
def test_names_that_lead_elsewhere_are_refused(remote, url):
  with pytest.raises(InputError, match="not a possible name; give"):
    buckets.fetch(url)


def test_a_damaged_manifest_is_named(remote):
  put(remote.root / "bucket" / "runs" / "a" / copies.MANIFEST, np.random.bytes(9))
  with pytest.raises(InputError, match="damaged; remove it"):
    buckets.fetch(RUN)
