"""The tokenizer that belongs to converted weights, with the ids that open and end a document."""

import json
from pathlib import Path
from typing import Any

from infini_jax.config import InputError
from infini_jax.data import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer, load_saved


def find_tokenizer(folder: Path, raw: dict[str, Any]) -> Tokenizer:
  """The tokenizer of a Hugging Face folder.

  Args:
    folder: with a `tokenizer.json` or a `tokenizer.model`.
    raw: the content of `config.json`.

  Raises:
    InputError: there is none, or one larger than the embedding.
  """
  file = folder / "tokenizer.json"
  tokenizer: Tokenizer
  if file.is_file():
    content = _without_extras(file.read_bytes(), raw["vocab_size"])
    tokenizer = make_tokenizer(content, _declared(folder, raw, content), str(file))
  elif (file := folder / "tokenizer.model").is_file():
    tokenizer = SentencePieceTokenizer(file.read_bytes(), str(file))
  else:
    try:
      tokenizer = load_saved(folder)  # of a run that was trained from scratch, and exported
    except (InputError, OSError):
      raise InputError(
        f"{folder}: holds no tokenizer.json and no tokenizer.model; add the model's"
      ) from None
  check_size(tokenizer, raw["vocab_size"], str(file))
  return tokenizer


def make_tokenizer(content: bytes, marks: tuple[int | None, int | None], name: str) -> Tokenizer:
  """The tokenizer of a `tokenizer.json`, with bos and eos as declared, or else by usual names."""
  bos, eos = marks
  bos, eos = (eos if bos is None else bos), (bos if eos is None else eos)
  if bos is None or eos is None:
    return HuggingFaceTokenizer(content, name)
  try:
    usual = HuggingFaceTokenizer(content, name)
    if (usual.bos, usual.eos) == (bos, eos):
      return usual
  except InputError:
    pass  # it has no usual names, or is no tokenizer at all, which is found out again
  return HuggingFaceTokenizer(content, name, (bos, eos))


def check_size(tokenizer: Tokenizer, vocab_size: int, name: str) -> None:
  """Raises InputError if some ids of a tokenizer have no embedding."""
  if tokenizer.size > vocab_size:
    raise InputError(
      f"{name}: its {tokenizer.size} ids are more than the embedding's {vocab_size} rows: it "
      f"belongs to another model; put this model's own there"
    )


def _without_extras(content: bytes, vocab_size: int) -> bytes:
  """Without the special tokens behind the embedding, such as Gemma 3's for pictures."""
  try:
    parsed = json.loads(content)
    kept = [t for t in parsed["added_tokens"] if not t["special"] or t["id"] < vocab_size]
    if len(kept) == len(parsed["added_tokens"]):
      return content
    return json.dumps(parsed | {"added_tokens": kept}, ensure_ascii=False).encode()
  except (ValueError, KeyError, TypeError):
    return content  # the tokenizer says what is wrong with it


def _declared(folder: Path, raw: dict[str, Any], content: bytes) -> tuple[int | None, int | None]:
  """The ids of bos and eos, by tokenizer_config.json, config.json, generation_config.json."""
  names = _read(folder / "tokenizer_config.json")
  ids = _ids(content)
  found = []
  for mark in ("bos", "eos"):
    token = names.get(f"{mark}_token")
    token = token.get("content") if isinstance(token, dict) else token
    places = [ids.get(token) if isinstance(token, str) else None, raw.get(f"{mark}_token_id")]
    places.append(_read(folder / "generation_config.json").get(f"{mark}_token_id"))
    first = next((place for place in places if place not in (None, [])), None)
    first = first[0] if isinstance(first, list) else first
    if first is not None and (type(first) is not int or not 0 <= first < raw["vocab_size"]):
      raise InputError(
        f"{folder}: {mark}_token_id={first!r} is no id of its {raw['vocab_size']}; correct it in "
        f"config.json"
      )
    found.append(first)
  return found[0], found[1]


def _ids(content: bytes) -> dict[str, int]:
  """The id of each token's name; empty for what is no tokenizer.json."""
  try:
    parsed = json.loads(content)
    vocab = parsed["model"].get("vocab", {})
    added = {token["content"]: token["id"] for token in parsed.get("added_tokens", [])}
    return (vocab if isinstance(vocab, dict) else {}) | added
  except (ValueError, KeyError, TypeError, AttributeError):
    return {}


def _read(file: Path) -> dict[str, Any]:
  if not file.is_file():
    return {}
  try:
    content = json.loads(file.read_text("utf-8"))
    return content if isinstance(content, dict) else {}
  except (ValueError, RecursionError, OSError) as error:
    raise InputError(f"{file}: cannot be read ({error}); copy or download it again") from None
