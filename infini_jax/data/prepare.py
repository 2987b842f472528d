"""Tokenize a corpus once, in parallel, into a token store; interrupted, go on where it stopped."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infini_jax.config import SPLITS, InputError
from infini_jax.data.sources import Document, list_documents, read_text
from infini_jax.data.store import (
  FORMAT,
  Store,
  has_shard,
  is_store,
  shard_totals,
  write_json,
  write_store,
)
from infini_jax.data.tokenizers import (
  SentencePieceTokenizer,
  Tokenizer,
  load_saved,
  load_tokenizer,
  train_sentencepiece,
  train_size,
)
from infini_jax.data.workers import MB, Shard, write_shards

SAMPLE = 10 * MB  # characters that a tokenizer is trained on
SMALLEST, LARGEST = 2 * MB, 64 * MB  # bytes of text in a shard


def prepare(
  path: str,
  out: Path,
  tokenizer: str,
  workers: int | None = None,
  min_tokens: int = 1,
  console: Console | None = None,
) -> Store:
  """Tokenizes a corpus into a store; a store that is complete is opened, an interrupted one ended.

  Args:
    path: a folder of text or `python-stdlib`, as `list_documents` takes it.
    out: the folder of the store.
    tokenizer: bytes, train:SIZE, sentencepiece:FILE or huggingface:FILE.
    workers: processes; by default as many as there are cores. The store does not depend on it.
    min_tokens: documents with fewer tokens are dropped; empty ones always are.
    console: where progress and the closing table go.

  Raises:
    InputError: a wrong corpus or tokenizer; `out` holds something else; no training tokens.
  """
  console = console or Console()
  out = Path(out)
  splits = list_documents(path)
  sizes = _sizes(splits)
  plan = _plan(splits, sizes, tokenizer, min_tokens)
  _claim(out, plan)
  if (out / "store.json").exists():
    return Store.open(out)
  ready = _tokenizer(out, tokenizer, splits["train"])
  dtype = "<u2" if ready.size <= 2**16 else "<u4"
  shards = _shards(splits, sizes)
  todo = [shard for shard in shards if not has_shard(out / shard.split, shard.number)]
  write_shards(todo, out, ready, dtype, min_tokens, workers, console)
  description = {
    "source": path,
    "tokenizer": tokenizer,
    "tokenizer_fingerprint": ready.fingerprint,
    "dtype": dtype,
    "fingerprint": _hash([*map(str, plan.values()), ready.fingerprint]),
  }
  counts = {split: sum(shard.split == split for shard in shards) for split in SPLITS}
  if not any(shard_totals(out / "train", number)[1] for number in range(counts["train"])):
    raise InputError(f"corpus {path!r}: no training tokens (min_tokens={min_tokens}); add text")
  store = write_store(out, description, counts)
  console.print(f"{out} ({tokenizer})", markup=False, soft_wrap=True)
  console.print(table(store))
  return store


def open_or_prepare(
  path: str, tokenizer: str, cache: Path, console: Console | None = None
) -> Store:
  """Opens the store at `path`, or prepares the corpus at `path` into `cache`.

  Raises:
    InputError: as `prepare`; or the store at `path` was made with another tokenizer.
  """
  if not path or not is_store(Path(path)):
    return prepare(path, cache, tokenizer, console=console)
  store = Store.open(path)
  if store.spec != tokenizer:
    raise InputError(
      f"store {path!r} was made with the tokenizer {store.spec!r}, not {tokenizer!r}: "
      f"set config.data.tokenizer={store.spec!r}"
    )
  return store


def table(store: Store) -> Table:
  """What a store holds, split by split."""
  result = Table()
  result.add_column("split")
  for column in ("documents", "tokens", "bytes", "bytes per token"):
    result.add_column(column, justify="right")
  for split, totals in store.splits.items():
    numbers = [f"{totals[name]:,}" for name in ("documents", "tokens", "bytes")]
    result.add_row(split, *numbers, f"{totals['bytes'] / max(1, totals['tokens']):.2f}")
  return result


def _sizes(splits: dict[str, list[Document]]) -> dict[str, list[int]]:
  return {
    split: [os.stat(document.path).st_size for document in documents]
    for split, documents in splits.items()
  }


def _plan(
  splits: dict[str, list[Document]], sizes: dict[str, list[int]], tokenizer: str, min_tokens: int
) -> dict[str, Any]:
  """What a store is made from. Where the corpus lies is not part of it: a corpus may move.

  Names and sizes of all documents are compared, and the content of a few: to read all of a large
  corpus again would take as long as to tokenize it.
  """
  trained = train_size(tokenizer) is not None
  listing: list[str] = []
  for split in SPLITS:
    for document, size in zip(splits[split], sizes[split], strict=True):
      listing.append(f"{split}\0{document.name}\0{size}")
    some = splits[split][:: max(1, len(splits[split]) // 16)]
    listing += [_hash([read_text(document)]) for document in some]
  return {
    "format": FORMAT,
    "documents": _hash(listing),
    "tokenizer": tokenizer if trained else load_tokenizer(tokenizer).fingerprint,
    "min_tokens": max(1, min_tokens),
  }


def _claim(out: Path, plan: dict[str, Any]) -> None:
  """Marks `out` as the store of this plan, or checks that it is."""
  if out.is_dir() and is_store(out):
    found = _read_plan(out)
    differing = next((name for name in plan if found.get(name) != plan[name]), None)
    if differing is None:
      return
    if any(out.glob("*/*.npz")) or (out / "store.json").exists():
      raise InputError(
        f"{out}: a store made with other {differing} ({found.get(differing)} there, "
        f"{plan[differing]} here); choose another --out, or delete this one"
      )
    for file in out.glob("tokenizer.*"):  # of an attempt that ended before it had tokenized
      file.unlink()
    return write_json(out / "plan.json", plan)
  # Another host may be about to write the same plan: its temporary file is no one's work.
  if out.exists() and (not out.is_dir() or any(f.suffix != ".tmp" for f in out.iterdir())):
    raise InputError(f"{out}: is not empty and is no store; choose another --out")
  out.mkdir(parents=True, exist_ok=True)
  write_json(out / "plan.json", plan)


def _read_plan(out: Path) -> dict[str, Any]:
  try:
    return json.loads((out / "plan.json").read_text("utf-8"))
  except (OSError, ValueError):
    return {}


def _tokenizer(out: Path, spec: str, train: list[Document]) -> Tokenizer:
  """The tokenizer, saved in `out`: the same after an interruption, also where it was trained."""
  size = train_size(spec)
  if size is None:
    load_tokenizer(spec).save(out)
  elif not (out / SentencePieceTokenizer.file).exists():
    train_sentencepiece(sample(train), size, out / SentencePieceTokenizer.file)
  return load_saved(out)


def sample(documents: list[Document], characters: int = SAMPLE) -> Iterator[str]:
  """About as many characters, from the middles of documents taken evenly over the list."""
  chosen = documents[:: max(1, len(documents) // 2048)]
  share = max(1, characters // max(1, len(chosen)))
  for document in chosen:
    text = read_text(document)
    start = max(0, (len(text) - share) // 2)
    yield text[start : start + share]


def _shards(splits: dict[str, list[Document]], sizes: dict[str, list[int]]) -> list[Shard]:
  """Cuts each split into shards of about equal bytes, the same whatever the workers."""
  total = sum(map(sum, sizes.values()))
  target = max(SMALLEST, min(LARGEST, total // 64))
  shards = []
  for split in SPLITS:
    number, documents, filled = 0, [], 0
    for document, size in zip(splits[split], sizes[split], strict=True):
      documents.append(document)
      filled += size
      if filled >= target:
        shards.append(Shard(split, number, documents, filled))
        number, documents, filled = number + 1, [], 0
    if documents:
      shards.append(Shard(split, number, documents, filled))
  return shards


def _hash(parts: Iterable[str]) -> str:
  digest = hashlib.blake2b(digest_size=8)
  for part in parts:
    digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
  return digest.hexdigest()
