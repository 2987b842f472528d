"""The marks: ids that begin and end a document. Files declare them, or they have usual names.

An ordinary piece of a vocabulary is a mark only if a file declares it; its name does not matter.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from infini_jax.config import InputError

MARKS = ("bos", "eos")
USUAL = {
  "bos": (
    *("<s>", "<bos>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>"),
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",  # DeepSeek's
  ),
  "eos": (
    *("</s>", "<eos>", "[EOS]", "<|end_of_text|>", "<|endoftext|>"),
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
  ),
}
SHOWN = 8  # the most candidates that an error names
NAME_THEM = "name them as bos_token and eos_token in a tokenizer_config.json next to it"


class Declared(NamedTuple):
  """The marks that files declare; None for a mark that they do not declare.

  Attributes:
    bos: the id that begins a document.
    eos: the id that ends it.
    ends_turns: whether a chat template ends each turn with eos, and no config of a model names it.
  """

  bos: int | None = None
  eos: int | None = None
  ends_turns: bool = False


def find_marks(
  ids: Mapping[str, int],
  special: Collection[str],
  declared: Declared,
  name: str,
  remedy: str = NAME_THEM,
) -> tuple[int, int]:
  """The ids of bos and eos. If only one is found, it is used for both.

  Args:
    ids: the id of each token, by its name.
    special: the names of the tokens that are not text.
    declared: the marks that files declare.
    name: the vocabulary's file, for errors.
    remedy: the end of the error, if the marks cannot be decided.

  Raises:
    InputError: neither mark is found, or several tokens may be the same mark.
  """
  bos, eos = (
    _usual(mark, ids, special, name, remedy) if found is None else found
    for mark, found in zip(MARKS, declared[:2], strict=True)
  )
  if declared.ends_turns:
    usual = [ids[token] for token in USUAL["eos"] if token in special]
    eos = usual[0] if len(usual) == 1 else eos  # a chat turn is not a document
  bos, eos = (eos if bos is None else bos), (bos if eos is None else eos)
  if bos is None or eos is None:
    shown = _listed(sorted(special, key=ids.__getitem__), ids) or "it has no special tokens"
    raise InputError(
      f"{name}: nothing says which tokens open and end a document, and none of its special tokens "
      f"has a usual name ({shown}); {remedy}"
    )
  return bos, eos


def declared_marks(
  ids: Mapping[str, int], file: Path, raw: Mapping[str, Any] | None = None
) -> Declared:
  """The marks that the files in the folder of a vocabulary declare.

  The first of these that declares a mark is used: tokenizer_config.json, special_tokens_map.json,
  config.json, generation_config.json.

  Args:
    ids: the id of each token, by its name.
    file: the file of the vocabulary.
    raw: the content of config.json, if it was read already.

  Raises:
    InputError: a file names a token that does not exist, or files give it different ids.
  """
  folder = file.parent
  settings = read_object(folder / "tokenizer_config.json")
  named = {
    "tokenizer_config.json": settings,
    "special_tokens_map.json": read_object(folder / "special_tokens_map.json"),
  }
  numbered = {
    "config.json": read_object(folder / "config.json") if raw is None else raw,
    "generation_config.json": read_object(folder / "generation_config.json"),
  }
  limit = numbered["config.json"].get("vocab_size")
  limit = limit if type(limit) is int else 1 + max(ids.values(), default=0)

  def find(mark: str) -> tuple[int | None, bool]:
    """The id of a mark, and whether the config of a model has one."""
    by_name = [_by_name(folder / f, said, mark, ids, file) for f, said in named.items()]
    by_id = [_by_id(folder / f, said, mark, limit) for f, said in numbered.items()]
    first = next((id for id in by_name + by_id if id is not None), None)
    if first is not None and first not in ids.values():
      raise InputError(
        f"{folder}: {mark}_token_id={first} is not a token of {file.name}; correct it in "
        f"config.json"
      )
    return first, by_id != [None, None]

  (bos, _), (eos, by_model) = find("bos"), find("eos")
  names = [token for token, id in ids.items() if id == eos and eos is not None]
  template = "" if by_model else _chat_template(folder, settings)
  return Declared(bos, eos, any(name in template for name in names))


def added_tokens(folder: Path) -> dict[int, tuple[str, bool]]:
  """The tokens that files in a vocabulary's folder add to it: id to (name, whether it is special).

  Raises:
    InputError: the files contradict each other, or an id is not a number.
  """
  added: dict[int, tuple[str, bool]] = {}
  names: dict[str, int] = {}
  config = folder / "tokenizer_config.json"
  decoder = read_object(config).get("added_tokens_decoder") or {}
  if not isinstance(decoder, dict):
    raise InputError(f"{config}: its added_tokens_decoder is not an object; download it again")
  found = [(config, token, id) for id, token in decoder.items()]
  more = folder / "added_tokens.json"
  found += [(more, token, id) for token, id in read_object(more).items()]
  for file, token, id in found:
    special = not isinstance(token, dict) or bool(token.get("special", False))
    name = token.get("content") if isinstance(token, dict) else token
    number = int(id) if str(id).isdecimal() else -1
    if not isinstance(name, str) or not name or not 0 <= number < 2**31:
      raise InputError(f"{file}: {id!r} is not an id of a token {name!r}; correct it")
    if names.setdefault(name, number) != number:
      raise InputError(
        f"{file}: token {name!r} is {number} here and {names[name]} in another entry; correct one"
      )
    if added.setdefault(number, (name, special))[0] != name:
      raise InputError(
        f"{file}: id {number} is {name!r} here and {added[number][0]!r} in another entry; correct "
        f"one"
      )
  return added


def read_object(file: Path) -> dict[str, Any]:
  """The object in a JSON file, or an empty one if there is no such file.

  Raises:
    InputError: the file cannot be read.
  """
  if not file.is_file():
    return {}
  try:
    content = json.loads(file.read_text("utf-8"))
    return content if isinstance(content, dict) else {}
  except (ValueError, RecursionError, OSError) as error:
    raise InputError(f"{file}: cannot be read ({error}); copy or download it again") from None


def _usual(
  mark: str, ids: Mapping[str, int], special: Collection[str], name: str, remedy: str
) -> int | None:
  found = [token for token in USUAL[mark] if token in special]
  if len({ids[token] for token in found}) > 1:
    does = "open" if mark == "bos" else "end"
    raise InputError(
      f"{name}: several of its special tokens may {does} a document ({_listed(found, ids)}); "
      f"{remedy}"
    )
  return ids[found[0]] if found else None


def _listed(tokens: Collection[str], ids: Mapping[str, int]) -> str:
  shown = ", ".join(f"{token} {ids[token]}" for token in list(tokens)[:SHOWN])
  return shown + (f" and {len(tokens) - SHOWN:,} more" if len(tokens) > SHOWN else "")


def _by_name(
  where: Path, said: Mapping[str, Any], mark: str, ids: Mapping[str, int], file: Path
) -> int | None:
  """The id of the token that a file names as a mark."""
  token = said.get(f"{mark}_token")
  token = token.get("content") if isinstance(token, dict) else token
  if token in (None, ""):
    return None
  if not isinstance(token, str) or token not in ids:
    raise InputError(f"{where}: {mark}_token {token!r} is not a token of {file.name}; correct it")
  other = next((id for id, (name, _) in added_tokens(file.parent).items() if name == token), None)
  if other is not None and other != ids[token]:
    raise InputError(
      f"{where}: {mark}_token {token!r} is {ids[token]} in {file.name}, and {other} by the tokens "
      f"that the files next to it add; correct one of them"
    )
  return ids[token]


def _by_id(where: Path, said: Mapping[str, Any], mark: str, limit: int) -> int | None:
  """The id that a file gives for a mark; the first, if it gives several."""
  given = said.get(f"{mark}_token_id")
  several = given if isinstance(given, list) else [given]
  for id in several if given is not None else ():
    if type(id) is not int or not 0 <= id < limit:
      raise InputError(
        f"{where.parent}: {mark}_token_id={id!r} is not an id of its {limit}; correct it in "
        f"{where.name}"
      )
  return several[0] if several else None


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str:
  file = folder / "chat_template.jinja"
  file_text = file.read_text("utf-8", "replace") if file.is_file() else ""
  return json.dumps(settings.get("chat_template") or "", ensure_ascii=False) + file_text
