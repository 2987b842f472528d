"""Filler: text of the user's own corpus around the needles."""

from pathlib import Path

import numpy as np
from rich.console import Console

from infini_jax.config import Config, InputError
from infini_jax.data.store.evaluated import open_evaluated
from infini_jax.data.store.prepare import open_or_prepare
from infini_jax.data.store.store import Store
from infini_jax.data.tokenizers import SentencePieceTokenizer, Tokenizer, train_size
from infini_jax.digests import short_hash

MOST = 4_000_000  # the most tokens in memory; longer examples read them in a circle
ENOUGH = 65_536  # tokens of held-out documents; if there are fewer, other documents are added


class Filler:
  """Tokens of real text, read in a circle, and the positions at which sentences end.

  Args:
    store: the corpus.
    held_out: True reads validation documents (if they have fewer tokens than `ENOUGH`, also test
      documents, and then training documents); False reads training documents.

  Attributes:
    ids: the tokens, (n,) int32, of all examples.
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
    """A random position at which a sentence begins; any position, if there are no sentences."""
    if len(self._ends):
      return int(rng.choice(self._ends))
    return int(rng.integers(len(self.ids)))

  def place(self, first: int, room: int, share: float) -> int:
    """The position for a statement in `room` tokens of filler that are read from `first` on.

    It is the end of the sentence that is nearest to `share * room`. If no sentence ends within
    `room / 20` of it, it is `share * room`.
    """
    wanted = round(share * room)
    ends = [0, room]
    if n := len(self._ends):
      at = (first + wanted) % len(self.ids)
      after = int(np.searchsorted(self._ends, at))
      for i in (after - 1, after):  # one of them may be in the circle's round before or after
        ends.append(wanted + int(self._ends[i % n]) - at + i // n * len(self.ids))
    nearest = min((end for end in ends if 0 <= end <= room), key=lambda end: abs(end - wanted))
    return nearest if abs(nearest - wanted) <= room / 20 else wanted


def corpus_of(config: Config) -> str:
  """The corpus of the filler."""
  return config.needle.filler or config.data.path


def open_filler(
  config: Config,
  cache: Path,
  console: Console,
  tokenizer: Tokenizer | None,
  others: Path | None = None,
) -> Store:
  """The corpus of `config.needle.filler`, else of `config.data.path`, in the tokens of the run.

  Args:
    config: the config of the run.
    cache: the folder for the store of `config.data.path`, if this is not a store yet; the store of
      another corpus is next to it.
    console: for progress.
    tokenizer: the tokenizer of the run, if it has one already.
    others: for an evaluation, the folder for the stores of corpora other than that in `cache`.

  Raises:
    InputError: no corpus is named, it cannot be read, or its store has other tokens; the run's
      tokenizer cannot encode text.
  """
  path, spec = corpus_of(config), config.data.tokenizer
  if spec == "task":
    raise InputError(
      "config.data.tokenizer='task' cannot write needles: use a run whose tokenizer writes any "
      "text, such as bytes"
    )
  if not path:
    raise InputError(
      "config.needle.filler and config.data.path are empty: needles need text around them; set "
      "one of them to a folder of text or a prepared store"
    )
  if path != config.data.path:
    name = short_hash(path.encode(), size=4)
    cache = cache.with_name(f"filler-{name}")
  if tokenizer is not None and others is not None:
    setting = "config.needle.filler" if config.needle.filler else "config.data.path"
    return open_evaluated(path, cache, others, console, tokenizer, setting)
  if path != config.data.path:
    if tokenizer is not None and train_size(spec):
      folder = cache.with_name("filler-tokenizer")  # it was trained on the corpus of the run
      tokenizer.save(folder)
      spec = f"sentencepiece:{folder / SentencePieceTokenizer.file}"
  store = open_or_prepare(path, spec, cache, console, tokenizer)
  if tokenizer is not None and store.tokenizer.fingerprint != tokenizer.fingerprint:
    raise InputError(
      f"config.needle.filler: {path!r} has other tokens than the run; prepare it with the "
      f"vocabulary in the folder tokenizer/ of the run"
    )
  return store


def _sentence_ends(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
  """The sorted positions directly after a full stop, `!` or `?` and before a space."""
  vocabulary, kind = np.unique(ids, return_inverse=True)
  stop = tokenizer.encode("So it is.")
  text = tokenizer.decode(stop)
  closes = [tokenizer.decode([id]).endswith((".", "!", "?")) for id in vocabulary.tolist()]
  opens = [tokenizer.decode([*stop, id])[len(text) :][:1].isspace() for id in vocabulary.tolist()]
  return np.flatnonzero(np.array(closes)[np.roll(kind, 1)] & np.array(opens)[kind])
