"""From a config to the data of a run (documents or a task), and to its lanes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from rich.console import Console

from infini_jax.config import Config, InputError, MixStage, mix_stages, stages
from infini_jax.data.lanes.documents import ALL, Batch, Rows, TrainLanes
from infini_jax.data.lanes.order import Mix
from infini_jax.data.lanes.warm import Companions
from infini_jax.data.sources.base import digest
from infini_jax.data.sources.conversations import open_conversations
from infini_jax.data.store.evaluated import open_evaluated
from infini_jax.data.store.mixture import Mixture
from infini_jax.data.store.prepare import open_or_prepare
from infini_jax.data.store.store import Store
from infini_jax.data.tokenizers import Tokenizer, load_tokenizer, train_size
from infini_jax.tasks.chat import ChatLanes, Conversations, read_conversations
from infini_jax.tasks.example import Task
from infini_jax.tasks.lanes import TaskLanes
from infini_jax.tasks.needle_filler import open_filler
from infini_jax.tasks.published import FORMS, Benchmark
from infini_jax.tasks.registry import GENERATED, make_task
from infini_jax.tasks.summarization import Pairs


@dataclasses.dataclass(frozen=True)
class TaskAndText:
  """A task, and documents for the lanes of `task.text_lanes`.

  Attributes:
    task: the kind of example.
    text: the documents.
  """

  task: Task
  text: Store

  @property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer of both."""
    return self.task.tokenizer

  @property
  def fingerprint(self) -> str:
    """A short hash of both."""
    return digest([self.task.fingerprint, self.text.fingerprint])


Dataset = Store | Pairs | Conversations | Benchmark | Task | TaskAndText


class Lanes(Protocol):
  """Batches of training, each a pure function of its number."""

  def batch(self, k: int, rows: Rows = ALL) -> Batch:
    """Batch `k`, or some rows of it."""
    ...


def open_dataset(
  config: Config,
  cache: Path,
  console: Console,
  task: str | None = None,
  tokenizer: Tokenizer | None = None,
  others: Path | None = None,
) -> Dataset:
  """The documents or the task of a config, with a tokenizer that fits the model.

  Args:
    config: the config of the run.
    cache: the folder for the store of a corpus that is not a store yet.
    console: for progress.
    task: text, summarization, chat, passkey, recall, needle, ruler or babilong; by default the
      task of the run.
    tokenizer: the tokenizer of the run's parameters, if there are any.
    others: for an evaluation, the folder for the stores of corpora other than that in `cache`.

  Raises:
    InputError: a corpus is missing or cannot be read, or the tokenizer does not fit.
  """
  task = config.task.name if task is None else task
  dataset = OPENERS[task](Opening(config, cache, console, task, tokenizer, others))
  if dataset.tokenizer.size > config.model.vocab_size:
    raise InputError(
      f"config.model.vocab_size={config.model.vocab_size} is smaller than the tokenizer's "
      f"{dataset.tokenizer.size}: set it to {dataset.tokenizer.size} or more"
    )
  return dataset


def open_training(config: Config, cache: Path, console: Console, own: Tokenizer | None) -> Dataset:
  """The training data of a config: as `open_dataset`, with the documents of `task.text_lanes`.

  Args:
    config: the config of the run.
    cache: the folder for the store of a corpus that is not a store yet.
    console: for progress.
    own: the tokenizer of the run's parameters, if there are any.

  Raises:
    InputError: as `open_dataset`.
  """
  if not config.task.text_lanes:
    return open_dataset(config, cache, console, tokenizer=own)
  text = _text(Opening(config, cache, console, "text", own, None))
  task = open_dataset(config, cache, console, tokenizer=own or text.tokenizer)
  assert not isinstance(task, Store | Pairs | Conversations | Benchmark | TaskAndText)
  return TaskAndText(task, text)


class Opening(NamedTuple):
  """The arguments of `open_dataset`."""

  config: Config
  cache: Path
  console: Console
  task: str
  tokenizer: Tokenizer | None
  others: Path | None


def _documents_of(o: Opening) -> Store:
  """The documents of a config that names some."""
  if not o.config.data.path:
    raise InputError("config.data.path is empty: set it to a folder of text or a prepared store")
  return _text(o)


def _pairs(o: Opening) -> Pairs:
  """The documents of a config with their summaries."""
  return Pairs(_documents_of(o))


def _benchmark(o: Opening) -> Benchmark:
  """The samples of a published benchmark."""
  vocabulary = o.tokenizer or load_tokenizer(o.config.data.tokenizer)
  return Benchmark(o.config.data.path, o.task, vocabulary, o.config.evaluation.max_documents)


