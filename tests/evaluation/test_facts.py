"""What tables read of a task is in results.json; older results have the same facts without it."""

import json

import pytest

from infini_jax.config import TASKS, Config
from infini_jax.evaluation.facts import MEASURES, facts_of, measure_of
from infini_jax.evaluation.retrieval import Cell, Retrieval
from infini_jax.evaluation.tasks import KINDS, facts_of_job, family_of
from infini_jax.tasks import Facts
from infini_jax.tasks.registry import GENERATED
from tests.tiny import config

FAMILIES = ("single", "facts", "common_words", "frequent_words")
CASES = [(name, "single") for name in KINDS if name != "needle"]
CASES += [("needle", family) for family in FAMILIES]


@pytest.mark.parametrize("task,family", CASES)
def test_older_results_mean_what_results_of_today_say(task, family):
  c = config(needle={"family": family})
  source = GENERATED[task](c) if task in GENERATED else None
  facts = facts_of_job(task, c, source)
  about = {"task": task, "settings": {"needle": {"family": family}, "task": {}}}
  results = json.loads(json.dumps(about | {"facts": facts._asdict()}))
  assert facts_of(results) == facts
  assert facts.title == (f"needle, {family}" if task == "needle" else task)
  older = facts_of(about)
  assert older.title == facts.title
  assert (older.measure == "perplexity") == (facts.measure == "perplexity")
  if KINDS[task].evaluator is Retrieval:
    assert older == facts and facts.measure in MEASURES
    still_older = {"task": task, "settings": {"task": {"family": family}}}
    assert facts_of(still_older) == facts


def test_a_measure_is_a_share_of_a_cell_with_its_interval():
  cell = Cell(100, 0.0, 50, 10, 200, 90)
  for name, share in (("exact_match", 0.2), ("token_accuracy", 0.45)):
    measure = measure_of({"task": "any", "facts": Facts(name)._asdict()})
    low, high = measure.interval(cell)
    assert measure.share(cell) == share and low < share < high
  assert MEASURES["exact_match"].whole and not MEASURES["token_accuracy"].whole


def test_a_family_is_a_field_of_the_config():
  for task in KINDS:
    assert family_of(Config(), task) == ("single" if task == "needle" else "")


def test_every_task_that_generates_examples_has_its_class():
  assert set(GENERATED) == {name for name, kind in TASKS.items() if kind.generated}
