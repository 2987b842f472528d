"""What was evaluated, and where its results lie: filed by task, corpus and protocol.

    WORKDIR/evaluation/perplexity/books-test-1f3a9c/results.json
    WORKDIR/evaluation/passkey/4096-tokens-72b01d/results.json
    WORKDIR/evaluation/gates/results.json

The end of a name is a digest of everything that changes the figures: the same evaluation again
replaces its own results, another one stands beside them. An older program wrote no corpus and no
protocol, into `evaluation/TASK/` itself.
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
from infini_jax.evaluation.tasks import KINDS
from infini_jax.files import write_json

FILE = "results.json"


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """What one evaluation read, and how.

  Attributes:
    task: what was asked: one of `tasks.KINDS`, or any other.
    corpus: its `name`, `path` as it was given, `text` and `fingerprint`, short hashes of its
      documents and of their tokens; None where none was read, or an older program did not say.
    split: of the corpus.
    protocol: the fields that change the figures, by name, such as "evaluation.max_tokens".
    knock_out: the variants beside the whole memory.
    step: of the checkpoint.
  """

  task: str
  corpus: Mapping[str, str] | None
  split: str | None
  protocol: Mapping[str, Any]
  knock_out: tuple[str, ...]
  step: int

  @classmethod
  def of(cls, results: Mapping[str, Any]) -> "Evaluated":
    """What a `results.json` says of itself; an older program's settings say less."""
    task = results["task"]
    said = results.get("protocol")
    return cls(
      task,
      results.get("corpus"),
      results.get("split"),
      protocol(task, migrated(results["settings"])) if said is None else _today(said),
      tuple(results.get("knocked_out", ())),
      results["step"],
    )

  @property
  def asked(self) -> str:
    """The task; of needles, also what hides."""
    family = self.protocol.get("needle.family")
    return f"{self.task}, {family}" if self.task == "needle" else self.task

  @property
  def read(self) -> str:
    """The corpus and its split, where they are known."""
    return ", ".join(filter(None, [self.corpus["name"] if self.corpus else "", self.split]))

  @property
  def description(self) -> str:
    """All of it in words, less what is off."""
    corpus = "corpus {path} (text {text:.8})".format(**self.corpus) if self.corpus else ""
    fields = (f"{k.partition('.')[2]} {_words(v)}" for k, v in self.protocol.items() if _on(v))
    return "; ".join(filter(None, [corpus, self.split, *fields]))

  @property
  def key(self) -> str:
    """The same where figures may stand in one row: the same text, read and asked in the same way.

    Which knock-outs were run beside it, and at which step, does not matter.
    """
    text = self.corpus and self.corpus["text"]
    on = {name: value for name, value in self.protocol.items() if value}
    return json.dumps([self.task, text, self.split, on], sort_keys=True)

  def folder(self, job: str, newest: int) -> Path:
    """Where the results go, below `WORKDIR/evaluation/`.

    Args:
      job: the name of the task's folder.
      newest: the newest checkpoint; of an earlier one, results stand apart.
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
    return Path(job, "-".join(filter(None, name)))


def told_apart(some: Mapping[str, Evaluated]) -> dict[str, str]:
  """What tells evaluations of one task from each other, in words; nothing of one alone."""
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
  """Whether a field of a protocol changes anything; a temperature of 0 does."""
  return bool(value) or isinstance(value, float)


def _words(value: Any) -> str:
  return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _flat(one: Evaluated, texts: Mapping[str, set[str]]) -> dict[str, str]:
  """What it is, field by field; a corpus whose name is another's too has its place and a hash."""
  if not one.corpus:
    corpus = "corpus not named"
  elif len(texts[one.corpus["name"]]) == 1:
    corpus = one.corpus["name"]
  else:
    corpus = "{path} ({text:.6})".format(**one.corpus)
  fields = {k.partition(".")[2]: _words(value) for k, value in one.protocol.items() if _on(value)}
  return {"corpus": corpus, "split": one.split or "split not named", **fields}


def protocol(task: str, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """The fields of some settings that change the figures of a task; those that there are."""
  fields = (name.split(".") for name in (KINDS[task].protocol if task in KINDS else ()))
  found = {
    f"{section}.{field}": settings[section][field]
    for section, field in fields
    if field in settings.get(section, {})
  }
  return json.loads(json.dumps(found))  # tuples as lists, as they are read back


def _today(said: Mapping[str, Any]) -> dict[str, Any]:
  """A protocol whose fields have the names of today."""
  parts = {tuple(name.split(".")): value for name, value in said.items()}
  digits = (
    {("needle", "digits"): parts.pop(("task", "digits"))} if ("task", "family") in parts else {}
  )
  return {".".join(moved_to(*name) or name): value for name, value in (parts | digits).items()}


def about_corpus(store: Store | None, path: str) -> dict[str, str] | None:
  """How results name a corpus."""
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
  """The `results.json` of a task that was written last; of needles, of any family.

  Raises:
    InputError: there is none.
  """
  root = workdir / "evaluation"
  found = [f for f in files(root) if f.relative_to(root).parts[0].partition("-")[0] == task]
  if not found:
    raise InputError(f"{workdir}: {task} was not evaluated; eval.py --workdir={workdir} does")
  return max(found, key=lambda file: file.stat().st_mtime_ns)


def newest(workdir: Path, task: str) -> dict[str, Any]:
  """What that file holds."""
  return json.loads(newest_file(workdir, task).read_text("utf-8"))


def write(folder: Path, results: Mapping[str, Any]) -> None:
  """Writes the results into their folder, all of them or nothing."""
  write_json(folder / FILE, results)


def settings_of(config: Config) -> dict[str, Any]:
  """The sections of a config that say how it is evaluated."""
  return {
    "evaluation": dataclasses.asdict(config.evaluation),
    "task": dataclasses.asdict(config.task),
    "needle": dataclasses.asdict(config.needle),
    "train": {"start_from": config.train.start_from},
  }
