"""`infini-jax chat`: a conversation in the terminal, with files that are read into the memory."""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from infini_jax.config import InputError
from infini_jax.files import write_json
from infini_jax.inference.arguments import LARGEST_SEED, whole
from infini_jax.inference.chat import Told, rendered
from infini_jax.inference.sampling import Sampling
from infini_jax.inference.saved import BEGINS
from infini_jax.inference.session import Session
from infini_jax.inference.texts import WRONG, lines_of
from infini_jax.paths import file_to_write, local
from infini_jax.progress import make_console, track
from infini_jax.runs.workdir import Workdir

SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
PROMPT = "> "
TALK = ".talk.json"  # behind the name of a state: its messages
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
PROBE = [{"role": "user", "content": "?"}]  # checks a template before a model is opened

Message = dict[str, str]


class Talk(NamedTuple):
  """A conversation: the session that has read it, its messages, and text of the next question."""

  session: Session
  messages: list[Message]
  about: str = ""

  def fork(self) -> "Talk":
    """An independent copy."""
    return Talk(self.session.fork(), list(self.messages), self.about)


def chat(args: argparse.Namespace, console: Console) -> None:
  """Opens a run, and answers lines of standard input until it ends.

  In a terminal an error is printed, and the conversation continues. Elsewhere it ends the command.

  Raises:
    InputError: no run, checkpoint or template; a flag out of its range; without a terminal, a
      command that fails.
  """
  Sampling(args.temperature, args.top_p, args.top_k, args.repetition_penalty)
  whole("--tokens", args.tokens, least=1)
  whole("--seed", args.seed, most=LARGEST_SEED)
  if args.step is not None:
    whole("--step", args.step)
  workdir = Workdir(args.workdir)
  workdir.config()  # is there a run?
  rendered(workdir.load_tokenizer(), args.chat_template, PROBE)
  errors = make_console(stderr=True)
  session = Session.load(args.workdir, step=args.step, ema=args.ema)
  terminal = Terminal(args, session, errors)
  interactive = sys.stdin is not None and sys.stdin.isatty()
  terminal.say(f"step {session.run.step} of {session.run.workdir}; /help lists the commands")
  for line in _typed() if interactive else _piped():
    try:
      if not terminal.take(line.strip()):
        return
    except InputError as error:
      if not interactive:
        raise
      terminal.say(str(error))
    except KeyboardInterrupt:
      if not interactive:
        raise
      terminal.say("stopped: the conversation is as it was before")


