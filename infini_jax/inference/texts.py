"""From texts, files and endless streams to tokens, with constant memory.

Text is tokenized piece by piece, as it arrives. It is cut where no token crosses the cut: before a
line that does not begin with a space, and in very long passages without such a line, before a
single space. The cuts depend only on the text, so a stream and a file give the same tokens.
"""

import contextlib
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from infini_jax.config import InputError
from infini_jax.data import Tokenizer, encode_named
from infini_jax.inference.arguments import short

BOM = "\ufeff"  # some programs write it in front of a text
LONG = 16_384  # the most characters of a piece
WRONG = re.compile("[\0\ud800-\udfff]")  # NUL, and bytes that are not UTF-8 as decoded here

Readable = str | os.PathLike[str] | IO[Any] | Iterable[int] | Iterable[np.ndarray]


def tokens_of(
  readable: Readable,
  tokenizer: Tokenizer,
  count: Callable[[int], None] | None = None,
  name: str = "",
) -> Iterator[int]:
  """The tokens of a text or of a text file (a path, or an open file); tokens pass unchanged.

  Args:
    readable: the text, file or tokens.
    tokenizer: the vocabulary.
    count: called with the bytes of each piece of a text, before its tokens.
    name: of an opened file, for errors; "": its own.

  Raises:
    InputError: it is none of these, or a text that is the name of a file. While the tokens
      are read: a file cannot be read or is not text.
  """
  if isinstance(readable, str):
    if names_file(readable):
      raise InputError(
        f"{readable!r}: a file of this name exists, and a str is read as the text that it is: give "
        f"its Path to read the file, or io.StringIO of it to read the name"
      )
    return _encoded(lines_of(text_stream(readable), "the text"), tokenizer, count=count)
  if isinstance(readable, os.PathLike):
    readable = Path(readable)
  if isinstance(readable, Path) or hasattr(readable, "readline"):
    name = name or _name(readable)
    return _encoded(lines_of(readable, name), tokenizer, name, count)
  if isinstance(readable, bytes | bytearray | memoryview) or not isinstance(readable, Iterable):
    raise InputError(
      f"cannot read {short(readable)}: give text, a Path, an opened file or tokens (bytes are "
      f"neither: decode them)"
    )
  return chain.from_iterable(map(_numbers, readable))


def text_stream(text: str) -> io.StringIO:
  """A text as if it was an opened file: each kind of newline is one character."""
  return io.StringIO(text, newline=None)


def names_file(text: str) -> bool:
  """Whether this text is the name of a file that exists."""
  name = text.strip()
  return os.path.isfile(name) or os.path.isfile(os.path.expanduser(name))


def _numbers(x: Any) -> list[int]:
  if isinstance(x, int) and not isinstance(x, bool):
    return [x]
  array = np.asarray(x).reshape(-1)
  if array.size and array.dtype.kind not in "iu":
    raise InputError(
      f"{short(x)} among tokens: they are whole numbers; text is read as one str or file"
    )
  return array.tolist()


def check_tokens(
  tokens: Iterable[int], vocabulary: int, tokenizer: Tokenizer, *, begins: bool, marked: bool
) -> list[int]:
  """The tokens as a list.

  Args:
    tokens: the tokens.
    vocabulary: V of the model.
    tokenizer: its vocabulary.
    begins: they begin a document, so that the first may be bos.
    marked: bos and eos may be anywhere.

  Raises:
    InputError: one is not of this model, or is bos or eos.
  """
  ids = list(tokens)
  for token in (min(ids, default=0), max(ids, default=0)):
    if not 0 <= token < vocabulary:
      raise InputError(f"token {token}: the model has 0 to {vocabulary - 1}; use its own tokenizer")
  bos, eos = tokenizer.bos, tokenizer.eos
  if not marked and {bos, eos} & set(ids[1:] if begins and ids[:1] == [bos] else ids):
    raise InputError(
      f"a document's mark among tokens ({bos} begins one, {eos} ends it): a session adds the "
      f"first itself; leave it out, and begin another document in a new session, or after reset()"
    )
  return ids


def _encoded(
  lines: Iterable[str],
  tokenizer: Tokenizer,
  name: str = "",
  count: Callable[[int], None] | None = None,
) -> Iterator[int]:
  """The tokens of all pieces. Pieces after the first are encoded as text after a newline, because
  some tokenizers encode the beginning of a text differently."""
  newline: list[int] | None = None
  for piece in pieces_of(lines):
    if count is not None:
      count(len(piece.encode()))
    ids = encode_named(tokenizer, piece if newline is None else "\n" + piece, name).tolist()
    if newline is None:
      newline = encode_named(tokenizer, "\n", name).tolist()
    elif ids[: len(newline)] == newline:
      ids = ids[len(newline) :]
    else:
      ids = encode_named(tokenizer, piece, name).tolist()
    yield from ids


def pieces_of(lines: Iterable[str]) -> Iterator[str]:
  """The pieces to tokenize, from lines with their ends. A long line comes in several.

  If a line cannot be read, the text before it is yielded before the error is raised.
  """
  held = ""
  try:
    for line in lines:
      if held.endswith("\n") and not line[0].isspace():
        yield held
        held = ""
      held += line
      while len(held) > LONG:
        cut = _cut(held)
        yield held[:cut]
        held = held[cut:]
  except InputError:
    if held:
      yield held
    raise
  if held:
    yield held


def _cut(text: str) -> int:
  """Where to cut: before the last single space in the first `LONG` characters, else there."""
  at = LONG
  while (at := text.rfind(" ", 1, at)) > 0:
    if not text[at - 1].isspace() and not text[at + 1].isspace():
      return at
  return LONG


def lines_of(readable: Any, name: str = "") -> Iterator[str]:
  r"""Lines as they arrive, with "\n" for every kind of newline; a long line comes in several."""
  name, read = name or _name(readable), 0
  if getattr(readable, "closed", False):
    raise InputError(f"{name}: is closed; open it again")
  try:
    with contextlib.ExitStack() as stack:
      if isinstance(readable, Path):
        readable = stack.enter_context(
          (gzip.open if readable.suffix == ".gz" else open)(readable, "rb")
        )
      if not isinstance(readable, io.TextIOBase):
        readable = io.TextIOWrapper(readable, encoding="utf-8", errors="surrogateescape")
        stack.callback(readable.detach)
      while line := readable.readline(LONG):
        line = line if read else line.removeprefix(BOM)
        wrong = WRONG.search(line)
        if good := line[: wrong.start()] if wrong else line:
          yield good
        read += len(good)
        if wrong and wrong[0] == "\0":
          raise InputError(f"{name}: holds NUL characters, so it is not text; give a text file")
        if wrong:
          raise InputError(_not_utf8(name, read))
  except UnicodeDecodeError:
    raise InputError(_not_utf8(name, read)) from None
  except (OSError, EOFError, zlib.error) as error:
    raise InputError(f"{name}: cannot be read ({error}); choose another file") from None


def _name(readable: Any) -> str:
  name = readable if isinstance(readable, Path) else getattr(readable, "name", None)
  if not isinstance(name, str | os.PathLike):  # None, or the number of an open file
    return "the stream"
  return "standard input" if name == "<stdin>" else str(name)


def _not_utf8(name: str, read: int) -> str:
  return (
    f"{name}: not UTF-8 text (after {read:,} characters); convert it (iconv -f latin1 -t utf-8)"
  )
