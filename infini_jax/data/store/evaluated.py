"""The corpus that an evaluation reads: that of the run or any other, in the tokens of the run."""

import dataclasses
import re
from pathlib import Path

from rich.console import Console

from infini_jax.config import InputError
from infini_jax.data.sources import Corpus, open_corpus
from infini_jax.data.sources.base import MB, digest
from infini_jax.data.sources.specs import cut, folder_of, plain
from infini_jax.data.store.mixture import PREFIX, open_mixture, tokenizer_spec
from infini_jax.data.store.prepare import prepare
from infini_jax.data.store.store import Store, is_store
from infini_jax.data.store.work import read_plan
from infini_jax.data.tokenizers import OWN, Tokenizer
from infini_jax.paths import expand

READ = 256 * MB  # the most bytes of a corpus whose whole text is hashed to find changes
NAME = 40  # the most characters of a corpus' name in the name of its folder


def open_evaluated(
  path: str, own: Path, others: Path, console: Console, tokenizer: Tokenizer, setting: str
) -> Store:
  """Opens the store or mixture at `path`, or encodes the corpus at `path`.

  Another corpus than that of the run gets a store of its own. The name of this store depends on the
  corpus and on its text. So a changed text is encoded again, and the store that a run was trained
  on is never replaced.

  Args:
    path: as `config.data.path`, or a single file of text.
    own: the store in the run's folder, if the run prepared its corpus itself.
    others: the folder for the stores of other corpora.
    console: for progress.
    tokenizer: the tokenizer of the run.
    setting: the setting that names the corpus, for errors.

  Raises:
    InputError: there is no such text, it cannot be read, or a store has other tokens.
  """
  path = path if path.startswith(PREFIX) else expand(path)
  if not path.startswith(PREFIX) and not (path and is_store(folder_of(path))):
    return _encoded(path, own, others, console, tokenizer)
  store = open_mixture(path) if path.startswith(PREFIX) else Store.open(folder_of(path))
  if store.tokenizer.fingerprint != tokenizer.fingerprint:
    raise InputError(
      f"{setting}={path!r} has other tokens than the run: name the text itself (such as "
      f"{store.source!r}), which is then encoded in the run's tokens, or prepare it with "
      f"--tokenizer={tokenizer_spec(own.with_name('tokenizer'))}"
    )
  return store


def short_name(path: str) -> str:
  """The name of a corpus without its path: the name of the file, the folder or the data set."""
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
  """A corpus' name in a form that can be part of a folder's name."""
  return re.sub(r"[^\w.+-]+", "_", name)[:NAME].strip("._")


def _encoded(path: str, own: Path, others: Path, console: Console, tokenizer: Tokenizer) -> Store:
  try:
    corpus = open_corpus(path, train=False)
  except InputError as error:
    if not _is_complete(own) or (kept := Store.open(own)).source != path:
      raise
    why = str(error).partition(";")[0]  # without its remedy: there is a store of this corpus
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
  """The corpus with a fingerprint of all its text, unless it has more than `READ` bytes."""
  if sum(part.size for part in corpus.parts) > READ:
    return corpus
  records = (record for part in corpus.parts for record in part.read(corpus.skips))
  texts = ("\0".join(record) for record in records)
  return dataclasses.replace(corpus, fingerprint=digest([corpus.fingerprint, *texts]))


def _holds(folder: Path, corpus: Corpus, tokenizer: Tokenizer) -> bool:
  """Whether a store holds all documents of this corpus, in the tokens of this tokenizer."""
  if not _is_complete(folder):
    return False
  plan = read_plan(folder)
  same_text = plan.get("documents") == corpus.fingerprint and plan.get("min_tokens") == 1
  return same_text and Store.open(folder).tokenizer.fingerprint == tokenizer.fingerprint


def _is_complete(folder: Path) -> bool:
  return (folder / "store.json").exists()
