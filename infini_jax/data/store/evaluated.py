"""The text that an evaluation reads: the run's own or any other, in the tokens of the run."""

import dataclasses
import re
from pathlib import Path

from rich.console import Console

from infini_jax.config import InputError
from infini_jax.data.sources import Corpus, open_corpus
from infini_jax.data.sources.base import MB, digest
from infini_jax.data.sources.specs import cut, folder_of, plain
from infini_jax.data.store.mixture import PREFIX, open_mixture, tokenizer_spec
from infini_jax.data.store.prepare import prepare, read_plan
from infini_jax.data.store.store import Store, is_store
from infini_jax.data.tokenizers import OWN, Tokenizer
from infini_jax.paths import expand

READ = 256 * MB  # of text, at most, of which every letter is looked at for changes
NAME = 40  # characters of a corpus' name in that of a folder


def open_evaluated(
  path: str, own: Path, others: Path, console: Console, tokenizer: Tokenizer, setting: str
) -> Store:
  """Opens the store or mixture at `path`, or encodes the corpus at `path`.

  A corpus that is not the run's own gets a store of its own, named after it and its text: a text
  that has changed is encoded anew, and nothing that a run was trained on is written over.

  Args:
    path: as `config.data.path`, or a single file of text.
    own: the store of the run, where that prepared its corpus itself.
    others: the folder of such stores of other corpora.
    console: for progress.
    tokenizer: the run's.
    setting: what names the corpus, for errors.

  Raises:
    InputError: there is no such text, it cannot be read, or a store is in other tokens.
  """
  path = expand(path)
  if not path.startswith(PREFIX) and not (path and is_store(folder_of(path))):
    return _encoded(path, own, others, console, tokenizer)
  store = open_mixture(path) if path.startswith(PREFIX) else Store.open(folder_of(path))
  if store.tokenizer.fingerprint != tokenizer.fingerprint:
    raise InputError(
      f"{setting}={path!r} is in other tokens than the run knows: name the text itself, which is "
      f"then encoded as the run does ({store.source!r}, say), or prepare it with "
      f"--tokenizer={tokenizer_spec(own.with_name('tokenizer'))}"
    )
  return store


def short_name(path: str) -> str:
  """The name of a corpus without its place: that of the file, the folder or the data set."""
  if path.startswith(PREFIX):
    stores = cut(path.removeprefix(PREFIX), ",")
    return "+".join(short_name(store.rpartition("=")[0]) for store in stores)
  kind, colon, rest = path.partition(":")
  if not (colon and kind.isalpha()):
    return folder_of(path).absolute().name or path
  place = cut(rest, "?", 1)[0]
  parts = (part for part in reversed(Path(place).parts) if not re.search(r"(?<!\\)[*?[]", part))
  return plain(next(parts, path))


def file_name(name: str) -> str:
  """A corpus' name as a part of that of a folder."""
  return re.sub(r"[^\w.+-]+", "_", name)[:NAME].strip("._")


def _encoded(path: str, own: Path, others: Path, console: Console, tokenizer: Tokenizer) -> Store:
  try:
    corpus = open_corpus(path, train=False)
  except InputError as error:
    if not _is_complete(own) or (kept := Store.open(own)).source != path:
      raise
    why = str(error).partition(";")[0]  # its remedy is for those who have no store of it
    console.print(f"{why}; the run's own store of it is read", markup=False, soft_wrap=True)
    return kept
  if _holds(own, corpus, tokenizer):
    return Store.open(own)
  corpus = _looked_at(corpus)
  folder = others / "-".join(
    filter(None, [file_name(short_name(path)), digest([corpus.fingerprint, tokenizer.fingerprint])])
  )
  return prepare(
    corpus, folder, OWN, console=console, own=tokenizer, remedy="move it away", train=False
  )


def _looked_at(corpus: Corpus) -> Corpus:
  """The corpus with a fingerprint of all its text, unless that would take long to read."""
  if sum(part.size for part in corpus.parts) > READ:
    return corpus
  records = (record for part in corpus.parts for record in part.read())
  texts = ("\0".join(record) for record in records)
  return dataclasses.replace(corpus, fingerprint=digest([corpus.fingerprint, *texts]))


def _holds(folder: Path, corpus: Corpus, tokenizer: Tokenizer) -> bool:
  """Whether a store is of that text, all of it, in those tokens."""
  if not _is_complete(folder):
    return False
  plan = read_plan(folder)
  same_text = plan.get("documents") == corpus.fingerprint and plan.get("min_tokens") == 1
  return same_text and Store.open(folder).tokenizer.fingerprint == tokenizer.fingerprint


def _is_complete(folder: Path) -> bool:
  return (folder / "store.json").exists()