class Terminal:
  """Answers lines: questions, and commands that begin with a slash.

  Args:
    args: the flags of the command.
    session: new, or a loaded conversation.
    errors: where all but the answers is printed.
  """

  def __init__(self, args: argparse.Namespace, session: Session, errors: Console):
    self._args, self._errors = args, errors
    self._talk, self._kept = Talk(session, []), list[Talk]()
    self._how: dict[str, Any] = {name: getattr(args, name) for name in SAMPLING}
    self._how |= {"tokens": args.tokens, "template": args.chat_template}
    self._commands: dict[str, tuple[str, Callable[[str], None]]] = {
      "/read": ("FILE: read a text into the memory; it belongs to the next question", self._read),
      "/fork": ("keep this point of the conversation", self._fork),
      "/back": ("return to the point that was kept last; it stays kept", self._back),
      "/save": ("FILE: save the state, and the messages next to it", self._save),
      "/load": ("FILE: continue with what /save wrote", self._load),
      "/reset": ("forget everything, and begin again", self._reset),
      "/help": ("list the commands", self._help),
      "/quit": ("end; so does Ctrl-D", lambda _: None),
    }

  def take(self, line: str) -> bool:
    """Takes one line; returns whether the conversation continues.

    After an error or Ctrl-C the conversation is as it was before.

    Raises:
      InputError: an unknown command, or one that fails.
    """
    if not line:
      return True
    if WRONG.search(line):
      raise InputError("the line is not UTF-8 text; type it in a terminal that writes UTF-8")
    if not line.startswith("/"):
      self._ask(line)
      return True
    name, _, argument = line.partition(" ")
    if name not in self._commands:
      raise InputError(f"{name}: no such command; choose one of {', '.join(self._commands)}")
    argument, about = argument.strip(), self._commands[name][0]
    if about.startswith("FILE") != bool(argument):
      raise InputError(f"{line}: expected {name}{' FILE' * about.startswith('FILE')}")
    self._commands[name][1](argument)
    return name != "/quit"

  def say(self, text: str) -> None:
    """Prints one line to standard error; nothing in it is read as markup."""
    self._errors.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

  def _ask(self, question: str) -> None:
    talk = self._talk
    content = f"{talk.about}\n\n{question}" if talk.about else question
    messages = [*talk.messages, {"role": "user", "content": content}]
    with self._whole():
      answer = talk.session.chat(messages, _print, **self._how)
      print(flush=True)
      if not answer:
        raise InputError("the answer is empty, and the question is dropped: ask another one")
    self._talk = Talk(talk.session, [*messages, {"role": "assistant", "content": answer}])
    self.say(self._size())

  def _read(self, name: str) -> None:
    file = _existing("/read", name)
    text = "".join(lines_of(file)).strip()
    if not text:
      raise InputError(f"/read {name}: the file is empty; name another one")
    talk = self._talk
    about = f"{talk.about}\n\n{text}" if talk.about else text
    tokenizer = talk.session.tokenizer
    messages = [*talk.messages, {"role": "user", "content": about}]
    chat, whole = rendered(tokenizer, self._args.chat_template, messages)
    at = whole.rfind(about)
    if at < 0:  # the template changes the text, so it is read with the question
      self._talk = talk._replace(about=about)
      self.say(f"{name}: is read with the next question")
      return
    total = len(chat.encode(text))
    with self._whole(), track(self._errors, f"read {name}", total) as bar:
      begun = talk.session.opened(chat, whole[: at + len(about)])
      talk.session.read([begun.ids], lambda n: bar(min(n, total)), marked=True)
      talk.session.told = Told.of(talk.session.positions[0], begun.text)
      talk.session.wait()
    self._talk = talk._replace(about=about)
    self.say(f"{name}: read; {self._size()}")

  def _fork(self, _: str) -> None:
    self._kept.append(self._talk.fork())
    self.say(f"kept at {self._position()} tokens; /back returns here")

  def _back(self, _: str) -> None:
    if not self._kept:
      raise InputError("/back: no point was kept; /fork keeps one")
    self._talk = self._kept[-1].fork()
    self.say(f"back at {self._position()} tokens")

  def _save(self, name: str) -> None:
    talk = self._talk
    if not talk.messages and not talk.about:
      raise InputError(f"/save {name}: there is nothing yet; ask or /read first")
    file = local(file_to_write(name, "/save", begins=BEGINS, replaced=True))
    talk_file = file_to_write(f"{name}{TALK}", "/save", begins=rb"\{", replaced=True)
    talk.session.save(file)
    write_json(talk_file, {"messages": talk.messages, "about": talk.about})
    self.say(f"{name}: saved, {file.stat().st_size / 1e6:.2f} MB")

  def _load(self, name: str) -> None:
    file, talk_file = _existing("/load", name), local(f"{name}{TALK}", "/load")
    try:
      found = json.loads(talk_file.read_text("utf-8"))
      messages, about = found["messages"], found["about"]
      if not isinstance(about, str) or not isinstance(messages, list):
        raise TypeError("no messages")
      rendered(self._talk.session.tokenizer, self._args.chat_template, [*messages, *PROBE])
    except (OSError, ValueError, LookupError, TypeError) as error:
      raise InputError(
        f"/load {name}: {talk_file.name} cannot be read ({error}); name a file that /save wrote, "
        f"with its messages next to it"
      ) from None
    session = Session.load(file, model=self._talk.session)
    if session.lanes > 1:
      raise InputError(f"/load {name}: a state of {session.lanes} lanes; use Session.load")
    self._talk = Talk(session, messages, about)
    self.say(f"{name}: loaded; {len(messages)} messages, {self._size()}")

  def _reset(self, _: str) -> None:
    self._talk.session.reset()
    self._talk = Talk(self._talk.session, [])
    self.say("everything is forgotten; points that were kept stay")

  def _help(self, _: str) -> None:
    for name, (what, _function) in self._commands.items():
      argument, _, rest = what.partition(": ") if what.startswith("FILE") else ("", "", what)
      self.say(f"{name} {argument}".ljust(12) + f" {rest}")
    self.say("anything else is a question; Ctrl-C stops an answer, or the reading of a text")

  @contextlib.contextmanager
  def _whole(self) -> Iterator[None]:
    """If the body fails or is interrupted, the conversation stays as it was before."""
    before = self._talk.fork()
    try:
      yield
    except BaseException:
      print(flush=True)
      self._talk = before
      raise

  def _position(self) -> str:
    return f"{self._talk.session.positions[0]:,}"

  def _size(self) -> str:
    megabytes = self._talk.session.state_bytes / 1e6
    return f"{self._position()} tokens, the state is {megabytes:.2f} MB"


def _typed() -> Iterator[str]:
  """Lines that a user types, with the editing and history of the standard library."""
  with contextlib.suppress(ImportError):
    import readline  # noqa: F401 - input() uses it
  while True:
    try:
      yield input(PROMPT)
    except EOFError:
      print(flush=True)
      return
    except KeyboardInterrupt:
      print("\n(/quit or Ctrl-D ends)", file=sys.stderr, flush=True)


def _piped() -> Iterator[str]:
  if sys.stdin is None:
    raise InputError("standard input is closed: type questions, or pipe them in")
  line = ""
  for part in lines_of(sys.stdin):  # a long line comes in several
    line += part
    if line.endswith("\n"):
      yield line
      line = ""
  if line:
    yield line


def _existing(command: str, name: str) -> Path:
  file = local(name, command)
  if not file.is_file():
    what = "is a folder; name a file" if file.is_dir() else "no such file"
    raise InputError(f"{command} {name}: {what}")
  return file


def _print(text: str) -> None:
  """Prints a piece of an answer. Control characters, which a terminal would obey, are replaced."""
  print(CONTROL.sub("\ufffd", text), end="", flush=True)
