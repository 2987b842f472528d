"""`infini-jax generate`: reads a prompt, a file or a stream, continues it, and saves the state."""

import argparse
import contextlib
import io
import os
import re
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
from infini_jax.inference.arguments import LARGEST_SEED, whole
from infini_jax.inference.chat import rendered
from infini_jax.inference.sampling import Sampling
from infini_jax.inference.saved import BEGINS
from infini_jax.inference.session import Session
from infini_jax.inference.texts import WRONG, lines_of, names_file, tokens_of
from infini_jax.paths import file_to_write, local
from infini_jax.progress import make_console, track
from infini_jax.runs.workdir import Workdir

ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}  # after a backslash, in --stop


def generate(args: argparse.Namespace, console: Console) -> None:
  """Opens a run or a state, reads, writes to standard output, and saves the state if asked.

  Raises:
    InputError: no run, checkpoint or prompt; a flag out of its range; a state of another model, or
      one that cannot be saved.
  """
  _check(args)
  stop = [_stop(text) for text in args.stop]
  question = _question(args)
  name, readable = _readable(args)

  errors = make_console(stderr=True)
  how: dict[str, Any] = {"model": args.workdir} if args.load_state else {}
  session = Session.load(args.load_state or args.workdir, step=args.step, ema=args.ema, **how)
  if session.lanes > 1:
    raise InputError(f"{args.load_state}: a state of {session.lanes} lanes; use Session.load")
  if session.ended[0]:
    raise InputError(
      f"{args.load_state}: the model has ended its document, so nothing follows it; give a state "
      f"from before (--tokens=0 writes nothing), or begin another document with --workdir"
    )
  averaged = ", moving average" * session.run.ema
  _say(errors, f"step {session.run.step} of {session.run.workdir}{averaged}")
  if question:
    _answer(session, args, question, errors)
    return
  failed, interrupted = None, False
  if name:
    try:
      failed = _read(session, name, readable, args.prompt_tokens, errors)
    except KeyboardInterrupt:
      _say(errors, f"{name}: interrupted; nothing is kept")
      raise
  if not failed:
    tail = session.tokenizer.decode(session.recent[0][-60:])
    _say(errors, f"... {tail[-200:]!r} ->", style="dim")
    interrupted = args.tokens > 0 and _write(session, args, stop, errors)
  if args.save_state:
    file = local(args.save_state)
    session.save(file)
    size = file.stat().st_size / 1e6
    at = session.positions[0]
    _say(errors, f"{args.save_state}: {size:.2f} MB, at token {at:,}")
    if session.ended[0]:
      _say(errors, f"{args.save_state}: the model has ended the document; nothing can follow it")
  if failed:
    raise failed
  if interrupted:
    raise KeyboardInterrupt


def _check(args: argparse.Namespace) -> None:
  """Raises InputError for flags that cannot work, before a model is opened."""
  Sampling(args.temperature, args.top_p, args.top_k, args.repetition_penalty)
  whole("--tokens", args.tokens)
  whole("--seed", args.seed, most=LARGEST_SEED)
  if args.step is not None:
    whole("--step", args.step)
  if args.prompt_tokens is not None:
    whole("--prompt-tokens", args.prompt_tokens, least=1)
    if args.prompt is args.prompt_file is args.prompt_document is None:
      raise InputError(f"--prompt-tokens={args.prompt_tokens}: there is no prompt; leave it out")
  if not args.workdir and args.load_state is None:
    raise InputError("--workdir=RUN is missing: the folder of a run (or --load-state=FILE)")
  if args.load_state is not None:
    file_of("--load-state", args.load_state)
  if args.save_state is not None:
    file_to_write(args.save_state, "--save-state", begins=BEGINS, replaced=True)
  if args.workdir:
    Workdir(args.workdir).config()


