"""Perplexity of whole documents, read chunk after chunk with the state carried.

Every token of a document is predicted once: the first from bos, the others from the tokens before
them. The totals do not depend on the length of a chunk or on the number of lanes. With
`config.evaluation.input_tokens` the memory is emptied after this many tokens. docs/evaluation.md
has the paper's protocols (inputs of 32K or 100K tokens, one segment, or a whole book).
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from scipy.special import stdtrit

from infini_jax.config import Config
from infini_jax.data import Documents, EvalLanes, Tokenizer
from infini_jax.data.sources.base import digest
from infini_jax.evaluation.kept import Found, Kept
from infini_jax.evaluation.knock_out import EMPTY, INTACT, Variant
from infini_jax.evaluation.passages import KEPT, Losses
from infini_jax.evaluation.reading import Reader

Advance = Callable[[int, str], None]  # called with the chunks done, and the perplexity so far


@dataclasses.dataclass(frozen=True)
class Scores:
  """Totals over documents, for all figures. `nats` is minus the log-likelihood."""

  documents: int
  tokens: int
  words: int
  bytes: int
  nats: float
  seconds: float
  by_position: dict[int, tuple[int, float]]  # by the first token of a bucket: tokens, nats
  by_compressions: dict[int, tuple[int, float]]  # by the memory updates before: tokens, nats
  per_document: list[tuple[str, int, float]]  # name, tokens, nats
  # For every store of a mixture: documents, tokens, nats.
  by_source: dict[str, tuple[int, int, float]] = dataclasses.field(default_factory=dict)
  cut: int = 0  # documents that were not read to their end
  losses: Losses | None = dataclasses.field(default=None, compare=False, repr=False)  # of tokens

  @property
  def perplexity(self) -> float:
    """Per token, as in the paper: exp(nats / tokens)."""
    return exp(self.nats / self.tokens)

  @property
  def word_perplexity(self) -> float:
    """Per whitespace-separated word, as in PG19's tables: exp(nats / words)."""
    return exp(self.nats / max(1, self.words))

  @property
  def bits_per_byte(self) -> float:
    """Bits per byte of UTF-8 text: nats / ln 2 / bytes. Comparable between tokenizers."""
    return self.nats / math.log(2) / max(1, self.bytes)

  @property
  def interval(self) -> tuple[float, float] | None:
    """The 95% interval of the perplexity over documents; None for a single document."""
    return interval(self.per_document)

  @property
  def single(self) -> bool:
    """Whether no token had an earlier segment, so that the memory was never read."""
    return set(self.by_compressions) == {0}

  @property
  def summary(self) -> str:
    """The figures in one line."""
    return f"perplexity {self.perplexity:.3f}, {self.bits_per_byte:.4f} bits per byte"

  def to_dict(self) -> dict[str, Any]:
    """The totals and the figures, for JSON."""
    figures = {
      "perplexity": self.perplexity,
      "interval": self.interval,
      "word_perplexity": self.word_perplexity,
      "bits_per_byte": self.bits_per_byte,
      "tokens_per_second": self.tokens / self.seconds,
    }
    totals = dataclasses.asdict(dataclasses.replace(self, losses=None))
    del totals["losses"]
    return figures | totals


def interval(per_document: Sequence[tuple[str, int, float]]) -> tuple[float, float] | None:
  """The 95% interval of the perplexity over documents; None for a single document.

  Nats per token are a ratio of two sums. The standard error is that of a ratio (Cochran, Sampling
  Techniques, section 6.4), with Student's t for few documents. Nats per token are never below 0, so
  the interval is computed for their logarithm: it stays above a perplexity of 1.

  Args:
    per_document: name, tokens and nats of each document.
  """
  if len(per_document) < 2:
    return None
  counts = [tokens for _, tokens, _ in per_document]
  ratio, spread = _ratio(counts, [nats for *_, nats in per_document])
  factor = exp(spread / ratio) if ratio else 1.0
  return exp(ratio / factor), exp(ratio * factor)


def paired(
  after: Sequence[tuple[str, int, float]], before: Sequence[tuple[str, int, float]]
) -> tuple[float, float] | None:
  """The 95% interval of the relative change of a perplexity, by the difference in each document.

  It is far narrower than the intervals of the two perplexities, because both readings have the same
  documents. None for a single document, or if the documents are not the same ones.

  Args:
    after, before: name, tokens and nats of each document.
  """
  whole = {name: (tokens, nats) for name, tokens, nats in before}
  found = [(tokens, nats, whole.get(name)) for name, tokens, nats in after]
  same = len(whole) == len(after) == len(before)
  if not same or len(after) < 2 or any(one is None or one[0] != n for n, _, one in found):
    return None
  differences = [nats - one[1] for _, nats, one in found if one]
  ratio, spread = _ratio([tokens for tokens, *_ in found], differences)
  return exp(ratio - spread) - 1, exp(ratio + spread) - 1


