"""The registry of tasks: a new task is one line here."""

from collections.abc import Callable

from infini_jax.config import Config
from infini_jax.data.store.store import Store
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.tasks.example import Task
from infini_jax.tasks.needle_lists import WordLists
from infini_jax.tasks.needles import Needles
from infini_jax.tasks.passkey import Passkey
from infini_jax.tasks.recall import Recall


def make_task(
  config: Config, name: str, tokenizer: Tokenizer | None = None, filler: Store | None = None
) -> Task:
  """The task of that name.

  Args:
    config: the config of the run.
    name: passkey, recall or needle.
    tokenizer: the tokenizer of the run, if it has one; by default that of `config.data.tokenizer`.
    filler: the corpus of the text around needles; word lists do not need it.

  Raises:
    InputError: the tokenizer cannot write the task.
  """
  if name == "needle" and filler is not None:
    return Needles(config, filler, tokenizer)
  kinds: dict[str, Callable[..., Task]] = {
    "passkey": Passkey,
    "recall": Recall,
    "needle": WordLists,
  }
  return kinds[name](config, tokenizer)
