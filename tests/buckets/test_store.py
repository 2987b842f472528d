"""Answers of an object store become one line that says what to do."""

import sys

import pytest

from infini_jax.buckets.store import Bucket
from infini_jax.config import InputError


def bucket(url="s3://bucket/run"):
  scheme, name = url.split("://")
  return Bucket(url, scheme, *name.split("/", 1))


@pytest.mark.parametrize(
  "text, told",
  [
    ("404 Not Found: <Code>NoSuchBucket</Code>", "no such bucket"),
    ("403: <Code>AccessDenied</Code>", "set AWS_ACCESS_KEY_ID"),
    ("no credential found in any provider", "access is refused"),
    ("Unable to open service account file from none.json", "access is refused"),
  ],
)
def test_what_the_user_must_mend(remote, monkeypatch, text, told):
  import obstore

  made = bucket()

  def fails(*_):
    raise obstore.exceptions.GenericError(text)

  monkeypatch.setattr(obstore, "list", fails)
  with pytest.raises(InputError, match=told) as error:
    made.versions()
  assert str(error.value).startswith("s3://bucket/run: ") and "\n" not in str(error.value)


def test_a_store_that_does_not_answer_is_no_input_error(remote, monkeypatch):
  import obstore

  def fails(*_):
    raise obstore.exceptions.GenericError("connection reset\n\nDebug source: many lines")

  made = bucket()
  monkeypatch.setattr(obstore, "list", fails)
  with pytest.raises(OSError, match="does not answer .connection reset.") as error:
    made.versions()
  assert not isinstance(error.value, InputError)


def test_without_the_package_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "obstore", None)
  with pytest.raises(
    InputError, match=r"needs the package obstore: pip install 'infini-jax\[objects\]'"
  ):
    bucket()


def test_objects_that_are_no_files(remote):
  (remote.root / "bucket" / "run" / "a").mkdir(parents=True)
  (remote.root / "bucket" / "run" / "a" / "x").write_text("1")
  assert set(bucket().versions()) == {"a/x"}
  assert set(bucket("s3://bucket/run/a/x").versions()) == {""}
  assert bucket("s3://bucket/nothing").versions() == {}