def _ratio(counts: Sequence[int], sums: Sequence[float]) -> tuple[float, float]:
  """The ratio of two sums over documents, and half of its 95% interval."""
  k, tokens = len(counts), sum(counts)
  ratio = math.fsum(sums) / tokens
  squares = math.fsum((x - ratio * n) ** 2 for n, x in zip(counts, sums, strict=True))
  return ratio, float(stdtrit(k - 1, 0.975)) * math.sqrt(squares * k / (k - 1)) / tokens


def change(after: float, before: float) -> str:
  """The relative change of a figure as text; empty if a figure is not finite."""
  return f"{after / before - 1:+.2%}" if math.isfinite(after) and 0 < before < math.inf else ""


def exp(x: float) -> float:
  """As `math.exp`, but infinite where that overflows; NaN stays NaN."""
  with np.errstate(over="ignore"):
    return float(np.exp(x))


class Perplexity:
  """Evaluates documents of one store; compiles once for all variants and runs.

  Attributes:
    fingerprint: a short hash of all that is read, and of how it is read.
  """

  def __init__(
    self,
    config: Config,
    mesh: Mesh,
    documents: Documents,
    tokenizer: Tokenizer,
    max_documents: int | None = None,
    corpus: str = "",
  ):
    """Arranges the documents in lanes.

    Args:
      config: the config of the run.
      mesh: the mesh of the parameters.
      documents: what to read.
      tokenizer: the tokenizer of the documents.
      max_documents: by default `config.evaluation.max_documents`.
      corpus: the fingerprint of the store of the documents.

    Raises:
      InputError: the split is empty.
    """
    e = config.evaluation
    self._config, self._tokenizer, self._documents = config, tokenizer, documents
    self._lanes = EvalLanes(
      documents,
      bos=tokenizer.bos,
      lanes=e.lanes,
      segments=e.segments,
      segment_length=config.model.segment_length,
      max_documents=e.max_documents if max_documents is None else max_documents,
      max_tokens=e.max_tokens,
      input_tokens=e.input_tokens,
    )
    self._reader = Reader(config, mesh)
    self.fingerprint = digest(map(str, (corpus, config.model, e, max_documents)))

  @property
  def chunks(self) -> int:
    """The chunks of one run, the last value of `advance`."""
    return len(self._lanes)

  def run(
    self,
    params: Any,
    variant: Variant = INTACT,
    *,
    advance: Advance | None = None,
    kept: Kept | None = None,
  ) -> Scores:
    """Reads every document, and returns the totals.

    Args:
      params: the parameters of the model, on the mesh of this evaluator.
      variant: the whole memory, or an ablation.
      advance: called after each chunk with the chunks counted and their perplexity.
      kept: the file of the progress, to continue from and to save to; for one process only.
    """
    keep = KEPT if variant in (INTACT, EMPTY) else 0
    tally = _Tally(self._config.model.segment_length, self._config.evaluation.input_tokens, keep)
    reading, kept = self._reader.read(params, self._lanes, variant), kept or Kept()
    started, pending = time.perf_counter(), None
    if found := kept.load():
      tally.go_on(found)
      reading.go_on(found.arrays)
      started -= found.facts["seconds"]

    def count(done):
      if pending is not None:
        tally.add(*pending)
        if advance is not None:
          advance(done, tally.text())

    def save():
      facts = {"seconds": time.perf_counter() - started, "done": reading.done}
      kept.save(reading.kept() | tally.arrays(), facts | tally.facts())

    for chunk, scores in reading:
      count(reading.done - 1)  # the chunk before, while the device computes this one
      assert scores is not None  # all chunks are wanted
      pending = (chunk, scores[0])
      if kept.due:
        count(reading.done)
        pending = None
        save()
    count(self.chunks)
    if kept.saves:
      save()
    return self._scores(tally, time.perf_counter() - started)

  def _scores(self, tally: "_Tally", seconds: float) -> Scores:
    tokens = {d: n for d, (n, _) in tally.documents.items()}
    order = sorted(tokens)
    read = [self._size(d, tokens[d]) for d in order]
    return Scores(
      documents=len(order),
      tokens=sum(tokens.values()),
      words=sum(words for words, _ in read),
      bytes=sum(size for _, size in read),
      nats=math.fsum(nats for _, nats in tally.documents.values()),
      seconds=seconds,
      by_position=dict(sorted(tally.position.items())),
      by_compressions=dict(sorted(tally.compressions.items())),
      per_document=[(self._documents.names[d], *tally.documents[d]) for d in order],
      by_source=self._by_source(tally.documents),
      cut=sum(tokens[d] < int(self._documents.tokens[d]) for d in order),
      losses=self._losses(tally.nats),
    )

  def _losses(self, kept: dict[int, list[np.ndarray]]) -> Losses:
    nats = {d: np.concatenate(kept[d]) for d in sorted(kept)}
    names = {d: self._documents.names[d] for d in nats}
    ids = {d: self._documents.read(d, 0, len(nats[d])) for d in nats}
    return Losses(names, ids, nats, self._tokenizer)

  def _by_source(self, found: dict[int, tuple[int, float]]) -> dict[str, tuple[int, int, float]]:
    """Documents, tokens and nats of every store of a mixture that was read."""
    stores, own = self._documents.stores, {}
    for i, store in enumerate(stores if len(stores) > 1 else ()):
      mine = [found[d] for d in sorted(found) if self._documents.store_X[d] == i]
      if mine:
        own[store] = (len(mine), sum(n for n, _ in mine), math.fsum(nats for _, nats in mine))
    return own

  def _size(self, document: int, tokens: int) -> tuple[int, int]:
    """The words and bytes of what was read of a document.

    Bytes are those of the original text. If a tokenizer drops some, what was read counts in
    proportion.
    """
    d = self._documents
    if tokens == d.tokens[document]:
      return int(d.words[document]), int(d.bytes[document])
    ids = d.read(document, 0, int(d.tokens[document]))
    read, whole = map(self._tokenizer.count_bytes, (ids[:tokens], ids))
    size = round(int(d.bytes[document]) * read / max(1, whole))
    return len(self._tokenizer.decode(ids[:tokens]).split()), size


