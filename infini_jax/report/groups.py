"""Which figures of runs can be compared: those of the same text, tokenizer and task."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from infini_jax.evaluation.filing import Evaluated, is_averaged, told_apart
from infini_jax.report.runs import RunFiles, is_knock_out

# Sections of the config that say what a task asks, in addition to its text; a text alone has none.
ASKED = ("task", "needle", "chat")
USUAL = ("task", "corpus", "tokenizer")  # fields in which most trainings differ


class Member(NamedTuple):
  """One evaluation of a run."""

  run: RunFiles
  folder: str
  results: dict[str, Any]


class Group(NamedTuple):
  """The evaluations of one question: of the same task, corpus, tokenizer and protocol."""

  title: str
  description: str
  members: list[Member]


def trained(runs: Sequence[RunFiles], validated: bool = False) -> dict[str, list[RunFiles]]:
  """The runs whose losses are of the same text, tokenizer and task.

  Args:
    runs: of any workdirs.
    validated: whether the losses are those of validations, which also have a protocol.

  Returns:
    Runs by what distinguishes them from the others, in words; empty if it is one group.
  """
  fields = {run.name: _trained_on(run, validated) for run in runs}
  every = dict.fromkeys(name for one in fields.values() for name in one)
  texts = {name: {f: _said(one.get(f)) for f in every} for name, one in fields.items()}
  differ = [f for f in every if len({one[f] for one in texts.values()}) > 1]
  words = lambda name, some: ", ".join(filter(None, (_named(f, texts[name][f]) for f in some)))
  # The usual fields, and others only where runs with the same usual ones differ.
  usual = {run.name: words(run.name, [f for f in differ if f in USUAL]) for run in runs}
  made: dict[str, list[RunFiles]] = {}
  for run in runs:
    alike = [name for name in texts if usual[name] == usual[run.name]]
    others = [f for f in differ if f not in USUAL and len({texts[n][f] for n in alike}) > 1]
    apart = ", ".join(filter(None, [usual[run.name], words(run.name, others)]))
    made.setdefault(apart, []).append(run)
  return made


def evaluated(runs: Sequence[RunFiles]) -> list[Group]:
  """All evaluations of some runs, by question, in the order of the runs' own evaluations."""
  members: dict[tuple[Any, ...], list[Member]] = {}
  for run in runs:
    for folder, results in run.evaluations.items():
      one = Evaluated.of(results)
      key = (one.key, one.tokenizer, is_averaged(results), is_knock_out(folder))
      members.setdefault(key, []).append(Member(run, folder, results))
  groups = list(members.values())
  if len(runs) == 1:
    titles = [runs[0].names[some[0].folder] for some in groups]
  else:
    titles = _titles(groups)
  descriptions = [
    Evaluated.of(some[0].results).description if "protocol" in some[0].results else ""
    for some in groups
  ]
  made = [Group(*one) for one in zip(titles, descriptions, groups, strict=True)]
  order = {name: i for i, name in enumerate(dict.fromkeys(_asked(group) for group in made))}
  return sorted(made, key=lambda group: order[_asked(group)])


def _titles(groups: list[list[Member]]) -> list[str]:
  alike: dict[str, dict[str, Evaluated]] = {}
  for i, some in enumerate(groups):
    one = Evaluated.of(some[0].results)
    what = f"knockout, {one.asked}" if is_knock_out(some[0].folder) else one.asked
    alike.setdefault(": ".join(filter(None, [what, one.read])), {})[str(i)] = one
  titles = {}
  for what, those in alike.items():
    for number, apart in told_apart(those).items():
      titles[number] = ", ".join(filter(None, [what, apart]))
  return [titles[str(i)] for i in range(len(groups))]


def _asked(group: Group) -> str:
  return str(group.members[0].results["task"])


def _trained_on(run: RunFiles, validated: bool) -> dict[str, Any]:
  c = run.config
  fields: dict[str, Any] = {"task": c.task.name, "corpus": c.data.path}
  fields |= {"tokenizer": c.data.tokenizer, "text": run.text}
  if c.task.kind.asks:
    sections = (dataclasses.asdict(getattr(c, section)) for section in ASKED)
    asked = {name: value for section in sections for name, value in section.items()}
    fields |= {name: value for name, value in asked.items() if name != "name"}
  if validated:
    e = c.evaluation
    fields |= {"documents": c.train.eval_documents, "max_tokens": e.max_tokens}
    fields |= {"input_tokens": e.input_tokens}
  return json.loads(json.dumps(fields))


def _said(value: Any) -> str:
  return ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _named(name: str, value: str) -> str:
  if not value or (name, value) == ("tokenizer", "task"):
    return ""
  return value if name in ("task", "corpus") else f"{name} {value}"
