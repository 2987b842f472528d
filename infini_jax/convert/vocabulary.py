"""The tokenizer of converted weights, with the ids that begin and end a document."""

import json
from pathlib import Path
from typing import Any

from infini_jax.config import InputError
from infini_jax.data import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer, load_saved


def find_tokenizer(folder: Path, raw: dict[str, Any]) -> Tokenizer:
  """The tokenizer of a Hugging Face folder.

  Args:
    folder: a folder with a `tokenizer.json` or a `tokenizer.model`.
    raw: the content of `config.json`.

  Raises:
    InputError: there is none, or it has more ids than the embedding has rows.
  """
  file = folder / "tokenizer.json"
  tokenizer: Tokenizer
  if file.is_file():
    content = _without_extras(file.read_bytes(), raw["vocab_size"])
    tokenizer = HuggingFaceTokenizer.with_declared(content, file, raw)
  elif (file := folder / "tokenizer.model").is_file():
    tokenizer = SentencePieceTokenizer.load(file, raw)
  else:
    try:
      tokenizer = load_saved(folder)  # that of an exported run that was trained from scratch
    except (InputError, OSError):
      raise InputError(
        f"{folder}: holds no tokenizer.json and no tokenizer.model; add that of the model"
      ) from None
  check_size(tokenizer, raw["vocab_size"], str(file))
  return tokenizer


def check_size(tokenizer: Tokenizer, vocab_size: int, name: str) -> None:
  """Raises InputError if some ids of a tokenizer have no embedding."""
  if tokenizer.size > vocab_size:
    raise InputError(
      f"{name}: its {tokenizer.size} ids are more than the embedding's {vocab_size} rows: it "
      f"belongs to another model; use the tokenizer of this model"
    )


def _without_extras(content: bytes, vocab_size: int) -> bytes:
  """Removes special tokens without an embedding row, such as those of Gemma 3 for pictures."""
  try:
    parsed = json.loads(content)
    kept = [t for t in parsed["added_tokens"] if not t["special"] or t["id"] < vocab_size]
    if len(kept) == len(parsed["added_tokens"]):
      return content
    return json.dumps(parsed | {"added_tokens": kept}, ensure_ascii=False).encode()
  except (ValueError, KeyError, TypeError):
    return content  # loading the tokenizer reports what is wrong with it