def _question(args: argparse.Namespace) -> str:
  """The message of --ask, after the text of --ask-about; empty if nothing is asked.

  Raises:
    InputError: the flags do not go together, or the template does not take the question.
  """
  if args.ask is None:
    if args.ask_about is not None:
      raise InputError(f"--ask-about={args.ask_about}: there is no question; give --ask=TEXT")
    return ""
  prompts = ("prompt", "prompt_file", "prompt_document", "load_state", "stop")
  for name in (name for name in prompts if getattr(args, name)):
    raise InputError(
      f"--ask with --{name.replace('_', '-')}: a question is a conversation of its own; leave one "
      f"out (--ask-about=FILE reads a text before it)"
    )
  if not args.ask.strip():
    raise InputError("--ask is empty: give a question")
  check_text("--ask", args.ask)
  about = ""
  if args.ask_about is not None:
    file = file_of("--ask-about", args.ask_about)
    about = "".join(lines_of(file)).strip() + "\n\n"
  question = about + args.ask
  rendered(Workdir(args.workdir).load_tokenizer(), args.chat_template, [_user(question)])
  return question


def _user(text: str) -> dict[str, str]:
  return {"role": "user", "content": text}


def _answer(session: Session, args: argparse.Namespace, question: str, errors: Console) -> None:
  """Prints the answer to a question while it is written, and saves the state if asked.

  The text is read as one message, so all of it is in the memory of this process.
  """
  names = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
  how: dict[str, Any] = {name: getattr(args, name) for name in names}
  how |= {"tokens": args.tokens, "template": args.chat_template}
  with printing():  # and no bar, which would be in the middle of the answer
    session.chat([_user(question)], lambda text: print(text, end="", flush=True), **how)
    print(flush=True)
  _say(errors, _size(session))
  if args.save_state:
    session.save(local(args.save_state))
    _say(errors, f"{args.save_state}: saved; Session.load reads it")


def _stop(text: str) -> str:
  r"""The stop string of a flag; \n and \t in it mean a newline and a tab, which cannot be typed.

  Raises:
    InputError: the text is empty, or an escape is unknown.
  """
  if not text:
    raise InputError("--stop is empty: a stop string has at least one character")
  check_text("--stop", text)

  def one(found: re.Match[str]) -> str:
    if found[1] not in ESCAPES:
      raise InputError(
        f"--stop={text}: {found[0]} has no meaning; there are \\n, \\t, \\r, and \\\\ for "
        f"a backslash"
      )
    return ESCAPES[found[1]]

  return re.sub(r"\\(.?)", one, text, flags=re.DOTALL)


def _read(
  session: Session, name: str, readable: Any, limit: int | None, errors: Console
) -> InputError | None:
  """Reads the readable. It raises an error of a file, and returns an error of standard input.

  Standard input cannot be read again, and the text before the error has been read.
  """
  started, failed = time.perf_counter(), None

  def tokens() -> Iterator[int]:
    nonlocal failed
    try:
      yield from tokens_of(readable, session.tokenizer)
    except InputError as error:
      if not isinstance(readable, Stdin):
        raise
      failed = error

  stdin = readable.ended_by_interrupt() if isinstance(readable, Stdin) else contextlib.nullcontext()
  with track(errors, f"read {name}") as bar, stdin:
    read = session.read(islice(tokens(), limit), advance=lambda n: bar(n, f"{n:,} tokens"))
    session.wait()
  if not read:
    empty = f"{name} is empty: give some text, or no prompt to begin a new document"
    raise failed or InputError(empty)
  done = read - session.waiting[0]  # the model reads the others when it generates
  speed = f" at {_rate(done / (time.perf_counter() - started))}" if done > 0 else ""
  _say(errors, f"{name}: {read:,} tokens read{speed}; {_size(session)}")
  return failed


def _write(session: Session, args: argparse.Namespace, stop: list[str], errors: Console) -> bool:
  """Prints text while it is generated. Returns whether Ctrl-C stopped it.

  The speed is from the median time of a token, so that compiling does not count.
  """
  times, interrupted, before = [], False, session.positions[0]
  pieces = session.generate(
    args.tokens,
    temperature=args.temperature,
    top_p=args.top_p,
    top_k=args.top_k,
    repetition_penalty=args.repetition_penalty,
    stop=stop,
    seed=args.seed,
  )
  with printing():
    try:
      for piece in pieces:
        times.append(time.perf_counter())
        print(piece.text, end="", flush=True)
    except KeyboardInterrupt:
      interrupted = True
    print(flush=True)
  speed = f" at {_rate(1 / float(np.median(np.diff(times))))}" if len(times) > 1 else ""
  _say(errors, f"wrote {session.positions[0] - before:,} tokens{speed}; {_size(session)}")
  return interrupted


