"""A field that a flag sets without effect is named in a line; no other field is."""

import dataclasses
import runpy
from pathlib import Path

import pytest

from infini_jax.config import SECTIONS, System, load_config, resolve
from infini_jax.config.pattern import Pattern
from infini_jax.config.unread import unread
from infini_jax.evaluation.tasks import KINDS, datasets_of

CONFIGS = Path(__file__).parent.parent / "configs"
VARIANTS = {
  "adapt_smollm": "pretrain passkey laptop far keys million text",
  "compare": " ".join(runpy.run_path(str(CONFIGS / "compare.py"))["SYSTEMS"]),
  "llm_1b": "pretrain continual",
  "llm_8b": "pretrain continual",
}
FILES = [
  f"{file}:{variant}" if variant else str(file)
  for file in sorted(CONFIGS.glob("*.py"))
  for variant in VARIANTS.get(file.stem, "").split(" ")
]


def said(*fields, file=CONFIGS / "demo.py", asked=None):
  """The lines about a config with these fields set by flags."""
  lines = []
  flags = [f"--config.{field}" for field in fields]
  load_config([f"--config={file}", *flags], say=lines.append, asked=asked)
  return lines


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.rpartition("/")[2])
def test_no_field_of_our_configs_is_without_effect(file):
  assert said(file=file) == []


