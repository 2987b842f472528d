"""What a preparation prints about a complete store: what was left out, and two tables."""

from collections.abc import Iterator

import numpy as np
from rich.table import Table

from infini_jax.config import SPLITS
from infini_jax.data.store.store import Store


def table(store: Store) -> Table:
  """A table of the content of a store, split by split."""
  result = Table()
  result.add_column("split")
  for column in ("documents", "tokens", "bytes", "bytes per token", "characters per token"):
    result.add_column(column, justify="right")
  for split, totals in store.splits.items():
    numbers = [f"{totals[name]:,}" for name in ("documents", "tokens", "bytes")]
    each = [totals[name] / max(1, totals["tokens"]) for name in ("bytes", "characters")]
    result.add_row(split, *numbers, *(f"{value:.2f}" for value in each))
  return result


def lengths(store: Store) -> Table:
  """A table of the number of documents by length, in buckets that double."""
  counts = {split: _histogram(store, split) for split in SPLITS}
  filled = np.flatnonzero(sum(counts.values()))
  result = Table()
  result.add_column("tokens of a document", justify="right")
  for split in SPLITS:
    result.add_column(split, justify="right")
  for bucket in range(filled.min(), filled.max() + 1):
    rows = [f"{counts[split][bucket]:,}" for split in SPLITS]
    result.add_row(f"{2**bucket:,} to {2 ** (bucket + 1) - 1:,}", *rows)
  return result


def _histogram(store: Store, split: str) -> np.ndarray:
  """Item i: the number of documents with 2**i to 2**(i+1) - 1 tokens; int64, shape (64,)."""
  total = np.zeros(64, np.int64)
  for shard in store.shards(split):
    tokens = shard.counts()[0]
    total += np.bincount(np.frexp(tokens)[1] - 1, minlength=64)  # exact below 2**53
  return total


def left_out(store: Store, min_tokens: int, first: dict[str, str]) -> Iterator[str]:
  """Lines about dropped documents, and about empty splits.

  Args:
    store: the store that was written.
    min_tokens: shorter documents were dropped.
    first: about the first document of each kind of `FIRST`.
  """
  empty, short, bad = (
    sum(totals[kind] for totals in store.splits.values()) for kind in ("empty", "short", "bad")
  )
  if bad:
    yield f"left out: {bad:,} documents that cannot be read, the first: {first['bad']}"
  if empty:
    name = first["empty"]
    shown = name if name.isprintable() else repr(name)
    yield f"left out: {empty:,} empty documents, such as {shown}; if they are not, name their field"
  if short:
    yield f"left out: {short:,} documents of fewer than {min_tokens:,} tokens"
  for split in (split for split, totals in store.splits.items() if not totals["documents"]):
    yield f"{split}: has no documents; to have some, add text or name files {split}"
