"""Which tasks there are: a new one is one line here."""

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
    config: of the run.
    name: passkey, recall or needle.
    tokenizer: the run's, once it has one; by default that of `config.data.tokenizer`.
    filler: what needles hide in, unless they stand in lists.

  Raises:
    InputError: a tokenizer that cannot write the task.
  """
  if name == "needle" and filler is not None:
    return Needles(config, filler, tokenizer)
  kinds: dict[str, Callable[..., Task]] = {
    "passkey": Passkey,
    "recall": Recall,
    "needle": WordLists,
  }
  return kinds[name](config, tokenizer)