class _Tally:
  """Sums in float64, by document, by position and by the number of compressions."""

  SUMS = ("documents", "position", "compressions")

  def __init__(self, segment_length: int, input_tokens: int = 0, keep: int = 0):
    self._N, self._input, self._room = segment_length, input_tokens, keep
    self.nats: dict[int, list[np.ndarray]] = {}  # of single tokens, up to the limit
    self.documents: dict[int, tuple[int, float]] = {}
    self.position: dict[int, tuple[int, float]] = {}
    self.compressions: dict[int, tuple[int, float]] = {}

  def text(self) -> str:
    """The perplexity so far, for a progress bar."""
    tokens = sum(n for n, _ in self.documents.values())
    nats = sum(x for _, x in self.documents.values())
    return f"perplexity {exp(nats / tokens):.3f}" if tokens else ""

  def add(self, chunk: dict[str, np.ndarray], nll_BT: jax.Array) -> None:
    """Counts one chunk."""
    nll = np.asarray(nll_BT, np.float64)
    B, S = chunk["document_BS"].shape
    segment = lambda x: np.broadcast_to(x[:, :, None], (B, S, self._N)).reshape(B, -1)
    seen = chunk["mask_BT"]
    position = segment(chunk["position_BS"]) + np.tile(np.arange(self._N), S)[None]
    _count(self.documents, segment(chunk["document_BS"])[seen], nll[seen])
    _count(self.position, _floor_power(position[seen], 128), nll[seen])
    read = position[seen] % self._input if self._input else position[seen]  # since a reset
    _count(self.compressions, _floor_power(read // self._N, 1), nll[seen])
    self._keep(chunk["document_BS"], seen.reshape(B, S, -1), nll.reshape(B, S, -1))

  def arrays(self) -> dict[str, np.ndarray]:
    """The losses of single tokens, for `go_on`."""
    return {f"nats.{d}": np.concatenate(parts) for d, parts in self.nats.items()}

  def facts(self) -> dict[str, Any]:
    """The sums, for `go_on`."""
    sums = {name: list(getattr(self, name).items()) for name in self.SUMS}
    return {**sums, "room": self._room}

  def go_on(self, found: Found) -> None:
    """Continues from the sums and losses of an earlier tally."""
    for name in self.SUMS:
      setattr(self, name, {place: (count, nats) for place, (count, nats) in found.facts[name]})
    of = {name.partition(".")[2]: x for name, x in found.arrays.items() if name.startswith("nats.")}
    self.nats, self._room = {int(d): [x] for d, x in of.items()}, found.facts["room"]

  def _keep(self, document_BS: np.ndarray, seen_BSN: np.ndarray, nll_BSN: np.ndarray) -> None:
    """Keeps the losses of single tokens, up to the limit; after it, nothing more is kept."""
    for b, s in np.argwhere(document_BS >= 0):
      nats = nll_BSN[b, s][seen_BSN[b, s]].astype(np.float32)
      if self._room < len(nats):
        self._room = 0
      else:
        self._room -= len(nats)
        self.nats.setdefault(int(document_BS[b, s]), []).append(nats)


def _count(sums: dict[int, tuple[int, float]], keys: np.ndarray, nats: np.ndarray) -> None:
  names, place = np.unique(keys, return_inverse=True)
  counts, totals = np.bincount(place), np.bincount(place, weights=nats)
  for name, count, total in zip(names.tolist(), counts.tolist(), totals.tolist(), strict=True):
    before = sums.get(name, (0, 0.0))
    sums[name] = (before[0] + count, before[1] + total)


def _floor_power(values: np.ndarray, least: int) -> np.ndarray:
  """0, or the greatest `least * 2^i` that is not above a value: the starts of doubling buckets."""
  exponent = np.floor(np.log2(np.maximum(values // least, 1))).astype(np.int64)
  return np.where(values < least, 0, least << exponent)
