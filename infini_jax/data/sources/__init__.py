"""Corpora of several kinds: a folder, JSON lines, Parquet, TensorFlow and Hugging Face data sets.

`open_corpus` finds the files of a corpus and divides them into parts. A part reads its documents
one at a time. So only the list of parts grows with the corpus.
"""

import difflib
from collections.abc import Callable
from pathlib import Path

from infini_jax.config import InputError
from infini_jax.data.sources import folders, huggingface, jsonl, parquet, tfds
from infini_jax.data.sources.base import Corpus, CorpusPart, Record
from infini_jax.data.sources.folders import Document, list_documents, read_text
from infini_jax.data.sources.specs import folder_of

__all__ = [
  "KINDS",
  "Corpus",
  "CorpusPart",
  "Document",
  "Record",
  "list_documents",
  "open_corpus",
  "read_text",
]

KINDS: dict[str, Callable[[str, bool], Corpus]] = {
  "text": folders.open_text,
  "jsonl": jsonl.open_jsonl,
  "parquet": parquet.open_parquet,
  "tfds": tfds.open_tfds,
  "hf": huggingface.open_huggingface,
}


def open_corpus(spec: str, train: bool = True) -> Corpus:
  """Finds the corpus of a spec; the same corpus always gives the same parts.

  Args:
    spec: a folder, `python-stdlib`, text:DIR, jsonl:FILES, parquet:FILES, tfds:NAME or hf:NAME,
      as docs/data.md says. All kinds but folders take options, such as `jsonl:FILES?text=content`.
    train: whether there must be text to train on. False also accepts a single file, a folder of
      one or two files, and files that are all named for a test.

  Raises:
    InputError: an unknown kind, or an error of that kind of corpus.
  """
  kind, colon, _ = spec.partition(":")
  if colon and kind in KINDS:
    return KINDS[kind](spec, train)
  if kind == "mix":
    raise InputError(
      f"corpus {spec!r}: a mixture is of prepared stores; set config.data.path to it"
    )
  if colon and kind.isalpha() and not Path(spec).exists():
    close = difflib.get_close_matches(kind, KINDS, 1, 0.5)
    raise InputError(
      f"corpus {spec!r}: there is no kind {kind!r}"
      + (f", did you mean {close[0]!r}?" if close else ";")
      + f" choose {', '.join(f'{name}:...' for name in KINDS)} or a folder"
    )
  return folders.open_folder(spec, str(folder_of(spec)) if spec else spec, train)