@pytest.mark.parametrize(
  "fields,line",
  [
    (
      ("model.mixer=rmt", "run.implementation=scan", "run.attention=reference"),
      "config.run.implementation, config.run.attention have no effect with config.model.mixer="
      "'rmt'",
    ),
    (
      ("model.mixer=local", "run.implementation=kernels", "run.attention=reference"),
      "config.run.implementation has no effect with config.model.mixer='local'",
    ),
    (
      ("model.mixer=local", "optimizer.gate_learning_rate=0.5", "weight_decay.gates=1"),
      "config.optimizer.gate_learning_rate, config.weight_decay.gates have no effect with "
      "config.model.mixer='local'",
    ),
    (
      ("infini.write_penalty=0.1",),
      "config.infini.write_penalty has no effect with config.infini.write_gate=False",
    ),
    (
      ("model.mixer=gated_delta", "gated_delta.write_penalty=0.1"),
      "config.gated_delta.write_penalty has no effect with config.gated_delta.write_gate=False",
    ),
    (
      ("model.mixer=local", "infini.rule=delta", "rmt.summary_tokens=3"),
      "config.infini.rule, config.rmt.summary_tokens have no effect with config.model.mixer="
      "'local'",
    ),
    (("adapters.alpha=3",), "config.adapters.alpha has no effect with config.adapters.rank=0"),
    (
      ("task.pairs=3", "warm.segments=2"),
      "config.task.pairs has no effect with config.task.name='text'; "
      "config.warm.segments has no effect with config.warm.share=0.0",
    ),
    (("needle.hops=2",), "config.needle.hops has no effect with config.task.name='text'"),
    (("chat.too_long=cut",), "config.chat.too_long has no effect with config.task.name='text'"),
    (
      ("optimizer.momentum=0.9", "optimizer.decay_shape=linear"),
      "config.optimizer.momentum has no effect with config.optimizer.name='adamw'; "
      "config.optimizer.decay_shape has no effect with config.optimizer.schedule='cosine'",
    ),
    (
      ("model.pattern=(infini,local)", "model.mixer=rmt", "rmt.summary_tokens=7"),
      "config.model.mixer, config.rmt.summary_tokens have no effect with config.model.pattern="
      "('infini', 'local')",
    ),
    (
      ("evaluation.temperature=0", "evaluation.top_p=0.5"),
      "config.evaluation.top_p has no effect with config.evaluation.temperature=0.0",
    ),
  ],
  ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_fields_that_are_set_by_hand_without_effect_are_named(fields, line):
  assert said(*fields) == [line]


@pytest.mark.parametrize(
  "fields",
  [
    ("infini.write_gate=True", "infini.write_penalty=0.1"),
    ("infini.rule=delta", "run.implementation=scan", "run.attention=reference"),
    ("model.mixer=local", "optimizer.gate_learning_rate=0.01"),  # the default
    ("model.pattern=(infini,local)", "infini.rule=delta", "run.implementation=scan"),
    ("evaluation.task=recall", "task.pairs=3"),
    ("evaluation.lengths=(64,)", "evaluation.temperature=0.1"),  # an evaluation may ask for a task
    ("warm.share=0.5", "warm.segments=2"),
  ],
  ids=lambda fields: fields[0],
)
def test_fields_with_an_effect_are_not_named(fields):
  assert said(*fields) == []


def test_a_config_file_may_hold_fields_for_what_a_flag_turns_on(tmp_path):
  file = tmp_path / "config.py"
  file.write_text(
    "from infini_jax.config import base_config\n"
    "def get_config():\n"
    "  config = base_config()\n"
    "  config.warm.segments = 2\n"
    "  config.rmt.summary_tokens = 3\n"
    "  return config\n"
  )
  assert said(file=file) == []
  assert said("warm.min_tokens=9", file=file) == [
    "config.warm.min_tokens has no effect with config.warm.share=0.0"
  ]


def test_an_evaluation_reads_the_fields_of_the_tasks_that_it_asks():
  fields = ("task.pairs=3", "evaluation.lengths=(64,)", "evaluation.max_tokens=9")
  assert said(*fields, asked=datasets_of(["recall", "perplexity"])) == []
  assert said(*fields, asked=datasets_of(["passkey"])) == [
    "config.task.pairs, config.evaluation.max_tokens have no effect with --task=passkey"
  ]
  for own in ([], ["knockout", "gates"]):
    (line,) = said(*fields, asked=datasets_of(own))
    setting = f"--task={','.join(own)}" if own else "config.task.name='text'"
    assert line == f"config.task.pairs, config.evaluation.lengths have no effect with {setting}"
  (line,) = said(*fields, "evaluation.task=passkey", asked={})
  assert line.endswith("have no effect with config.evaluation.task='passkey'")


# Another value of each field on which the figures of a task depend, and what that field needs.
OTHER = {
  "evaluation": {"document": "a", "max_tokens": 9, "input_tokens": 512, "lengths": (64,)}
  | {"samples": 9, "depths": (0.25,), "summary_length": 9, "temperature": 0.1, "top_p": 0.5},
  "task": {"digits": 9, "pairs": 9, "distinct_keys": 99, "distinct_values": 99, "span": 99},
  "needle": {"family": "multikey", "needles": 9, "hops": 9, "facts": 2, "digits": 9},
  "chat": {"template": "plain", "max_tokens": 9, "too_long": "cut"},
}
NEEDS = {"needles": "multikey", "hops": "variables", "facts": "facts"}


def test_an_evaluation_depends_on_the_fields_that_its_task_reads():
  """What changes the figures of a task (its protocol) is what is read with it."""
  listed = {name for kind in KINDS.values() for name in kind.protocol}
  fields = {f"{section}.{name}" for section, others in OTHER.items() for name in others}
  assert fields == listed - {"evaluation.max_documents", "train.start_from"}
  for name, kind in KINDS.items():
    for section, others in OTHER.items():
      for field, value in others.items():
        needs = {"family": NEEDS[field]} if section == "needle" and field in NEEDS else {}
        given = {section: {**needs, field: value}}
        line = unread(given, resolve(given), [(section, field)], {name: kind.dataset})
        assert (line is None) == (f"{section}.{field}" in kind.protocol), (name, field, line)


def test_conditions_name_fields_their_values_and_facts():
  for section, kind in SECTIONS.items():
    for condition, names in getattr(kind, "where", {}).items():
      own = {field.name for field in dataclasses.fields(kind)}
      assert names == "*" or set(names.split()) <= own, (section, names)
      place, _, words = condition.partition("=")
      of, _, name = place.partition(".")
      if of == "memory":
        assert hasattr(System, name) and hasattr(Pattern, name), condition
        continue
      (field,) = [f for f in dataclasses.fields(SECTIONS[of]) if f.name == name]
      known = {*field.metadata.get("choices", ()), *(kind.dataset for kind in KINDS.values())}
      assert set(words.split("|")) <= known | {""}, condition
