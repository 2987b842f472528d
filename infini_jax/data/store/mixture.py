"""Several prepared stores as one corpus, each with a share of the training tokens.

Its spec is `mix:STORE=WEIGHT,STORE=WEIGHT`, such as `mix:stores/books=2,stores/code=1`: two tokens
of books for one token of code, for all sizes of the stores and of their documents.
"""

import math
import os
from pathlib import Path

from infini_jax.config import SPLITS, InputError
from infini_jax.data.sources.base import digest
from infini_jax.data.sources.specs import advice, cut, plain
from infini_jax.data.store.shards import TOTALS
from infini_jax.data.store.store import Documents, Store, is_store
from infini_jax.paths import expand

PREFIX = "mix:"


class Mixture(Store):
  """Stores with the same tokenizer. Training mixes them; evaluation reads the documents of all.

  Args:
    spec: the spec that it was opened with.
    stores: the stores, by name.
    weights: the weight of each store's tokens, by the same names.
  """

  def __init__(self, spec: str, stores: dict[str, Store], weights: dict[str, float]):
    first, total = next(iter(stores.values())), sum(weights.values())
    self._stores = stores
    self.weights = tuple(weights[name] / total for name in stores)
    parts = zip(stores.values(), self.weights, strict=True)
    splits = {
      split: {name: sum(s.splits[split].get(name, 0) for s in stores.values()) for name in TOTALS}
      for split in SPLITS
    }
    description = {
      "source": spec,
      "tokenizer": first.spec,
      "fingerprint": digest([f"{store.fingerprint} {weight!r}" for store, weight in parts]),
      "splits": splits,
      "dtype": first.dtype,
    }
    super().__init__(first.folder, description)

  @property
  def names(self) -> list[str]:
    """The paths of the stores, in the order of the weights."""
    return list(self._stores)

  @property
  def text(self) -> str:
    """A short hash of the documents of all stores, without the weights."""
    return digest([store.text for store in self._stores.values()])

  def split(self, name: str, document: str = "") -> Documents:
    """The documents of a split, of all stores in turn; or only the document of that name.

    Raises:
      InputError: there is no such split, or an index is missing or damaged.
    """
    shards = {source: store.shards(name) for source, store in self._stores.items()}
    return Documents(shards, self.dtype, document)


def open_mixture(spec: str, tokenizer: str | None = None) -> Mixture:
  """Opens the stores of a mixture.

  Args:
    spec: `mix:STORE=WEIGHT,...`.
    tokenizer: the tokenizer's spec in the config, which one of the stores must have; None: any.

  Raises:
    InputError: the spec is wrong; a store is missing, or has other tokens than the first.
  """
  stores: dict[str, Store] = {}
  weights: dict[str, float] = {}
  for part in cut(spec.removeprefix(PREFIX), ","):
    written, _, weight = part.strip().rpartition("=")
    path = expand(plain(written))
    try:
      weights[path] = float(weight)
    except ValueError:
      weights[path] = math.nan
    if not path or not 0 < weights[path] < math.inf:
      raise InputError(
        f"config.data.path={spec!r}: {part!r} is not a prepared store with a weight above 0, such "
        f"as mix:stores/books=2,stores/code=1{advice(spec)}"
      )
    if os.path.realpath(path) in map(os.path.realpath, (s.folder for s in stores.values())):
      raise InputError(f"config.data.path={spec!r}: {path!r} is named twice; name it once")
    if not is_store(Path(path)):
      raise InputError(
        f"config.data.path={spec!r}: {path}: not a token store; make one with `infini-jax prepare`"
        f"{advice(written)}"
      )
    stores[path] = Store.open(path)
  first, *others = stores
  own = stores[first].tokenizer
  for path in others:
    if stores[path].tokenizer.fingerprint != own.fingerprint:
      raise InputError(
        f"config.data.path={spec!r}: {path!r} has other tokens than {first!r}; prepare it with "
        f"--tokenizer={tokenizer_spec(stores[first].folder)}"
      )
  if tokenizer not in (None, *(store.spec for store in stores.values())):
    raise InputError(
      f"config.data.path={spec!r} was made with the tokenizer {stores[first].spec!r}, not "
      f"{tokenizer!r}: set config.data.tokenizer={stores[first].spec!r}"
    )
  return Mixture(spec, stores, weights)


def tokenizer_spec(folder: Path) -> str:
  """The spec, for `prepare`, of the tokenizer that a store or a run keeps in this folder."""
  for kind, name in (("sentencepiece", "tokenizer.model"), ("huggingface", "tokenizer.json")):
    if (file := folder / name).exists():
      return f"{kind}:{file}"
  return "bytes"
