"""The tasks of an evaluation (the names of `--task`), and the needs of each."""

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from jax.sharding import Mesh
from rich.console import Console

from infini_jax.config import ALL_SPLITS, SPLITS, TASKS, Config, InputError
from infini_jax.data import Store
from infini_jax.evaluation import (
  chat_tables,
  perplexity_tables,
  published_tables,
  retrieval_tables,
  summarization_tables,
  surgery,
)
from infini_jax.evaluation.chat import answering
from infini_jax.evaluation.knock_out import INTACT, Variant, knock_outs
from infini_jax.evaluation.perplexity import Perplexity
from infini_jax.evaluation.published import Grid
from infini_jax.evaluation.retrieval import Retrieval
from infini_jax.evaluation.summarization import summarization
from infini_jax.models.states import held_L
from infini_jax.runs.workdir import Workdir
from infini_jax.tasks import (
  Benchmark,
  Conversations,
  Dataset,
  Facts,
  Pairs,
  TaskAndText,
  check_length,
  open_dataset,
)


class Kind(NamedTuple):
  """How a task is evaluated and shown."""

  dataset: str  # its name for `open_dataset`
  # Has `chunks`, `run(params, variant, advance)`; with `fingerprint`, `run` also takes `kept`.
  evaluator: Callable[[Config, Mesh, Any], Any]
  tables: ModuleType  # has `draw`, `show` and `verdict`
  protocol: tuple[
    str, ...
  ]  # fields that change the figures, in addition to corpus, split and ablations
  others: str = "knocked_out"  # the key of all variants but the first in `results.json`
  measure: str = ""  # `Facts.measure`, where the dataset has no facts
  family: str = ""  # the field that names the family of the task; each has a folder of its own


def _perplexity(config: Config, mesh: Mesh, store: Store) -> Perplexity:
  e = config.evaluation
  documents = store.split(e.split, e.document)
  return Perplexity(config, mesh, documents, store.tokenizer, corpus=store.fingerprint)


def _fields(section: str, names: str) -> tuple[str, ...]:
  return tuple(f"{section}.{name}" for name in names.split())


READ = _fields("evaluation", "document max_documents max_tokens")
ASKED = _fields("evaluation", "lengths samples")
# A new task is one entry here.
KINDS = {
  "perplexity": Kind(
    "text",
    _perplexity,
    perplexity_tables,
    (*READ, "evaluation.input_tokens"),
    measure="perplexity",
  ),
  "passkey": Kind(
    "passkey", Retrieval, retrieval_tables, (*ASKED, "evaluation.depths", "task.digits")
  ),
  "needle": Kind(
    "needle",
    Retrieval,
    retrieval_tables,
    (*ASKED, "evaluation.depths", *_fields("needle", "family needles hops facts digits")),
    family="needle.family",
  ),
  "recall": Kind(
    "recall",
    Retrieval,
    retrieval_tables,
    (*ASKED, *_fields("task", "pairs distinct_keys distinct_values span")),
  ),
  "summarization": Kind(
    "summarization",
    summarization,
    summarization_tables,
    (*READ, *_fields("evaluation", "summary_length temperature top_p")),
  ),
  "chat": Kind(
    "chat",
    answering,
    chat_tables,
    (
      *_fields("evaluation", "max_documents summary_length temperature top_p"),
      *_fields("chat", "template max_tokens too_long"),
    ),
  ),
  **{
    name: Kind(name, Grid, published_tables, _fields("evaluation", "max_documents summary_length"))
    for name in ("ruler", "babilong")
  },
  "surgery": Kind(
    "text",
    surgery.Surgery,
    surgery,
    (*READ, "evaluation.input_tokens", "train.start_from"),
    "before",
  ),
}
NAMES = (*KINDS, "gates", "knockout")


def datasets_of(names: Sequence[str]) -> dict[str, str]:
  """The dataset of each name of `--task`, as `open_dataset` calls it; "" for the run's task."""
  return {name: KINDS[name].dataset if name in KINDS else "" for name in names}


class Job(NamedTuple):
  """The evaluation for one folder of `WORKDIR/evaluation/`."""

  name: str  # the name of the folder
  task: str = ""  # a key of `KINDS`; empty: nothing is read
  variants: tuple[Variant, ...] = ()


def family_of(config: Config, task: str) -> str:
  """The family of a task that a config asks for; empty: it has none."""
  section, _, field = KINDS[task].family.partition(".")
  return str(getattr(getattr(config, section), field)) if field else ""


def facts_of_job(task: str, config: Config, dataset: Dataset) -> Facts:
  """What tables and reports read of a task that was evaluated."""
  facts = getattr(dataset, "facts", Facts(KINDS[task].measure))
  return facts._replace(title=", ".join(filter(None, [task, family_of(config, task)])))


