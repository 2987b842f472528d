"""Conversations: only the messages of the assistant have a loss.

A conversation of n tokens has n - 1 predictions: its own first token is the first input. The lanes
read everything that has answers (`WithAnswers`): conversations, and documents with their summaries.
"""

import dataclasses
import datetime
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from infini_jax.config import ALL_SPLITS, Config, InputError
from infini_jax.data.chat.conversation import Chat, Talk, open_chat
from infini_jax.data.lanes.documents import ALL, Batch, Named, Rows
from infini_jax.data.lanes.order import Shuffle
from infini_jax.data.sources.base import Corpus
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.digests import short_hash
from infini_jax.tasks.lanes import empty_asking

TRIES = 4  # how often a question is cut until its conversation fits


@dataclasses.dataclass(frozen=True)
class Counts:
  """The counts of a split that was read.

  Attributes:
    conversations: those that were kept.
    answers: the answers in them.
    tokens: all their tokens.
    said: the tokens of the answers.
    cut: conversations that were cut, because they were too long.
    left_out: conversations that were left out, because they were too long.
    bad: rows that `?bad=skip` left out.
  """

  conversations: int = 0
  answers: int = 0
  tokens: int = 0
  said: int = 0
  cut: int = 0
  left_out: int = 0
  bad: int = 0

  @property
  def text(self) -> str:
    """The counts in words."""
    found = (
      f"{self.conversations:,} conversations, {self.answers:,} answers, {self.tokens:,} tokens, "
      f"{self.said:,} of them said by the assistant"
    )
    lost = {"cut": self.cut, "left out as too long": self.left_out, "left out as bad": self.bad}
    return "; ".join([found, *(f"{count:,} {how}" for how, count in lost.items() if count)])


