"""The identity of an evaluation, and the folder of its results by task, corpus and protocol.

    WORKDIR/evaluation/perplexity/books-test-1f3a9c/results.json
    WORKDIR/evaluation/passkey/4096-tokens-72b01d/results.json
    WORKDIR/evaluation/gates/results.json

The end of a name is a digest of everything that changes the figures. So the same evaluation
replaces its own results, and another evaluation gets its own folder. Older versions wrote into
`evaluation/TASK/` itself, without corpus and protocol.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infini_jax.config import Config, InputError, migrated, moved_to
from infini_jax.data import Store
from infini_jax.data.sources.base import digest
from infini_jax.data.store.evaluated import file_name, short_name
from infini_jax.evaluation.facts import facts_of
from infini_jax.evaluation.tasks import KINDS
from infini_jax.files import write_json
from infini_jax.tasks import Benchmark, Conversations, Facts

FILE = "results.json"
WEIGHTS = ("last", "moving average")  # which parameters were evaluated


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """What one evaluation read, and how.

  Attributes:
    task: the task: one of `tasks.KINDS`, or any other.
    corpus: its `name`, its `path` as given, and `text` and `fingerprint`, short hashes of its
      documents and of their tokens; None if no corpus was read, or in results of older versions.
    split: the split of the corpus.
    protocol: the fields that change the figures, by name, such as "evaluation.max_tokens".
    knock_out: the ablations that were computed too.
    step: the step of the checkpoint.
    averaged: whether the moving average of the parameters was evaluated.
    tokenizer: the fingerprint of the tokenizer; empty without one, or in older results.
    facts: what tables read of the task.
  """

  task: str
  corpus: Mapping[str, str] | None
  split: str | None
  protocol: Mapping[str, Any]
  knock_out: tuple[str, ...]
  step: int
  averaged: bool = False
  tokenizer: str = ""
  facts: Facts = Facts()

  @classmethod
  def of(cls, results: Mapping[str, Any]) -> "Evaluated":
    """The identity from a `results.json`; older results contain less of it."""
    task = results["task"]
    said = results.get("protocol")
    return cls(
      task,
      results.get("corpus"),
      results.get("split"),
      protocol(task, migrated(results["settings"])) if said is None else _today(said),
      tuple(results.get("knocked_out", ())),
      results["step"],
      is_averaged(results),
      results.get("tokenizer") or "",
      facts_of(results),
    )

  @property
  def asked(self) -> str:
    """The task, and its family if it has some."""
    return self.facts.title or self.task

  @property
  def read(self) -> str:
    """The corpus and its split, if they are known."""
    return ", ".join(filter(None, [self.corpus["name"] if self.corpus else "", self.split]))

  @property
  def description(self) -> str:
    """The whole identity in words, without fields that are off."""
    corpus = "corpus {path} (text {text:.8})".format(**self.corpus) if self.corpus else ""
    fields = (f"{k.partition('.')[2]} {_words(v)}" for k, v in self.protocol.items() if _on(v))
    averaged = f"{WEIGHTS[True]} of the parameters" * self.averaged
    return "; ".join(filter(None, [corpus, self.split, *fields, averaged]))

  @property
  def key(self) -> str:
    """A key that is equal for comparable figures: the same task, text and protocol.

    Figures per token also need the same tokenizer. The key does not depend on it, nor on the
    ablations, the step, or whether the parameters are averaged.
    """
    text = self.corpus and self.corpus["text"]
    on = {name: value for name, value in self.protocol.items() if value}
    return json.dumps([self.task, text, self.split, on], sort_keys=True)

  def folder(self, job: str, newest: int) -> Path:
    """The folder of the results, below `WORKDIR/evaluation/`.

    Args:
      job: the name of the task's folder.
      newest: the step of the newest checkpoint; results of earlier steps get their own folders.
    """
    document = self.protocol.get("evaluation.document", "")
    of = [self.corpus["name"] if self.corpus else "", document.rpartition("/")[2]]
    name = [*map(file_name, of), self.split or ""]
    if lengths := self.protocol.get("evaluation.lengths"):
      name.append(f"{max(lengths)}-tokens")
    if self.protocol:
      name.append(digest([self.key, *self.knock_out])[:6])
    if self.step != newest:
      name.append(f"step-{self.step}")
    if self.averaged:
      name.append("ema")
    return Path(job, "-".join(filter(None, name)))


def is_averaged(results: Mapping[str, Any]) -> bool:
  """Whether results are of the moving average of the parameters; older results are not."""
  return results.get("weights") == WEIGHTS[True]


def told_apart(some: Mapping[str, Evaluated]) -> dict[str, str]:
  """The differences between evaluations of one task, in words; empty for a single evaluation."""
  texts: dict[str, set[str]] = {}
  for one in some.values():
    if one.corpus:
      texts.setdefault(one.corpus["name"], set()).add(one.corpus["text"])
  flat = {name: _flat(one, texts) for name, one in some.items()}
  fields = dict.fromkeys(field for one in flat.values() for field in one)
  differ = [f for f in fields if len({str(one.get(f)) for one in flat.values()}) > 1]
  said = lambda field, value: value if field in ("corpus", "split") else f"{field} {value}"
  return {
    name: ", ".join(said(f, one[f]) for f in differ if one.get(f)) for name, one in flat.items()
  }


def _on(value: Any) -> bool:
  """Whether a field of a protocol is on; a temperature of 0 is."""
  return bool(value) or isinstance(value, float)


def _words(value: Any) -> str:
  return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _flat(one: Evaluated, texts: Mapping[str, set[str]]) -> dict[str, str]:
  """The identity, field by field; a corpus gets its path and a hash if its name is not unique."""
  if not one.corpus:
    corpus = "corpus not named"
  elif len(texts[one.corpus["name"]]) == 1:
    corpus = one.corpus["name"]
  else:
    corpus = "{path} ({text:.6})".format(**one.corpus)
  fields = {k.partition(".")[2]: _words(value) for k, value in one.protocol.items() if _on(value)}
  fields["weights"] = WEIGHTS[one.averaged]
  if one.tokenizer:
    fields["tokenizer"] = one.tokenizer[:6]
  return {"corpus": corpus, "split": one.split or "split not named", **fields}


def protocol(task: str, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """The fields of the settings that change the figures of a task, if they are in the settings."""
  fields = (name.split(".") for name in (KINDS[task].protocol if task in KINDS else ()))
  found = {
    f"{section}.{field}": settings[section][field]
    for section, field in fields
    if field in settings.get(section, {})
  }
  return json.loads(json.dumps(found))  # tuples become lists, as in a file


def _today(said: Mapping[str, Any]) -> dict[str, Any]:
  """The protocol with the current names of older fields."""
  parts = {tuple(name.split(".")): value for name, value in said.items()}
  digits = (
    {("needle", "digits"): parts.pop(("task", "digits"))} if ("task", "family") in parts else {}
  )
  return {".".join(moved_to(*name) or name): value for name, value in (parts | digits).items()}


def about_corpus(
  store: Store | Conversations | Benchmark | None, path: str
) -> dict[str, str] | None:
  """The entry of a corpus in results; None without a store."""
  if store is None:
    return None
  return {
    "name": short_name(path),
    "path": path,
    "text": store.text,
    "fingerprint": store.fingerprint,
  }


def files(folder: Path) -> Iterator[Path]:
  """Every `results.json` below a folder, such as `WORKDIR/evaluation`."""
  yield from folder.glob(f"**/{FILE}")


def newest_file(workdir: Path, task: str) -> Path:
  """The newest `results.json` of a task; for needles, of any family.

  Raises:
    InputError: there is none.
  """
  root = workdir / "evaluation"
  found = [f for f in files(root) if f.relative_to(root).parts[0].partition("-")[0] == task]
  if not found:
    raise InputError(f"{workdir}: {task} was not evaluated; eval.py --workdir={workdir} does")
  return max(found, key=lambda file: file.stat().st_mtime_ns)


def newest(workdir: Path, task: str) -> dict[str, Any]:
  """The content of the newest `results.json` of a task.

  Raises:
    InputError: there is none.
  """
  return json.loads(newest_file(workdir, task).read_text("utf-8"))


def write(folder: Path, results: Mapping[str, Any]) -> None:
  """Writes the results into their folder, completely or not at all."""
  write_json(folder / FILE, results)


def settings_of(config: Config) -> dict[str, Any]:
  """The sections of a config that an evaluation depends on."""
  return {
    "evaluation": dataclasses.asdict(config.evaluation),
    "task": dataclasses.asdict(config.task),
    "needle": dataclasses.asdict(config.needle),
    "chat": dataclasses.asdict(config.chat),
    "train": {"start_from": config.train.start_from},
  }
