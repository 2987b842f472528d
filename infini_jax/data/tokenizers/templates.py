"""The chat template of a vocabulary: how a conversation becomes text. It goes with the tokenizer.

A Hugging Face folder has it in `tokenizer_config.json`, or in `chat_template.jinja` next to it. A
saved tokenizer has it in `chat.json`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from infini_jax.config import InputError
from infini_jax.data.tokenizers.marks import read_object
from infini_jax.files import write_json

FILE, TEMPLATE_FILE = "chat.json", "chat_template.jinja"
DEFAULT = "default"  # the name of the template that is used unless another is asked for


class Template(NamedTuple):
  """The templates of a vocabulary, and the values that they may use.

  Attributes:
    texts: the Jinja text of each template, by its name.
    tokens: the names of special tokens, by their role, such as `eos_token`.
    chosen: the `config.chat.template` of the run that chose it; empty: it came with the model.
    date: the day that `strftime_now` gives, as YYYY-MM-DD; empty: today.
  """

  texts: Mapping[str, str]
  tokens: Mapping[str, str]
  chosen: str = ""
  date: str = ""

  def save(self, folder: Path) -> None:
    """Writes `chat.json` into a folder."""
    write_json(folder / FILE, self._asdict())


def load_template(folder: Path) -> Template | None:
  """The template that `Template.save` wrote into a folder; None if there is none.

  Raises:
    InputError: the file is damaged.
  """
  file = folder / FILE
  if not file.is_file():
    return None
  said = read_object(file)
  try:
    return Template(_texts(said["texts"]), _texts(said["tokens"]), said["chosen"], said["date"])
  except (KeyError, TypeError):
    raise InputError(f"{file}: damaged; copy the tokenizer again") from None


def find_template(folder: Path) -> Template | None:
  """The template of a Hugging Face folder; None if it has none.

  Raises:
    InputError: a file cannot be read, or its chat_template is neither a text nor a list of them.
  """
  config = folder / "tokenizer_config.json"
  said, file = read_object(config), folder / TEMPLATE_FILE
  given = said.get("chat_template") or {}
  try:
    if isinstance(given, str):
      texts = {DEFAULT: given}
    elif isinstance(given, list):
      texts = _texts({one["name"]: one["template"] for one in given})
    else:
      texts = _texts(given)
  except (KeyError, TypeError):
    raise InputError(
      f"{config}: its chat_template is neither a text nor a list of named texts; correct it"
    ) from None
  if file.is_file():
    texts[DEFAULT] = file.read_text("utf-8", "replace")
  if not texts:
    return None
  return Template(texts, _names(read_object(folder / "special_tokens_map.json") | said))


def _names(said: Mapping[str, Any]) -> dict[str, str]:
  """The special tokens that a file names, by their role."""
  found = {}
  for role, token in said.items():
    name = token.get("content") if isinstance(token, dict) else token
    if role.endswith("_token") and isinstance(name, str):
      found[role] = name
  return found


def _texts(given: Any) -> dict[str, str]:
  """A copy of a mapping from texts to texts; raises TypeError if it is none."""
  if not isinstance(given, Mapping) or not all(isinstance(x, str) for x in given.values()):
    raise TypeError("not texts by their names")
  return dict(given)