@contextlib.contextmanager
def printing() -> Iterator[None]:
  """The reader of standard output may end early (`| head -1`). Replaces characters that the
  encoding of standard output lacks."""
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="replace")
  try:
    yield
  except OSError as error:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discards the rest
    if not isinstance(error, BrokenPipeError):
      raise InputError(f"standard output: cannot be written ({error}); make room there") from None


def _say(errors: Console, text: str, style: str | None = None) -> None:
  """Prints one line; nothing in it is read as markup."""
  errors.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _rate(tokens_per_second: float) -> str:
  digits = 0 if tokens_per_second >= 10 else 1
  return f"{tokens_per_second:,.{digits}f} tokens a second"


def _size(session: Session) -> str:
  megabytes = session.state_bytes / 1e6
  return f"now {session.positions[0]:,} tokens, and the state is {megabytes:.2f} MB"


def _readable(args: argparse.Namespace) -> tuple[str, Any]:
  """The name and the text, file or tokens to read; an empty name if there is nothing to read."""
  if args.prompt_document is not None:
    return _document(args)
  if args.prompt_file == "-":
    if sys.stdin is None:
      raise InputError("standard input is closed: give a text, or --prompt-file=FILE")
    return "standard input", Stdin()
  if args.prompt_file is not None:
    file = file_of("--prompt-file", args.prompt_file)
    return str(file), file
  if args.prompt == "":
    raise InputError("--prompt is empty: give some text, or no prompt to begin a new document")
  if args.prompt:
    check_text("--prompt", args.prompt)
  if args.prompt and names_file(args.prompt):
    raise InputError(
      f"--prompt={args.prompt}: a file of this name exists; --prompt-file reads it (and "
      f"--prompt-file=- reads a text from standard input, if the name is the text)"
    )
  return ("prompt", args.prompt) if args.prompt else ("", None)


def file_of(flag: str, name: str) -> Path:
  """The path of a file or pipe; raises InputError if there is none, or if it is a folder."""
  file = local(name, flag)
  if file.is_dir():
    raise InputError(f"{flag}={name}: is a folder; name a file (--workdir names a run's folder)")
  if not file.exists():
    raise InputError(f"{flag}={name}: no such file")
  return file


def check_text(flag: str, text: str) -> None:
  """Raises InputError for bytes of the command line that are not UTF-8."""
  if WRONG.search(text):
    raise InputError(f"{flag}={text!r}: not UTF-8 text; type it in a terminal that writes UTF-8")


def _document(args: argparse.Namespace) -> tuple[str, Any]:
  if not args.workdir:
    raise InputError("--prompt-document needs --workdir=RUN: it is one of the run's own corpus")
  workdir = Workdir(args.workdir)
  split, _, number = args.prompt_document.partition(":")
  documents = open_prepared(workdir.config().data.path, workdir.store).split(split)
  if not number.isdecimal() or int(number) >= len(documents):
    raise InputError(
      f"--prompt-document={args.prompt_document}: expected SPLIT:NUMBER with a number below "
      f"{len(documents)}"
    )
  size = int(documents.tokens[int(number)])
  ids = documents.read(int(number), 0, min(size, args.prompt_tokens or size))
  return f"{split} document {documents.names[int(number)]}", ids


class Stdin(io.TextIOWrapper):
  """Standard input as text; it may be endless."""

  def __init__(self) -> None:
    super().__init__(sys.stdin.buffer, encoding="utf-8-sig", errors="surrogateescape")
    self._waiting = self._ended = False

  def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
    """The next line, or a part of it; empty at the end of the input."""
    try:
      self._waiting = True
      return "" if self._ended else super().readline(-1 if size is None else size)
    except KeyboardInterrupt:
      return ""
    finally:
      self._waiting = False

  @contextlib.contextmanager
  def ended_by_interrupt(self) -> Iterator[None]:
    """In the body, the first Ctrl-C ends the input; it does not interrupt a call of the model."""

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
