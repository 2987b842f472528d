"""The SentencePiece vocabulary of a GGUF file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from infini_jax.config import InputError
from infini_jax.data import SentencePieceTokenizer, sentencepiece_model

NORMAL, UNKNOWN, CONTROL, USER, UNUSED = 1, 2, 3, 4, 5  # types of tokens
SPACE = "\u2581"


def piece_tokenizer(
  tokens: Sequence[str],
  scores: Sequence[float],
  kinds: Sequence[int],
  ids: Mapping[str, int],
  add_space: bool,
  path: Path,
) -> SentencePieceTokenizer:
  """Makes a SentencePiece tokenizer of byte pairs.

  Args:
    tokens: the tokens in the order of their ids.
    scores: the score of each token; the pair with the highest score is merged first.
    kinds: the type of each token.
    ids: the ids of `bos`, `eos` and `unknown`, the token for unknown text.
    add_space: whether a space is added in front of a text.
    path: the GGUF file, for error messages.

  Raises:
    InputError: the vocabulary cannot be a SentencePiece model of byte pairs.
  """
  bos, eos, unknown = (ids[mark] for mark in ("bos", "eos", "unknown"))
  # SentencePiece needs exactly one unknown token. In a file it may have another type, and tokens
  # that only fill the vocabulary may have the type unknown.
  kinds = [UNUSED if kind == UNKNOWN else kind for kind in kinds]
  kinds[unknown] = UNKNOWN
  for mark in {bos, eos} - {unknown}:
    kinds[mark] = CONTROL  # the eos of a chat model may be an added token of another type
  if len({s for s, kind in zip(scores, kinds, strict=True) if kind == NORMAL}) < 2:
    raise InputError(
      f"{path}: its tokens have no scores, so their order of merging is lost; convert the Hugging "
      f"Face folder of this model"
    )
  pieces = (
    (token.replace(" ", SPACE) if kind == USER else token, score, kind)
    for token, score, kind in zip(tokens, scores, kinds, strict=True)
  )
  model = sentencepiece_model(pieces, tokens[bos], tokens[eos], add_space)
  try:
    return SentencePieceTokenizer(model, str(path))
  except InputError:
    raise InputError(
      f"{path}: its tokens make no SentencePiece vocabulary (one is empty or there twice, or not "
      f"all bytes are there); convert the Hugging Face folder of this model"
    ) from None
