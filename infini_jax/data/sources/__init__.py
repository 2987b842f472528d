"""Corpora by one spec: a folder, JSON lines, Parquet, TensorFlow Datasets, Hugging Face datasets.

`open_corpus` finds out what there is and cuts it into parts; a part reads its documents one at a
time, so that nothing grows with the corpus but the list of parts.
"""

import difflib
from pathlib import Path

from infini_jax.config import InputError
from infini_jax.data.sources import folders, huggingface, jsonl, parquet, tfds
from infini_jax.data.sources.base import Corpus, Part, Record
from infini_jax.data.sources.folders import Document, list_documents, read_text
from infini_jax.data.sources.specs import folder_of

__all__ = [
  "KINDS",
  "Corpus",
  "Document",
  "Part",
  "Record",
  "list_documents",
  "open_corpus",
  "read_text",
]

KINDS = {
  "text": folders.open_text,
  "jsonl": jsonl.open_jsonl,
  "parquet": parquet.open_parquet,
  "tfds": tfds.open_tfds,
  "hf": huggingface.open_huggingface,
}


def open_corpus(spec: str, train: bool = True) -> Corpus:
  """Finds a corpus; the same corpus always gives the same parts.

  Args:
    spec: a folder, `python-stdlib`, text:DIR, jsonl:FILES, parquet:FILES, tfds:NAME or hf:NAME,
      as docs/data.md says; all but folders take options, such as `jsonl:FILES?text=content`.
    train: whether it must have text to train on. An evaluation can do without: a single file, a
      folder of one or two, or files that are all named for a test will do.

  Raises:
    InputError: another kind, or what the kind's own file says.
  """
  kind, colon, _ = spec.partition(":")
  if colon and kind in KINDS:
    return KINDS[kind](spec, train)
  if kind == "mix":
    raise InputError(
      f"corpus {spec!r}: a mixture is of stores that were prepared; give it to config.data.path"
    )
  if colon and kind.isalpha() and not Path(spec).exists():
    close = difflib.get_close_matches(kind, KINDS, 1, 0.5)
    raise InputError(
      f"corpus {spec!r}: there is no kind {kind!r}"
      + (f", did you mean {close[0]!r}?" if close else ";")
      + f" choose {', '.join(f'{name}:...' for name in KINDS)} or a folder"
    )
  return folders.open_folder(spec, str(folder_of(spec)) if spec else spec, train)