def jobs_of(config: Config, names: Sequence[str]) -> list[Job]:
  """The jobs of an evaluation, one for each of the names.

  Raises:
    InputError: there is no such task, or it does not fit the model.
  """
  asked = config.evaluation.task or config.task.name
  own = next(name for name, kind in KINDS.items() if kind.dataset == asked)
  setting, memory = config.model.setting, config.model.memory
  jobs = []
  for name in dict.fromkeys(names or (own, *(("gates",) if memory.gated else ()))):
    if name not in NAMES:
      raise InputError(f"--task={name}: choose some of {','.join(NAMES)}")
    if name == "gates":
      if not memory.gated:
        raise InputError(f"--task=gates: config.{setting} has no gates; leave it out")
      jobs.append(Job(name))
    elif name == "knockout":
      # A text with an empty memory is written from the last segment: see `config.checks`.
      writes = bool(TASKS[asked].writes)
      possible = [] if writes and held_L(config.model) is not None else ["empty"]
      if not writes:  # else only "empty": generated tokens are read too
        possible += ["reads", "layers"] if memory.layered else ["reads"]
        possible += ["swap"] if config.evaluation.lanes > 1 and config.mesh.seq == 1 else []
      all_of_them = dataclasses.replace(config.evaluation, knock_out=tuple(possible))
      variants = knock_outs(dataclasses.replace(config, evaluation=all_of_them))
      if not variants:
        raise InputError(
          f"--task=knockout: config.{setting} has no memory to take away; leave it out"
        )
      jobs.append(Job(name, own, (INTACT, *variants)))
    elif name == "surgery":
      jobs.append(Job(name, name, (*surgery.originals(config), surgery.STEP_0, INTACT)))
    else:
      folder = "-".join(filter(None, [name, family_of(config, name)]))
      jobs.append(Job(folder, name, (INTACT, *knock_outs(config))))
  return jobs


def chosen(config: Config, dataset: Dataset) -> Config:
  """The config with the split to read of a dataset, and the whole name of the document.

  A corpus of one document is read as a whole. A document is found in any split, by its name or by
  the end of its name.

  Raises:
    InputError: there is no such document, or the split is empty.
  """
  store, e = dataset.store if isinstance(dataset, Pairs) else dataset, config.evaluation
  if not isinstance(store, Store):
    return config
  counts = {split: totals["documents"] for split, totals in store.splits.items()}
  split, document = e.split, e.document
  if document:
    split, document = _find(store, document)
  elif sum(counts.values()) == 1:
    split = ALL_SPLITS
  elif split != ALL_SPLITS and not counts[split]:
    there = ", ".join(f"{name} ({count:,})" for name, count in counts.items() if count)
    raise InputError(
      f"config.evaluation.split={split!r}: {config.data.path} has no such documents; choose one of "
      f"{there}, or 'all'"
    )
  count = sum(counts.values()) if split == ALL_SPLITS else counts[split]
  if "swap" in e.knock_out and (document or min(count, e.max_documents or count) < 2):
    raise InputError(
      "config.evaluation.knock_out='swap' for a single document: it is read with the memory of "
      "another; evaluate two or more, or leave it out"
    )
  return dataclasses.replace(
    config, evaluation=dataclasses.replace(e, split=split, document=document)
  )


def _find(store: Store, document: str) -> tuple[str, str]:
  """The split and the name of the only document whose name is, or ends with, `document`."""
  names = [(split, name) for split in SPLITS for name in store.split(split).names]
  same = [found for found in names if found[1] == document]
  ends = [found for found in names if found[1].endswith((f"/{document}", f" {document}"))]
  found = same or ends
  if len(found) == 1:
    return found[0]
  if found:
    some = ", ".join(name for _, name in found[:3])
    raise InputError(
      f"config.evaluation.document={document!r}: {len(found)} documents have this name, such as "
      f"{some}; give the whole name of one"
    )
  known = [name for _, name in names]
  close = difflib.get_close_matches(document, known[:10_000], 1) or known[:1]
  raise InputError(
    f"config.evaluation.document={document!r}: no document has this name; names are such as "
    f"{', '.join(close)}"
  )


def open_task(config: Config, path: str, console: Console, task: str) -> Dataset:
  """The dataset of a task.

  Raises:
    InputError: the task does not fit the run's vocabulary, has no corpus, or needs longer lengths.
  """
  generated = KINDS[task].evaluator is Retrieval
  if not generated and config.data.tokenizer == "task":
    raise InputError(
      f"--task={task} with config.data.tokenizer='task': a run in its task's own vocabulary "
      "cannot read text; leave it out"
    )
  workdir = Workdir(path)
  tokenizer = workdir.load_tokenizer()
  dataset = open_dataset(
    config, workdir.store, console, KINDS[task].dataset, tokenizer, workdir.stores
  )
  if generated:
    assert not isinstance(dataset, Store | Pairs | Conversations | Benchmark | TaskAndText)
    for length in config.evaluation.lengths:
      check_length(length, dataset.shortest, "config.evaluation.lengths")
  return dataset