def _generated(o: Opening) -> Task:
  """A task that generates examples, with the documents that they hide in."""
  config, tokenizer, filler, made = o.config, o.tokenizer, None, GENERATED[o.task](o.config)
  if made.hides:
    filler = open_filler(config, o.cache, o.console, tokenizer, o.others)
  elif tokenizer is None and made.any_words and train_size(config.data.tokenizer):
    tokenizer = _trained(config, o.cache, o.console, o.task)
  return make_task(config, o.task, tokenizer, filler)


def _chat(o: Opening) -> Conversations:
  """The conversations of a config: those that a training reads, or those of an evaluation."""
  config, console, trains = o.config, o.console, o.others is None
  if not config.data.path:
    raise InputError("config.data.path is empty: set it to jsonl:FILES or parquet:FILES")
  splits: tuple[str, ...] = (config.evaluation.split,)
  if trains:
    splits = ("train", "validation") if config.train.eval_every else ("train",)
  corpus = open_conversations(config.data.path, trains)
  say = lambda line: console.print(line, highlight=False, soft_wrap=True)
  if corpus.note:
    say(corpus.note)
  spec = config.data.tokenizer
  if o.tokenizer is None and train_size(spec):
    raise InputError(
      f"config.data.tokenizer={spec!r} of the task chat: conversations train no vocabulary; set "
      f"sentencepiece:FILE, huggingface:FILE, bytes, or run and config.train.start_from"
    )
  vocabulary = o.tokenizer or load_tokenizer(spec)
  return read_conversations(config, corpus, vocabulary, splits, say)


def _text(o: Opening) -> Store:
  """The documents of a config."""
  config, cache, console, _, tokenizer, others = o
  path = config.data.path
  if tokenizer is not None and others is not None:
    return open_evaluated(path, cache, others, console, tokenizer, "config.data.path")
  store = open_or_prepare(path, config.data.tokenizer, cache, console, tokenizer)
  if tokenizer is not None and store.tokenizer.fingerprint != tokenizer.fingerprint:
    raise InputError(
      f"config.data.path={path!r} has other tokens than the parameters: "
      f"prepare it with the vocabulary in the folder tokenizer/ of their run"
    )
  return store


def _trained(config: Config, cache: Path, console: Console, task: str) -> Tokenizer:
  """The vocabulary of a task without text, if it must be trained first: on the config's corpus.

  Raises:
    InputError: the config names no corpus.
  """
  spec = config.data.tokenizer
  if not config.data.path:
    raise InputError(
      f"config.data.tokenizer={spec!r} of the task {task}: it is trained on text; set "
      f"config.data.path to a corpus, or config.data.tokenizer='bytes'"
    )
  return open_or_prepare(config.data.path, spec, cache, console).tokenizer


# By name of a task, how its data is opened; those that generate examples are in the registry.
OPENERS: dict[str, Callable[[Opening], Dataset]] = {
  "text": _documents_of,
  "summarization": _pairs,
  "chat": _chat,
  **dict.fromkeys(FORMS, _benchmark),
  **dict.fromkeys(GENERATED, _generated),
}


def train_lanes(config: Config, dataset: Dataset) -> Lanes:
  """The lanes of training, which give its batches.

  Raises:
    InputError: there is too little text for a segment, or a chunk is too short for an example.
  """
  if config.train.rollout:
    return _Stages(config, dataset)
  if isinstance(dataset, Pairs):
    return ChatLanes(dataset.training(config), config)
  if isinstance(dataset, Conversations):
    return ChatLanes(dataset.split("train"), config)
  if isinstance(dataset, TaskAndText):
    return _TaskAndTextLanes(dataset, config)
  assert not isinstance(dataset, Benchmark)  # it is for evaluations alone
  if not isinstance(dataset, Store):
    return TaskLanes(dataset, config)
  return _documents(config, dataset)


def _documents(config: Config, store: Store) -> Lanes:
  lanes = _text_lanes(config, store, config.train.seed)
  return _WarmText(config, store, lanes) if config.warm.share else lanes


class _TaskAndTextLanes:
  """Examples of a task in the first lanes, and documents in the last `task.text_lanes`."""

  def __init__(self, dataset: TaskAndText, config: Config):
    lanes, text = config.data.lanes, config.task.text_lanes
    self._lanes, self._first, self._weight = lanes, lanes - text, config.task.text_weight
    few = lambda count: config.with_fields(data={"lanes": count})
    self._task = TaskLanes(dataset.task, few(lanes - text))
    self._text = _documents(few(text), dataset.text)

  def batch(self, k: int, rows: Rows = ALL) -> Batch:
    """The arrays of `TaskLanes.batch`, and text_B: bool, the lanes of text."""
    lanes = np.arange(self._lanes)[rows]
    is_text = lanes >= self._first
    task = _some(self._task, k, lanes[~is_text])
    text = _some(self._text, k, lanes[is_text] - self._first)
    real_BT = text["mask_BT"].astype(np.float32)
    of_task = {
      "weights_BT": self._weight * real_BT / np.maximum(1, real_BT.sum(1, keepdims=True)),
      "asked_BT": np.zeros_like(text["mask_BT"]),
      "times_BT": np.ones_like(real_BT),
    }
    text = of_task | text
    order = np.argsort(np.concatenate([np.flatnonzero(~is_text), np.flatnonzero(is_text)]))
    both = {name: np.concatenate([rows, text[name]])[order] for name, rows in task.items()}
    return both | {"text_B": is_text}


