"""The content of a `tokenizer.json`, and a form of it that encodes no text as a special token."""

import json
import secrets
from collections.abc import Collection
from typing import Any

from infini_jax.config import InputError
from infini_jax.data.tokenizers.base import FURTHEST

# Older runs did not record their marks: they used the first of these names that existed.
FIRST_BOS = ("<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>", "<|startoftext|>")
FIRST_EOS = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "<|im_end|>")


class TokenizerJson:
  """The names and ids of a `tokenizer.json`.

  Attributes:
    content: the bytes of the file.
    ids: the id of each token, by its name.
    special: the names of the special added tokens; of all added tokens if none is special.
    has_gaps: whether the ids of added tokens do not follow the other ids one by one. The library
      numbers them one by one, and not as in the file; so did versions without `sealed`.

  Raises:
    InputError: the content is not a tokenizer.json, or an added token has the id of another token.
  """

  def __init__(self, content: bytes, name: str):
    self.content = content
    try:
      self._parsed = json.loads(content)
      self._model = self._parsed["model"]
      vocab = self._model["vocab"]
      added = self._parsed.get("added_tokens") or []
      listed = [piece for piece, _ in vocab] if isinstance(vocab, list) else None
      self._pieces: dict[str, int] = (
        dict(vocab) if listed is None else {piece: id for id, piece in enumerate(listed)}
      )
      self._added: dict[str, dict[str, Any]] = {token["content"]: token for token in added}
      every = [*self._pieces.values(), *(token["id"] for token in added)]
      if not every or not all(type(id) is int and 0 <= id < 2**31 for id in every):
        raise ValueError("ids of tokens are not numbers")
      special = [token for token, said in self._added.items() if said["special"]]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
      reason = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else error
      raise InputError(
        f"{name}: not a Hugging Face tokenizer.json ({' '.join(str(reason).split())}); give another"
      ) from None
    self._specials = set(special)
    self.special = special or list(self._added)
    self._check([(token["content"], token["id"]) for token in added], name)
    self.ids = self._pieces | {token: said["id"] for token, said in self._added.items()}
    behind = [id for token, id in self.ids.items() if token not in self._pieces]
    self.has_gaps = behind != list(range(len(vocab), len(vocab) + len(behind)))

  def first_marks(self) -> tuple[int, int] | None:
    """The marks of older runs, which did not record them; None if there are none."""
    bos, eos = (
      next((self.ids[name] for name in names if name in self.ids), None)
      for names in (FIRST_BOS, FIRST_EOS)
    )
    bos, eos = (eos if bos is None else bos), (bos if eos is None else eos)
    return None if bos is None or eos is None else (bos, eos)

  def sealed(self, marks: Collection[int]) -> str:
    """The file for encoding text only: marks and special tokens get names that no text contains.

    Therefore neither the matching of added tokens nor the model (a word of its list, a piece of
    Unigram, a result of merges) encodes text as one of them. Added tokens are moved into the model,
    with the ids of the file; otherwise their ids would depend on how many tokens come before them.
    Dropout, truncation and padding are off.
    """
    return self._written({token for token, id in self.ids.items() if id in marks} | self._specials)

  def open(self) -> str:
    """The file for encoding text in which the names of special tokens are these tokens."""
    return self._written(set())

  def _written(self, hidden: set[str]) -> str:
    """The file, with names for the hidden tokens that no text contains."""
    secret = secrets.token_hex(16)

    def rename(token: str) -> str:
      return f"{secret} {token}" if token in hidden else token

    def seal(token: dict[str, Any]) -> dict[str, Any]:
      if token["content"] not in hidden:
        return token
      return token | {"content": rename(token["content"]), "special": True, "normalized": False}

    model = self._model | {"vocab": self._vocab(rename, secret)}
    if isinstance(unknown := model.get("unk_token"), str):
      model["unk_token"] = rename(unknown)
    if "merges" in model:
      model["merges"] = _without(hidden, model["merges"], model.get("continuing_subword_prefix"))
    if "dropout" in model:
      model["dropout"] = None
    nothing = dict.fromkeys(("truncation", "padding", "post_processor"))
    added = [seal(token) for token in self._parsed.get("added_tokens") or []]
    return json.dumps(self._parsed | nothing | {"added_tokens": added, "model": model})

  def _vocab(self, rename, secret: str) -> dict[str, int] | list[Any]:
    vocab = self._model["vocab"]
    if isinstance(vocab, dict):
      return {rename(token): id for token, id in self.ids.items()}
    # The lowest score sets the score of unknown text, so it must not change.
    lowest = min((score for _, score in vocab), default=0.0)
    pieces = [[rename(piece), score] for piece, score in vocab]
    pieces += [[f"{secret} {id}", lowest] for id in range(len(vocab), 1 + max(self.ids.values()))]
    for token, id in self.ids.items():
      if id >= len(vocab):
        pieces[id][0] = rename(token)
    return pieces

  def _check(self, added: list[tuple[str, int]], name: str) -> None:
    names = {id: token for token, id in self._pieces.items()}
    ids, last = dict(self._pieces), max(self._pieces.values(), default=0)
    for token, id in added:
      if id > last + FURTHEST:
        raise InputError(
          f"{name}: its added token {token!r} has the id {id}, far behind the last piece, {last}; "
          f"correct it"
        )
      taken = None
      if ids.setdefault(token, id) != id:
        taken = f"token {token!r} is {ids[token]}"
      elif names.setdefault(id, token) != token:
        taken = f"id {id} is {names[id]!r}"
      if taken:
        raise InputError(
          f"{name}: its added token {token!r} has the id {id}, but {taken} in the same file; "
          f"correct one of them"
        )


def _without(hidden: set[str], merges: list[Any], prefix: str | None) -> list[Any]:
  """The merges that neither use nor produce a hidden token."""
  start = len(prefix or "")

  def is_kept(merge: Any) -> bool:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    return hidden.isdisjoint((*parts, parts[0] + parts[-1][start:]))

  return [merge for merge in merges if is_kept(merge)]
