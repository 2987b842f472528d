"""Several prepared stores as one corpus, each with its share of the tokens that are trained on.

A mixture is named `mix:STORE=WEIGHT,STORE=WEIGHT`, such as `mix:stores/books=2,stores/code=1`: two
tokens of books for one of code, whatever the stores' sizes and the lengths of their documents.
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
  """Stores in the same tokens. Training mixes them; all else reads the documents of all.

  Args:
    spec: as it was asked for.
    stores: by their names.
    weights: of the tokens of each.
  """

  def __init__(self, spec: str, stores: dict[str, Store], weights: dict[str, float]):
    first, total = next(iter(stores.values())), sum(weights.values())
    self._stores = stores
    self.weights = tuple(weights[name] / total for name in stores)
    parts = zip(stores.values(), self.weights, strict=True)
    splits = {
      split: {name: sum(s.splits[split][name] for s in stores.values()) for name in TOTALS}
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
  def text(self) -> str:
    """A short hash of the documents of all; weights play no part where they are read once."""
    return digest([store.text for store in self._stores.values()])

  def split(self, name: str, document: str = "") -> Documents:
    """The documents of a split of all stores, in turn; or one of them.

    Raises:
      InputError: no such split or document, or an index of it is missing or damaged.
    """
    shards = {source: store.shards(name) for source, store in self._stores.items()}
    return Documents(shards, self.dtype, document)


def open_mixture(spec: str, tokenizer: str | None = None) -> Mixture:
  """Opens the stores of a mixture.

  Args:
    spec: `mix:STORE=WEIGHT,...`.
    tokenizer: as a config asks for it; one of the stores was made with it. None: any.

  Raises:
    InputError: no such spec; a store is missing, or in other tokens than the first.
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
      raise InputError(f"config.data.path={spec!r}: {path!r} stands there twice; name it once")
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
        f"config.data.path={spec!r}: {path!r} is in other tokens than {first!r}; prepare it with "
        f"--tokenizer={tokenizer_spec(stores[first].folder)}"
      )
  if tokenizer not in (None, *(store.spec for store in stores.values())):
    raise InputError(
      f"config.data.path={spec!r} was made with the tokenizer {stores[first].spec!r}, not "
      f"{tokenizer!r}: set config.data.tokenizer={stores[first].spec!r}"
    )
  return Mixture(spec, stores, weights)


def tokenizer_spec(folder: Path) -> str:
  """How another corpus is prepared with the tokenizer that a store or a run keeps in a folder."""
  for kind, name in (("sentencepiece", "tokenizer.model"), ("huggingface", "tokenizer.json")):
    if (file := folder / name).exists():
      return f"{kind}:{file}"
  return "bytes"