class WithAnswers(Named, Protocol):
  """Documents that hold answers, as `ChatLanes` and the evaluation of answers read them.

  The n `tokens` of a document are its targets. Its inputs are the token of `first_X`, and all of
  its targets but the last.

  Attributes:
    first_X: (documents,) int32, the first input of each.
    own: of the tokens before an answer, those that differ between documents of equal form.
  """

  first_X: np.ndarray
  own: slice

  def __len__(self) -> int:
    """The number of documents."""
    ...

  def said(self, document: int, start: int, stop: int) -> np.ndarray:
    """Which of the targets `start` to `stop` are of an answer, bool; fewer at the end."""
    ...

  def weights(self, document: int, start: int, stop: int) -> np.ndarray:
    """The loss weight of each of those targets, float32."""
    ...

  def last(self, document: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens before the last answer, with the first input; and the answer with its end."""
    ...


class Talks:
  """The conversations of a split, `WithAnswers`: every token of an answer weighs 1.

  Attributes:
    tokens: (conversations,) the predictions of each.
    first_X: (conversations,) the first token of each, an input only.
    names: the place of each, its file and line.
    counts: what was read.
  """

  own = slice(None)

  def __init__(self, talks: Sequence[Talk], names: Sequence[str], counts: Counts):
    self._talks, self.names, self.counts = talks, names, counts
    self.tokens = np.array([len(talk.ids) - 1 for talk in talks], np.int64)
    self.first_X = np.array([talk.ids[0] for talk in talks], np.int32)

  def __len__(self) -> int:
    return len(self._talks)

  def read(self, document: int, start: int, stop: int) -> np.ndarray:
    """Targets `start` to `stop` of a conversation, (stop - start,) int32."""
    return self._talks[document].ids[1:][start:stop]

  def said(self, document: int, start: int, stop: int) -> np.ndarray:
    """Whether each of those targets is in a message of the assistant, bool."""
    return self._talks[document].said[1:][start:stop]

  def weights(self, document: int, start: int, stop: int) -> np.ndarray:
    """1 for each of those targets that is in a message of the assistant, else 0; float32."""
    return self.said(document, start, stop).astype(np.float32)

  def last(self, document: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens before the last answer of a conversation, and those of the answer with its end."""
    ids, said = self._talks[document]
    stop = int(np.flatnonzero(said)[-1]) + 1
    before = np.flatnonzero(~said[:stop])
    start = int(before[-1]) + 1 if len(before) else 0
    return ids[:start], ids[start:stop]

  @property
  def digest(self) -> str:
    """A short hash of all tokens."""
    return short_hash(ids.astype("<i4").tobytes() + said.tobytes() for ids, said in self._talks)


class Conversations:
  """The conversations of a corpus, split by split, in tokens. They are all in memory.

  Attributes:
    chat: the template.
    end: the id of the token that ends an answer.
    tokenizer: the vocabulary, with this template.
    fingerprint: a short hash of the tokens that were read, and of the vocabulary.
    text: a short hash of the corpus.
    path: the spec of the corpus.
  """

  def __init__(self, chat: Chat, corpus: Corpus, splits: dict[str, Talks]):
    self.chat, self.end, self.tokenizer, self._splits = chat, chat.end, chat.tokenizer, splits
    self.tokenizer.template = chat.template
    self.path, self.text = corpus.spec, corpus.fingerprint
    read = " ".join(talks.digest for talks in splits.values())
    named = f"{read} {self.tokenizer.fingerprint} {chat.end}".encode()
    self.fingerprint = short_hash(named)

  def split(self, name: str) -> Talks:
    """The conversations of a split that was read.

    Raises:
      InputError: it has none.
    """
    if not len(self._splits[name]):
      raise InputError(
        f"corpus {self.path!r}: no conversations for {name}; add some, choose another split, or "
        f"'all' (while training: set config.train.eval_every=0)"
      )
    return self._splits[name]


def read_conversations(
  config: Config,
  corpus: Corpus,
  tokenizer: Tokenizer,
  splits: Sequence[str],
  say: Callable[[str], None],
) -> Conversations:
  """The conversations of a corpus, checked and in tokens.

  Args:
    config: the config of the run.
    corpus: the corpus.
    tokenizer: the vocabulary.
    splits: those to read; `all` is all of them together.
    say: prints a line about each split.

  Raises:
    InputError: the template is missing or fails, or a conversation is wrong or too long.
  """
  today = datetime.date.today().isoformat()  # a new template keeps it, so that a run is one text
  chat = open_chat(tokenizer, config.chat.template, today)
  chat.end  # noqa: B018 - a template that cannot end an answer is refused before all is read
  read: dict[str, _Collector] = {
    split: _Collector(chat, config, split == "train") for split in splits
  }
  for part in corpus.parts:
    if splits != (ALL_SPLITS,) and not set(part.splits) & set(splits):
      continue
    for record in part.each():
      if isinstance(record, InputError):
        if not corpus.skips:
          raise record
        for reading in read.values():
          reading.bad += 1
      elif found := read.get(record.split) or read.get(ALL_SPLITS):
        found.add(record.name, record.text)
  talks = {split: reading.talks() for split, reading in read.items()}
  for split, one in talks.items():
    say(f"{split}: {one.counts.text}")
  return Conversations(chat, corpus, talks)


class _Collector:
  """Collects the conversations of one split."""

  def __init__(self, chat: Chat, config: Config, trains: bool):
    self._chat, self._too_long = chat, config.chat.too_long
    self._most, self._setting = config.chat.max_tokens, "config.chat.max_tokens"
    chunk = config.data.segments * config.model.segment_length + 1
    if trains and not config.data.carry_state and not 0 < self._most <= chunk:
      self._most, self._setting = chunk, "a chunk of config.data.segments"
    self._talks: list[Talk] = []
    self._names: list[str] = []
    self._answers = self._conversations = self._cut = self._left_out = self.bad = 0

  def add(self, name: str, text: str) -> None:
    """Adds the conversation of a record; an error says where it is."""
    try:
      messages = self._chat.check(json.loads(text))
      talks = self._fitting(messages)
    except InputError as error:
      raise InputError(f"{name}: {error}") from None
    if not talks:
      self._left_out += 1
      return
    self._conversations += 1
    self._answers += sum(message["role"] == "assistant" for message in messages)
    self._talks += talks
    self._names += [name] * len(talks)

  def talks(self) -> Talks:
    """All conversations that were added."""
    counts = Counts(
      self._conversations,
      self._answers,
      sum(len(talk.ids) for talk in self._talks),
      sum(int(talk.said.sum()) for talk in self._talks),
      self._cut,
      self._left_out,
      self.bad,
    )
    return Talks(self._talks, self._names, counts)

  def _fitting(self, messages: list[dict[str, Any]]) -> list[Talk]:
    """The conversation in tokens; nothing if it is too long and is left out."""
    talks = self._chat.talks(messages)
    if not self._over(talks):
      return talks
    if self._too_long == "refuse":
      raise InputError(
        f"the conversation has {max(len(talk.ids) for talk in talks):,} tokens, and "
        f"{self._setting} holds {self._most:,}; raise it, or set config.chat.too_long to cut or "
        f"leave_out"
      )
    if self._too_long == "cut":
      for tried in range(TRIES):
        messages = self._shorter(messages, self._over(talks) + 8 * tried)
        if not messages:
          break
        talks = self._chat.talks(messages)
        if not self._over(talks):
          self._cut += 1
          return talks
    return []

  def _over(self, talks: Iterable[Talk]) -> int:
    """The tokens by which the longest is too long."""
    return max(0, max(len(talk.ids) for talk in talks) - self._most) if self._most else 0

  def _shorter(self, messages: list[dict[str, Any]], over: int) -> list[dict[str, Any]]:
    """The messages without the middle of the longest question; nothing if it is too short."""
    tokenizer = self._chat.tokenizer
    asked = [i for i, message in enumerate(messages) if message["role"] != "assistant"]
    if not asked:
      return []
    longest = max(asked, key=lambda i: len(messages[i]["content"]))
    ids = tokenizer.encode(messages[longest]["content"])
    kept = len(ids) - over
    if kept < 2:
      return []
    head, tail = ids[: kept // 2], ids[len(ids) - (kept - kept // 2) :]
    content = tokenizer.decode(head) + tokenizer.decode(tail)
    return [
      message | {"content": content} if i == longest else message
      for i, message in enumerate(messages)
    ]


class ChatLanes:
  """The endless training on documents with answers, each epoch in a new order.

  Every document starts at a segment border, with a reset. With `data.carry_state` a lane reads one
  document after another, however long, and a chunk begins where the last one ended. Without it a
  chunk holds whole documents: they are packed into rows of `data.segments` once, and an epoch is
  a new order of the rows.
  """

  def __init__(self, talks: WithAnswers, config: Config):
    self._talks = talks
    self.lanes, self.segments = config.data.lanes, config.data.segments
    self._N, seed = config.model.segment_length, config.train.seed
    segments_X = -(-talks.tokens // self._N)
    self._carries = config.data.carry_state
    self._rows = [] if self._carries else packed(segments_X.tolist(), self.segments)
    sizes = segments_X if self._carries else np.ones(len(self._rows), np.int64)
    self._order = Shuffle(sizes, self.lanes, seed)

  def batch(self, k: int, rows: Rows = ALL) -> Batch:
    """Batch `k`, or some rows of it.

    Returns:
      The arrays of `TrainLanes.batch`, and
      weights_BT: float32, the loss weight of each target.
      asked_BT: bool, the targets of answers.
    """
    lanes = np.arange(self.lanes)[rows].tolist()
    batch = empty_asking(len(lanes), self.segments, self._N)
    for row, lane in enumerate(lanes):
      here = {name: values[row] for name, values in batch.items()}
      if self._carries:
        for piece in self._order.pieces(lane, k * self.segments, (k + 1) * self.segments):
          self._lay(here, piece.document, piece.first, piece.slot, piece.segments)
        continue
      (whole,) = self._order.pieces(lane, k, k + 1)
      slot = 0
      for document in self._rows[whole.document]:
        size = -(-int(self._talks.tokens[document]) // self._N)
        self._lay(here, document, 0, slot, size)
        slot += size
      here["reset_BS"][slot:] = True
    return batch

  def _lay(self, row: Batch, document: int, first: int, slot: int, segments: int) -> None:
    """Writes some segments of a document, from segment `first` on, into a row at `slot`."""
    start = first * self._N
    stop = min(start + segments * self._N, int(self._talks.tokens[document]))
    at = slice(slot * self._N, slot * self._N + stop - start)
    ids = self._talks.read(document, max(start - 1, 0), stop)
    if not first:
      ids = np.append(self._talks.first_X[document], ids)
    row["tokens_BT"][at], row["targets_BT"][at] = ids[:-1], ids[1:]
    row["weights_BT"][at] = self._talks.weights(document, start, stop)
    row["asked_BT"][at] = self._talks.said(document, start, stop)
    row["mask_BT"][at] = True
    row["reset_BS"][slot] = not first


def packed(sizes: Sequence[int], room: int) -> list[list[int]]:
  """Packs items into rows: the largest first, each into the fullest row that has room.

  Args:
    sizes: the size of each thing, 1 to `room`.
    room: what a row holds.
  """
  rows: list[list[int]] = []
  open_rows: list[list[int]] = [[] for _ in range(room + 1)]  # rows by the room that is left
  for thing in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
    left = next((n for n in range(sizes[thing], room + 1) if open_rows[n]), None)
    if left is None:
      row, left = len(rows), room
      rows.append([])
    else:
      row = open_rows[left].pop()
    rows[row].append(thing)
    open_rows[left - sizes[thing]].append(row)
  return rows
