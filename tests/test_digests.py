"""Digests tell which files of a folder differ from what was written."""

import json

import pytest

from infini_jax import digests


@pytest.fixture
def folder(tmp_path):
  """A folder with digests."""
  (tmp_path / "sub").mkdir()
  for name in ("a", "sub/b", "sub/c"):
    (tmp_path / name).write_bytes(name.encode() * 1000)
  digests.seal(tmp_path)
  return tmp_path


def test_what_was_written_has_no_problems(folder):
  assert digests.is_sealed(folder) and digests.problems(folder) == []


@pytest.mark.parametrize(
  "change, found",
  [
    (lambda f: f.write_bytes(b"x" + f.read_bytes()[1:]), "other bytes than were written"),
    (lambda f: f.write_bytes(f.read_bytes() + b"\0"), "other bytes than were written"),
    (lambda f: f.write_bytes(b""), "other bytes than were written"),
    (lambda f: f.unlink(), "missing"),
  ],
)
def test_every_change_is_named(folder, change, found):
  change(folder / "sub" / "b")
  assert digests.problems(folder) == [f"sub/b: {found}"]
  assert digests.problems(folder, "a") == [], "only the files that are asked for"


def test_damaged_digests_are_a_problem(folder):
  content = json.loads((folder / digests.FILE).read_text())
  content["sha256"]["a"] = content["sha256"]["sub/b"]
  (folder / digests.FILE).write_text(json.dumps(content))
  assert digests.problems(folder) == ["digests.json: damaged"]
  (folder / digests.FILE).write_bytes(b"\xff{")
  assert digests.problems(folder) == ["digests.json: damaged"]


def test_one_line_names_the_first_problems():
  assert digests.in_one_line(["a", "b"]) == "a, b"
  assert digests.in_one_line(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more files"


def test_a_signed_content_is_recognized():
  content = digests.signed({"a": [1, 2.5], "b": {"c": None}})
  assert digests.matches(json.loads(json.dumps(content)))
  assert not digests.matches(content | {"a": [1, 2.5000001]})
  assert digests.matches({"a": 1}), "older programs signed nothing"


def test_a_short_hash_is_of_the_bytes_alone():
  """Runs and stores record these values, so they must not change."""
  assert digests.short_hash(b"bytes") == "e8b5b900f48084d3"
  assert digests.short_hash([b"by", b"", b"tes"]) == digests.short_hash(b"bytes")
  assert len(digests.short_hash(b"", size=4)) == 8 and len(digests.short_hash(b"", size=16)) == 32
