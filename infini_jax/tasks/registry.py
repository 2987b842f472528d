"""The registry of tasks that generate examples: a new task is one line here."""

from collections.abc import Callable
from typing import Any

from infini_jax.config import Config
from infini_jax.data.store.store import Store
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.tasks.example import Task
from infini_jax.tasks.needle_families import IN_FILLER
from infini_jax.tasks.needle_lists import WordLists
from infini_jax.tasks.needles import Needles
from infini_jax.tasks.passkey import Passkey
from infini_jax.tasks.recall import Recall

# By name, the class of a task; the config may decide it.
GENERATED: dict[str, Callable[[Config], Any]] = {
  "passkey": lambda config: Passkey,
  "recall": lambda config: Recall,
  "needle": lambda config: Needles if config.needle.family in IN_FILLER else WordLists,
}


def make_task(
  config: Config, name: str, tokenizer: Tokenizer | None = None, filler: Store | None = None
) -> Task:
  """The task of that name.

  Args:
    config: the config of the run.
    name: passkey, recall or needle.
    tokenizer: the tokenizer of the run, if it has one; by default that of `config.data.tokenizer`.
    filler: the documents of a task that hides its examples in them.

  Raises:
    InputError: the tokenizer cannot write the task.
  """
  made = GENERATED[name](config)
  return made(config, filler, tokenizer) if made.hides else made(config, tokenizer)
