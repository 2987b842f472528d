"""`infini-jax score`: the log-probabilities of texts, as JSON lines."""

import argparse
import contextlib
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator
from itertools import tee
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from infini_jax.config import InputError
from infini_jax.data import Tokenizer
from infini_jax.inference import Session
from infini_jax.inference.command import Stdin, check_text, file_of, printing
from infini_jax.inference.texts import names_file, tokens_of
from infini_jax.progress import make_console, track
from infini_jax.runs.workdir import Workdir

STDIN = "-"


class Item(NamedTuple):
  """A text to score: the fields that name it in its lines, and what it is."""

  named: dict[str, str]
  readable: Any


class Piece(NamedTuple):
  """Consecutive tokens of a text, with their log-probabilities; arrays of (n,)."""

  ids: np.ndarray
  log_probs: np.ndarray
  right: np.ndarray  # whether each is likelier than any other token
  empty: np.ndarray | None  # log-probabilities with the memory held empty; None: not asked


class Lacking:
  """Counts tokens that replace text which the vocabulary lacks; no text can be made of them."""

  def __init__(self, tokenizer: Tokenizer):
    self.count, self._known = 0, functools.cache(lambda id: bool(tokenizer.bytes_of(id)))

  def add(self, ids: np.ndarray) -> None:
    """Adds the tokens (n,) of a text."""
    found, counts = np.unique(ids, return_counts=True)
    self.count += sum(
      int(n) for id, n in zip(found, counts, strict=True) if not self._known(int(id))
    )


def score(args: argparse.Namespace, console: Console) -> None:
  """Scores every text after the prompt or the state, and prints JSON lines.

  Raises:
    InputError: no run, checkpoint or text; a flag that does not fit; a text that cannot be read.
  """
  items, prompt = _items(args), _prompt(args)
  if not args.workdir and args.load_state is None:
    raise InputError("--workdir=RUN is missing: the folder of a run (or --load-state=FILE)")
  if args.workdir:
    Workdir(args.workdir).config()  # raises if there is no run
  how: dict[str, Any] = {"model": args.workdir} if args.load_state else {}
  session = Session.load(args.load_state or args.workdir, step=args.step, ema=args.ema, **how)
  if session.lanes > 1:
    raise InputError(f"{args.load_state}: a state of {session.lanes} lanes; use Session.score")
  errors = make_console(stderr=True)
  errors.print(
    f"step {session.run.step} of {session.run.workdir}{', moving average' * session.run.ema}",
    highlight=False,
    markup=False,
    soft_wrap=True,
  )
  if prompt is not None:
    session.read(prompt)
  with printing():
    for item in items:
      _print(session, item, args, errors)


def _print(session: Session, item: Item, args: argparse.Namespace, errors: Console) -> None:
  """Prints the lines of one text, while it is read."""
  name = next(iter(item.named.values()))
  tokens, log_prob, without, likeliest, size = 0, 0.0, 0.0, True, 0
  lacking = Lacking(session.tokenizer)

  def count(more: int) -> None:
    nonlocal size
    size += more

  readable = item.readable
  ended = readable.ended_by_interrupt() if isinstance(readable, Stdin) else contextlib.nullcontext()
  with track(errors, f"score {name}") as bar, ended:
    for piece in _pieces(session, readable, args.empty, count):
      if args.per_token:
        for line in _lines(session, piece, tokens):
          print(_json(item, line))
        sys.stdout.flush()
      tokens += len(piece.ids)
      likeliest &= bool(piece.right.all())
      lacking.add(piece.ids)
      log_prob += float(piece.log_probs.sum(dtype=np.float64))
      without += 0.0 if piece.empty is None else float(piece.empty.sum(dtype=np.float64))
      bar(tokens, f"{tokens:,} tokens")
  if not tokens:
    raise InputError(f"{name}: is empty; give some text")
  figures: dict[str, Any] = {"tokens": tokens, "bytes": size}
  figures |= {**_figures(log_prob, tokens, size), "likeliest": likeliest}
  if args.empty:
    figures["empty"] = _figures(without, tokens, size)
  if lacking.count:
    figures["unknown"] = lacking.count
  print(_json(item, figures), flush=True)


def _json(item: Item, fields: dict[str, Any]) -> str:
  return json.dumps(item.named | fields, ensure_ascii=False)


def _lines(session: Session, piece: Piece, first: int) -> Iterator[dict[str, Any]]:
  """The fields of each token; `first` is the position of the first one in its text."""
  for i, token in enumerate(piece.ids.tolist()):
    line: dict[str, Any] = {"place": first + i, "token": token}
    line["token_text"] = session.tokenizer.bytes_of(token).decode("utf-8", "replace")
    line["log_prob"] = float(piece.log_probs[i])
    if piece.empty is not None:
      line["empty"] = float(piece.empty[i])
    yield line


def _figures(log_prob: float, tokens: int, size: int) -> dict[str, float | None]:
  """The sums and the means of one text; JSON has no infinity."""
  each = -log_prob / tokens
  return {
    "log_prob": log_prob,
    "bits_per_byte": -log_prob / math.log(2) / size,
    "perplexity": math.exp(each) if each < 700 else None,
  }


def _pieces(
  session: Session, readable: Any, empty: bool, count: Callable[[int], None]
) -> Iterator[Piece]:
  """The tokens of a text as they are read; with the memory held empty, it is read side by side."""
  tokens = tokens_of(readable, session.tokenizer, count)
  if not empty:
    for block in session.scored(tokens):
      yield Piece(block.ids, block.log_probs, block.right, None)
    return
  one, other = tee(tokens)
  without, rest = session.scored(other, empty=True), np.zeros(0, np.float32)
  for block in session.scored(one):
    while len(rest) < len(block.ids):
      rest = np.concatenate([rest, next(without).log_probs])
    n = len(block.ids)
    yield Piece(block.ids, block.log_probs, block.right, rest[:n])
    rest = rest[n:]


def _items(args: argparse.Namespace) -> list[Item]:
  """The texts of the command line.

  Raises:
    InputError: there is none; one is empty, not UTF-8, or the name of a file; no such file.
  """
  items = []
  for name in args.files:
    if name != STDIN:
      items.append(Item({"file": name}, file_of("FILE", name)))
    elif sys.stdin is None or any(isinstance(item.readable, Stdin) for item in items):
      raise InputError("-: standard input is closed, or was given before; give it once")
    else:
      items.append(Item({"file": "standard input"}, Stdin()))
  for text in args.text:
    if not text:
      raise InputError("--text is empty: give some text")
    check_text("--text", text)
    if names_file(text):
      raise InputError(f"--text={text}: a file of this name exists; give it without --text")
    items.append(Item({"text": text}, text))
  if not items:
    raise InputError("nothing to score: give files, or --text=TEXT")
  return items


def _prompt(args: argparse.Namespace) -> str | Path | None:
  if args.prompt_file is not None:
    return file_of("--prompt-file", args.prompt_file)
  if args.prompt is None:
    return None
  if not args.prompt:
    raise InputError("--prompt is empty: give some text, or leave it out")
  check_text("--prompt", args.prompt)
  if names_file(args.prompt):
    raise InputError(f"--prompt={args.prompt}: a file of this name exists; --prompt-file reads it")
  return args.prompt