def _some(dataset: Lanes, k: int, lanes: np.ndarray) -> Batch:
  """Some rows of a batch; also none."""
  batch = dataset.batch(k, lanes if len(lanes) else np.array([0]))
  return {name: rows[: len(lanes)] for name, rows in batch.items()}


class _Stages:
  """The lanes of a rollout curriculum: those of one stage after those of the stage before."""

  def __init__(self, config: Config, dataset: Dataset):
    self._lanes = [(stage.first, train_lanes(stage.config, dataset)) for stage in stages(config)]

  def batch(self, k: int, rows: Rows = ALL) -> Batch:
    """Batch `k`, with the segment length of its stage."""
    first, lanes = [one for one in self._lanes if one[0] <= k][-1]
    return lanes.batch(k - first, rows)


def _text_lanes(config: Config, store: Store, seed: int, segments: int = 0) -> TrainLanes:
  documents, segments = store.split("train"), segments or config.data.segments
  return TrainLanes(
    documents,
    bos=store.tokenizer.bos,
    eos=store.tokenizer.eos,
    lanes=config.data.lanes,
    segments=segments,
    segment_length=config.model.segment_length,
    seed=seed,
    carry_state=config.data.carry_state,
    mix=_mix(config, store, documents.store_X, segments) if store.weights else None,
  )


def _mix(config: Config, store: Store, store_X: np.ndarray, segments: int) -> Mix:
  """How the stores are mixed, for lanes with chunks of this many segments."""
  made = [(stage.first * segments, stage.weights) for stage in _mix_stages(config, store)]
  return Mix(store_X, store.weights, tuple(made))


def _mix_stages(config: Config, store: Store) -> tuple[MixStage, ...]:
  made = mix_stages(config)
  for text, stage in zip(config.data.stages, made, strict=True):
    if (found := len(stage.weights)) != (count := len(store.weights)):
      raise InputError(
        f"config.data.stages={text!r}: has {found} weights, and config.data.path has {count} "
        f"stores; give a weight for each of them, in their order"
      )
  return made


def mixture_shares(config: Config, dataset: Dataset, k: int) -> dict[str, float]:
  """The share of each store in the tokens of the documents that begin in batch k, by its path.

  It is empty without `data.stages`.
  """
  store = dataset.text if isinstance(dataset, TaskAndText) else dataset
  if not config.data.stages or not isinstance(store, Mixture):
    return {}
  begun = [stage.weights for stage in _mix_stages(config, store) if stage.first <= k]
  weights = [store.weights, *begun][-1]
  return {name: weight / sum(weights) for name, weight in zip(store.names, weights, strict=True)}


class _WarmText:
  """Documents whose memory may start warm. The companions read the same corpus in another order.

  A companion reads its planned length, across the ends of documents.
  """

  def __init__(self, config: Config, store: Store, lanes: TrainLanes):
    seed = config.train.seed
    self._lanes, self._earlier = lanes, _text_lanes(config, store, seed + 1, config.warm.segments)
    self._companions = Companions(config.warm, config.model.segment_length, seed)
    self._grows = config.warm.growth > 1

  def batch(self, k: int, rows: Rows = ALL) -> Batch:
    """The warm arrays of `TaskLanes.batch` too; a document that continues keeps its own state."""
    batch, earlier = self._lanes.batch(k, rows), self._earlier.batch(k, rows)
    lanes = np.arange(self._lanes.lanes)[rows].tolist()
    readings = {lane: self._companions.reading(lane, k) for lane in lanes}
    reset_BS = np.zeros_like(earlier["reset_BS"])
    reset_BS[:, 0] = [reading.chunk == 0 for reading in readings.values()]
    times = {}
    if self._grows:
      often = [self._companions.times(*one) for one in readings.items()]
      times["warm_times_B"] = np.array(often, np.float32)
    warm_B = np.array([self._companions.warm(lane, k) is not None for lane in lanes])
    warm_B &= batch["reset_BS"][:, 0]
    batch["reset_BS"][:, 0] &= ~warm_B
    return (
      batch
      | times
      | {
        "warm_tokens_BT": earlier["tokens_BT"],
        "warm_mask_BT": earlier["mask_BT"],
        "warm_reset_BS": reset_BS,
        "warm_B": warm_B,
      }
    )
