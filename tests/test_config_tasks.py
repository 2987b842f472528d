"""The facts of tasks in the config."""

import pytest

from infini_jax.config import TASKS, Config, InputError, TaskConfig
from tests.tiny import config


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_its_facts(name):
  kind = TaskConfig(name=name).kind
  assert kind is TASKS[name]
  assert kind.asks == (name != "text"), "documents alone have no answers"
  assert not (kind.generated and kind.writes)


@pytest.mark.parametrize("name", TASKS)
def test_only_a_task_with_words_of_its_own_has_a_vocabulary_of_its_own(name):
  fields = {"task": {"name": name}, "data": {"tokenizer": "task", "carry_state": False}}
  if TASKS[name].own_words:
    assert config(**fields).data.tokenizer == "task"
    return
  with pytest.raises(InputError, match="needs config.task.name='passkey' or 'recall'"):
    config(**fields)


def test_the_default_is_documents():
  assert not Config().task.kind.asks
