"""Text of the user's own corpus, for needles to hide in."""

import hashlib
from pathlib import Path

import numpy as np
from rich.console import Console

from infini_jax.config import Config, InputError
from infini_jax.data.store.evaluated import open_evaluated
from infini_jax.data.store.prepare import open_or_prepare
from infini_jax.data.store.store import Store
from infini_jax.data.tokenizers import SentencePieceTokenizer, Tokenizer, train_size

MOST = 4_000_000  # tokens that are held at a time; longer examples read them in a circle
ENOUGH = 65_536  # tokens of held-out documents; where there are fewer, others join them


class Filler:
  """Tokens of real text in a circle, and where sentences end in it.

  Args:
    store: the corpus.
    held_out: text of validation documents (where those have fewer tokens than `ENOUGH`, of test
      documents too, and of training documents last), or of training documents.

  Attributes:
    ids: the tokens, int32. All examples share them.
  """

  def __init__(self, store: Store, held_out: bool):
    found, room, splits = [], MOST, ("validation", "test", "train") if held_out else ("train",)
    for split in splits:
      if MOST - room >= ENOUGH:
        break
      documents = store.split(split)
      for document, tokens in enumerate(documents.tokens.tolist()):
        found.append(documents.read(document, 0, min(tokens, room)))
        room -= len(found[-1])
        if not room:
          break
    self.ids = np.concatenate(found)
    self._ends = _sentence_ends(self.ids, store.tokenizer)

  def beginning(self, rng: np.random.Generator) -> int:
    """Where a sentence begins; any token, if none does."""
    if len(self._ends):
      return int(rng.choice(self._ends))
    return int(rng.integers(len(self.ids)))

  def place(self, first: int, room: int, share: float) -> int:
    """Where to put what is said at that share of `room` tokens that are read from `first` on.

    It is the end of the nearest sentence; or that very token, where no sentence ends within a
    twentieth of the room.
    """
    wanted = round(share * room)
    ends = [0, room]
    if n := len(self._ends):
      at = (first + wanted) % len(self.ids)
      after = int(np.searchsorted(self._ends, at))
      for i in (after - 1, after):  # one of which may be a round before, or ahead
        ends.append(wanted + int(self._ends[i % n]) - at + i // n * len(self.ids))
    nearest = min((end for end in ends if 0 <= end <= room), key=lambda end: abs(end - wanted))
    return nearest if abs(nearest - wanted) <= room / 20 else wanted


def open_filler(
  config: Config,
  cache: Path,
  console: Console,
  tokenizer: Tokenizer | None,
  others: Path | None = None,
) -> Store:
  """The corpus of `config.needle.filler`, else of `config.data.path`, in the run's own tokens.

  Args:
    config: of the run.
    cache: where the corpus of `config.data.path` is prepared, if it is no store yet; another is
      prepared beside it.
    console: for progress.
    tokenizer: the run's, once it has one.
    others: of an evaluation: where other corpora than those in the `cache` are prepared.

  Raises:
    InputError: no corpus is named, it cannot be read, or it is a store in other tokens; the run
      knows no tokens of text.
  """
  path, spec = config.needle.filler or config.data.path, config.data.tokenizer
  if spec == "task":
    raise InputError(
      "config.data.tokenizer='task' cannot write needles: ask a run whose tokenizer writes any "
      "text, such as bytes"
    )
  if not path:
    raise InputError(
      "config.needle.filler and config.data.path are empty: needles hide in text; set one of them "
      "to a folder of text or a prepared store"
    )
  if path != config.data.path:
    name = hashlib.blake2b(path.encode(), digest_size=4).hexdigest()
    cache = cache.with_name(f"filler-{name}")
  if tokenizer is not None and others is not None:
    setting = "config.needle.filler" if config.needle.filler else "config.data.path"
    return open_evaluated(path, cache, others, console, tokenizer, setting)
  if path != config.data.path:
    if tokenizer is not None and train_size(spec):
      folder = cache.with_name("filler-tokenizer")  # trained on the run's own text
      tokenizer.save(folder)
      spec = f"sentencepiece:{folder / SentencePieceTokenizer.file}"
  store = open_or_prepare(path, spec, cache, console, tokenizer)
  if tokenizer is not None and store.tokenizer.fingerprint != tokenizer.fingerprint:
    raise InputError(
      f"config.needle.filler: {path!r} is in other tokens than the run knows; prepare it with the "
      f"vocabulary in the folder tokenizer/ of the run"
    )
  return store


def _sentence_ends(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
  """Sorted places right behind a full stop, a question mark or the like, and before a space."""
  vocabulary, kind = np.unique(ids, return_inverse=True)
  stop = tokenizer.encode("So it is.")
  text = tokenizer.decode(stop)
  closes = [tokenizer.decode([id]).endswith((".", "!", "?")) for id in vocabulary.tolist()]
  opens = [tokenizer.decode([*stop, id])[len(text) :][:1].isspace() for id in vocabulary.tolist()]
  return np.flatnonzero(np.array(closes)[np.roll(kind, 1)] & np.array(opens)[kind])
