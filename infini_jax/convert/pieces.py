"""A SentencePiece vocabulary out of a GGUF file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from infini_jax.config import InputError
from infini_jax.data import SentencePieceTokenizer, sentencepiece_model

NORMAL, UNKNOWN, CONTROL, USER, UNUSED = 1, 2, 3, 4, 5  # kinds of tokens
SPACE = "\u2581"


def piece_tokenizer(
  tokens: Sequence[str],
  scores: Sequence[float],
  kinds: Sequence[int],
  ids: Mapping[str, int],
  add_space: bool,
  path: Path,
) -> SentencePieceTokenizer:
  """The tokenizer.

  Args:
    tokens: by their ids.
    scores: of the tokens; of two pairs, that with the higher score is merged first.
    kinds: of the tokens.
    ids: of `bos`, of `eos` and of what stands for `unknown` text.
    add_space: whether a text is read as if a space stood in front of it.
    path: of the GGUF file, for errors.

  Raises:
    InputError: a vocabulary that cannot be a SentencePiece model of byte pairs.
  """
  bos, eos, unknown = (ids[mark] for mark in ("bos", "eos", "unknown"))
  # One token is unknown: in files it may be of another kind, and what only fills up be unknown.
  kinds = [UNUSED if kind == UNKNOWN else kind for kind in kinds]
  kinds[unknown] = UNKNOWN
  for mark in {bos, eos} - {unknown}:
    kinds[mark] = CONTROL  # a chat model may end its turns with a token that was added for it
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
