"""Byte-level BPE of a GGUF file, written as a `tokenizer.json`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infini_jax.config import InputError

# How text is split before pairs are merged, by the name of the pre-tokenizer in a GGUF file.
_WORDS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES = _WORDS | {"use_regex": False}
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
  r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
  r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
  r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> dict[str, Any]:
  return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


CUTS: dict[str, list[dict[str, Any]]] = {
  "gpt-2": [_WORDS],
  "smollm": [{"type": "Digits", "individual_digits": True}, _WORDS],
  "llama-bpe": [_split(_LLAMA3), _BYTES],
  "tekken": [_split(_TEKKEN), _BYTES],
}
WHOLE = ("llama-bpe", "tekken")  # a piece that the vocabulary holds is one token, without merges
CONTROL, USER = 3, 4  # token types that are found in text before it is split


def tokenizer_json(
  tokens: Sequence[str], merges: Sequence[str], kinds: Sequence[int], cut: str, path: Path
) -> bytes:
  """Returns the content of a `tokenizer.json`.

  Args:
    tokens: the tokens in the order of their ids.
    merges: pairs of tokens with a space between them, in the order of merging.
    kinds: the type of each token.
    cut: the name of the pre-tokenizer.
    path: the GGUF file, for error messages.

  Raises:
    InputError: the pre-tokenizer is not known.
  """
  if cut not in CUTS:
    raise InputError(
      f"{path}: pre-tokenizer {cut!r} is not supported, {', '.join(CUTS)} are; convert the Hugging "
      f"Face folder of this model"
    )
  plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
  added = [
    {"id": id, "content": token, **plain, "special": kind == CONTROL}
    for id, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
    if kind in (CONTROL, USER)
  ]
  model = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": cut in WHOLE,
    "vocab": {token: id for id, token in enumerate(tokens)},
    "merges": [merge.split(" ") for merge in merges],
  }
  content = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": added,
    "normalizer": None,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": CUTS[cut]},
    "post_processor": None,
    "decoder": _WORDS,
    "model": model,
  }
  return json.dumps(content, ensure_ascii=False).encode()
