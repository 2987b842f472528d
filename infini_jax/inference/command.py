"""`infini-jax generate`: read a prompt, a file or a stream, write what follows, keep it."""

import argparse
import contextlib
import io
import signal
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from infini_jax.config import InputError
from infini_jax.data import open_prepared
from infini_jax.inference.sampling import Sampling
from infini_jax.inference.session import Session
from infini_jax.inference.texts import tokens_of
from infini_jax.progress import track
from infini_jax.runs.workdir import Workdir


def generate(args: argparse.Namespace, console: Console) -> None:
  """Opens a run or a state, reads, continues on standard output, and keeps the state if asked to.

  Raises:
    InputError: no run, checkpoint or prompt; a flag out of its range; a state that is not this
      model's, or cannot be kept.
  """
  Sampling(args.temperature, args.top_p, args.top_k, args.repetition_penalty)  # may refuse
  if args.tokens < 0:
    raise InputError(f"--tokens={args.tokens}: must be at least 0")
  if not all(args.stop):
    raise InputError("--stop is empty: a stop string has at least one character")
  if not args.workdir and not args.load_state:
    raise InputError("--workdir=RUN is missing: the folder of a run (or --load-state=FILE)")
  if args.load_state and not Path(args.load_state).is_file():
    raise InputError(f"--load-state={args.load_state}: no such file")
  if args.save_state and not Path(args.save_state).absolute().parent.is_dir():
    raise InputError(f"--save-state={args.save_state}: no such folder; make it first")
  if args.workdir:
    Workdir(args.workdir).config()  # may refuse
  name, source = _source(args)

  errors = Console(stderr=True)
  how: dict[str, Any] = {"model": args.workdir} if args.load_state else {}
  session = Session.load(args.load_state or args.workdir, step=args.step, **how)
  if session.lanes > 1:
    raise InputError(f"{args.load_state}: {session.lanes} texts side by side; use Session.load")
  _say(errors, f"step {session.run.step} of {session.run.workdir}")
  if name:
    _read(session, name, source, args.prompt_tokens, errors)
  tail = session.tokenizer.decode(session.recent[0][-60:])
  _say(errors, f"... {tail[-200:]!r} ->", style="dim")
  if args.tokens:
    _write(session, args, errors)
  if args.save_state:
    session.save(args.save_state)
    size = Path(args.save_state).stat().st_size / 1e6
    at = session.positions[0]
    _say(errors, f"{args.save_state}: {size:.2f} MB, at token {at:,}")


def _read(session: Session, name: str, source: Any, limit: int | None, errors: Console) -> None:
  started = time.perf_counter()
  stdin = source.ended_by_interrupt() if isinstance(source, Stdin) else contextlib.nullcontext()
  with track(errors, f"read {name}") as bar, stdin:
    tokens = islice(tokens_of(source, session.tokenizer), limit)
    read = session.read(tokens, advance=lambda n: bar(n, f"{n:,} tokens"))
    session.wait()
  if not read:
    raise InputError(f"{name} is empty: give some text, or no prompt to begin a new document")
  done = read - session.waiting[0]  # the others go through the model when something is written
  speed = f" at {_rate(done / (time.perf_counter() - started))}" if done > 0 else ""
  _say(errors, f"{name}: {read:,} tokens read{speed}; {_size(session)}")


def _write(session: Session, args: argparse.Namespace, errors: Console) -> None:
  """Prints text as it is written. The speed is by the median, which leaves compiling out."""
  times = []
  for piece in session.generate(
    args.tokens,
    temperature=args.temperature,
    top_p=args.top_p,
    top_k=args.top_k,
    repetition_penalty=args.repetition_penalty,
    stop=args.stop,
    seed=args.seed,
  ):
    times.append(time.perf_counter())
    sys.stdout.write(piece.text)
    sys.stdout.flush()
  sys.stdout.write("\n")
  sys.stdout.flush()
  speed = f" at {_rate(1 / float(np.median(np.diff(times))))}" if len(times) > 1 else ""
  _say(errors, f"wrote {len(times):,} tokens{speed}; {_size(session)}")


def _say(errors: Console, text: str, style: str | None = None) -> None:
  """One line, as it is: no word of it is a mark-up."""
  errors.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _rate(tokens_per_second: float) -> str:
  digits = 0 if tokens_per_second >= 10 else 1
  return f"{tokens_per_second:,.{digits}f} tokens a second"


def _size(session: Session) -> str:
  megabytes = session.state_bytes / 1e6
  return f"now {session.positions[0]:,} tokens, and the state is {megabytes:.2f} MB"


def _source(args: argparse.Namespace) -> tuple[str, Any]:
  """What is read, and its name: empty where there is nothing to read."""
  if args.prompt_document:
    return _document(args)
  if args.prompt_file == "-":
    return "standard input", Stdin()
  if args.prompt_file:
    file = Path(args.prompt_file)
    if not file.is_file():
      raise InputError(f"--prompt-file={file}: no such file")
    return str(file), file
  if args.prompt == "":
    raise InputError("--prompt is empty: give some text, or no prompt to begin a new document")
  return ("prompt", args.prompt) if args.prompt else ("", None)


def _document(args: argparse.Namespace) -> tuple[str, Any]:
  if not args.workdir:
    raise InputError("--prompt-document needs --workdir=RUN: it is one of the run's own corpus")
  workdir = Workdir(args.workdir)
  split, _, number = args.prompt_document.partition(":")
  documents = open_prepared(workdir.config().data.path, workdir.store).split(split)
  if not number.isdigit() or int(number) >= len(documents):
    raise InputError(
      f"--prompt-document={args.prompt_document}: want SPLIT:NUMBER with a number below "
      f"{len(documents)}"
    )
  size = int(documents.tokens[int(number)])
  ids = documents.read(int(number), 0, min(size, args.prompt_tokens or size))
  return f"{split} document {documents.names[int(number)]}", ids


class Stdin(io.TextIOWrapper):
  """Standard input, which may be endless."""

  def __init__(self) -> None:
    super().__init__(sys.stdin.buffer, encoding="utf-8-sig")
    self._waiting = self._ended = False

  def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
    """The next line, or a part of it; empty at the end."""
    try:
      self._waiting = True
      return "" if self._ended else super().readline(-1 if size is None else size)
    except KeyboardInterrupt:
      return ""
    finally:
      self._waiting = False

  @contextlib.contextmanager
  def ended_by_interrupt(self) -> Iterator[None]:
    """In here the first Ctrl-C is the end of the input; no call of the model is torn."""

    def end(*_: Any) -> None:
      signal.signal(signal.SIGINT, usual)
      self._ended = True
      if self._waiting:
        raise KeyboardInterrupt

    usual = signal.signal(signal.SIGINT, end)
    try:
      yield
    finally:
      signal.signal(signal.SIGINT, usual)
