"""The check of a prepared store before it is marked complete."""

from pathlib import Path

import numpy as np
from rich.console import Console

from infini_jax.config import InputError
from infini_jax.data.store.shards import Shard
from infini_jax.data.store.store import Documents
from infini_jax.data.store.workers import Job
from infini_jax.data.tokenizers import Tokenizer, encode_document

COMPARED = 16  # about the number of corpus parts of which one document is compared


def verify(
  out: Path, jobs: list[Job], tokenizer: Tokenizer, dtype: str, min_tokens: int, console: Console
) -> None:
  """Checks that all shards are complete, and that some documents are equal to those of the corpus.

  Args:
    out: the store, with all shards written.
    jobs: the jobs that wrote the shards.
    tokenizer: the tokenizer of the store.
    dtype: the type of the ids on disk.
    min_tokens: shorter documents were left out.
    console: for the result.

  Raises:
    InputError: a shard is damaged, or the corpus changed while it was prepared.
  """
  shards = [shard for job in jobs for shard in job.shards(out) if shard.totals()[0]]
  same: list[bool] = []
  with console.status(f"verifying {len(shards):,} shards"):
    for shard in shards:
      Documents({"": [shard]}, dtype).check()
    for job in jobs[:: max(1, len(jobs) // COMPARED)]:
      same += _compare(out, job, tokenizer, dtype, min_tokens)
  console.print(
    f"verified: {len(shards):,} shards are whole, {len(same)} documents are as in the corpus",
    highlight=False,
  )
  if not all(same):
    console.print(
      f"the tokenizer drops or changes characters, in {same.count(False)} of these: bits per byte "
      f"counts the bytes of the corpus, so do not compare it with that of another tokenizer",
      highlight=False,
    )


def _compare(out: Path, job: Job, tokenizer: Tokenizer, dtype: str, min_tokens: int) -> list[bool]:
  """Compares the first document of a corpus part with the store.

  Returns:
    Whether decoding its tokens gives its text; empty if the part has no document.
  """
  for split, name, text, _ in job.part.read(job.skips):
    try:
      ids = encode_document(tokenizer, text, name)
    except InputError:
      if job.skips:
        continue
      raise
    if len(ids) < max(1, min_tokens):
      continue
    documents = Documents({"": [Shard(out / split, job.numbers[split])]}, dtype)
    found = documents.read(0, 0, int(documents.tokens[0])) if len(documents) else np.zeros(0)
    if documents.names[:1] != [name] or not np.array_equal(found, ids):
      raise InputError(
        f"{out}: its text of {name} is not that of the corpus, which has changed since; "
        f"delete the store, prepare it again"
      )
    return [tokenizer.decode(ids) == text]
  return []
