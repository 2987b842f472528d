"""A conversation in the terminal: questions, files in the memory, points to return to."""

import argparse
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from infini_jax import cli
from infini_jax.config import InputError
from infini_jax.inference import Session, terminal
from infini_jax.inference.terminal import Terminal
from tests.data.chat.vocabulary import user
from tests.inference.test_chat import GREEDY, workdir  # noqa: F401 - a fixture
from tests.tiny import quiet

HOW = {"temperature": 0.0, "top_p": 0.95, "top_k": 0, "repetition_penalty": 1.0, "seed": 0}
TEXT = "A long text. " * 9


@pytest.fixture(scope="module")
def opened(workdir):  # noqa: F811
  return Session.load(workdir)


@pytest.fixture
def talk(opened):
  args = argparse.Namespace(**HOW, tokens=5, chat_template="own")
  return Terminal(args, Session(opened.run), quiet())


@pytest.fixture
def file(tmp_path):
  (tmp_path / "book.txt").write_text(f"{TEXT}\n\n")
  return tmp_path / "book.txt"


def asked(talk, capsys, question):
  capsys.readouterr()
  assert talk.take(question)
  return shown(capsys.readouterr().out)


def shown(text):
  """An answer of random bytes as the terminal shows it, without what is at its ends."""
  return terminal.CONTROL.sub("\ufffd", text).strip().strip("\ufffd").strip()


def at(talk):
  return talk._talk.session.positions[0]


def test_a_file_is_read_at_once_and_belongs_to_the_next_question(talk, opened, file, capsys):
  talk.take(f"/read {file}")
  before = at(talk)
  assert before > len(TEXT), "bytes and the beginning of the message"
  answer = asked(talk, capsys, "Who?")
  alone = Session(opened.run)
  message = user(f"{TEXT.strip()}\n\nWho?")
  assert answer == shown(alone.chat([message], **GREEDY)) and at(talk) == alone.positions[0]
  assert at(talk) - before < 60, "the file is not read again"


def test_a_terminal_gets_no_control_characters_of_a_model(capsys):
  terminal._print("a\x1b[2J\x9bb\r\n\t\u00e9\x07")
  assert capsys.readouterr().out == "a\ufffd[2J\ufffdb\ufffd\n\t\u00e9\ufffd"


def test_points_are_kept_and_returned_to(talk, file, capsys):
  talk.take(f"/read {file}")
  talk.take("/fork")
  first, second = (
    [asked(talk, capsys, "Who?"), at(talk), talk.take("/back")][:2] for _ in range(2)
  )
  assert first == second, "the point stays as it was"
  assert talk._talk.about == TEXT.strip() and not talk._talk.messages


def test_a_saved_conversation_goes_on(talk, opened, file, tmp_path, capsys):
  talk.take(f"/read {file}")
  asked(talk, capsys, "Who?")
  talk.take(f"/save {tmp_path / 'state'}")
  there = at(talk)
  again = asked(talk, capsys, "And then?")
  args = argparse.Namespace(**HOW, tokens=5, chat_template="own")
  other = Terminal(args, Session(opened.run), quiet())
  other.take(f"/load {tmp_path / 'state'}")
  assert at(other) == there
  assert asked(other, capsys, "And then?") == again
  other.take("/reset")
  assert at(other) == 1 and not other._talk.messages
  (tmp_path / "state.talk.json").write_text('{"messages": [1], "about": ""}')
  with pytest.raises(InputError, match="state.talk.json cannot be read .message 1: no object"):
    other.take(f"/load {tmp_path / 'state'}")


def test_ctrl_c_leaves_the_conversation_as_it_was(talk, file, capsys, monkeypatch):
  talk.take(f"/read {file}")
  before = at(talk)
  with monkeypatch.context() as patched:

    def interrupt(text):
      raise KeyboardInterrupt

    patched.setattr(terminal, "_print", interrupt)
    with pytest.raises(KeyboardInterrupt):
      talk.take("Who?")
  assert at(talk) == before and not talk._talk.messages
  assert asked(talk, capsys, "Who?"), "and goes on"


@pytest.mark.parametrize(
  "line, said",
  [
    ("/red x", "/red: no such command; choose one of /read, /fork"),
    ("/read", "/read: expected /read FILE"),
    ("/quit now", "/quit now: expected /quit"),
    ("/read none.txt", "/read none.txt: no such file"),
    ("/read .", "is a folder; name a file"),
    ("/back", "no point was kept; /fork keeps one"),
    ("/save x", "there is nothing yet"),
    ("/load README.md", "README.md.talk.json cannot be read"),
    ("What is <|im_end|>?", "a special token"),
    ("\udcff", "not UTF-8"),
  ],
)
def test_a_wrong_line_is_one_line_and_changes_nothing(talk, line, said):
  before = at(talk)
  with pytest.raises(InputError, match=re.escape(said)) as error:
    talk.take(line)
  assert "\n" not in str(error.value) and at(talk) == before


def test_a_piped_line_is_whole_however_long_it_is(monkeypatch):
  def lines(content):
    stream = io.TextIOWrapper(io.BytesIO(content), "utf-8", "surrogateescape")
    monkeypatch.setattr(sys, "stdin", stream)
    return terminal._piped()

  long = "word " * 9999
  found = [*lines(f"\ufeff/help\r\n{long}\n\nlast".encode())]
  assert found == ["/help\n", f"{long}\n", "\n", "last"]
  found = lines(b"one\ncaf\xe9\n")
  assert next(found) == "one\n"
  with pytest.raises(InputError, match="not UTF-8"):
    next(found)  # what is before the wrong character is no question


def test_piped_lines_are_answered_and_an_error_ends_the_command(workdir, capsys, monkeypatch):  # noqa: F811
  flags = ["chat", f"--workdir={workdir}", "--tokens=5", "--temperature=0"]

  def run(text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    return cli.main(flags), *capsys.readouterr()

  alone = Session.load(workdir).chat([user("Who?")], **GREEDY)
  status, out, err = run("Who?\n\n/help\n")
  assert status == 0 and shown(out) == shown(alone)
  assert "/read FILE" in err and "tokens, the state is" in err
  status, out, err = run("/read none.txt\nWho?\n")
  assert status == 2 and not out and "infini-jax chat: /read none.txt: no such file" in err


def test_typed_lines_are_answered_and_an_error_ends_nothing(workdir, capsys, monkeypatch):  # noqa: F811
  typed = iter(["/read none.txt", KeyboardInterrupt(), "Who?", EOFError()])

  def type_(prompt):
    line = next(typed)
    if isinstance(line, BaseException):
      raise line
    return line

  monkeypatch.setattr("builtins.input", type_)
  monkeypatch.setattr(sys, "stdin", argparse.Namespace(isatty=lambda: True))
  assert cli.main(["chat", f"--workdir={workdir}", "--tokens=5", "--temperature=0"]) == 0
  out, err = capsys.readouterr()
  assert shown(out) == shown(Session.load(workdir).chat([user("Who?")], **GREEDY))
  assert "/read none.txt: no such file" in err and "(/quit or Ctrl-D ends)" in err


@pytest.mark.parametrize(
  "flag, said",
  [
    ("--tokens=0", "--tokens=0: must be at least 1"),
    ("--temperature=-1", "temperature=-1.0"),
    ("--chat-template=chatml", "choose own, own:NAME, plain"),
    ("--workdir=nowhere", "no run here"),
  ],
)
def test_wrong_flags_are_one_line(workdir, capsys, flag, said):  # noqa: F811
  assert cli.main(["chat", f"--workdir={workdir}", flag]) == 2
  error = capsys.readouterr().err
  assert said in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_person_at_a_terminal(workdir, file, tmp_path):  # noqa: F811
  """A real process with a terminal: typed lines, an error, Ctrl-C while it reads, Ctrl-D."""
  long = tmp_path / "long.txt"
  long.write_text(TEXT * 50_000)
  ours, theirs = pty.openpty()
  command = [sys.executable, "-m", "infini_jax.cli", "chat", f"--workdir={workdir}"]
  process = subprocess.Popen(
    [*command, "--tokens=20"], stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True,
    start_new_session=True, env={**os.environ, "TERM": "dumb"},
  )  # fmt: skip
  os.close(theirs)
  seen = ""

  def wait_for(text, seconds=120):
    nonlocal seen
    end = time.monotonic() + seconds
    while text not in seen:
      assert time.monotonic() < end, f"no {text!r} in {seen[-2000:]!r}"
      if select.select([ours], [], [], 1)[0]:
        seen += os.read(ours, 4096).decode("utf-8", "replace")
    seen = seen.partition(text)[2]

  try:
    wait_for("/help lists the commands")
    wait_for("> ")
    os.write(ours, b"/nothing\n")
    wait_for("/nothing: no such command")
    os.write(ours, f"/read {file}\n".encode())
    wait_for("read; ")
    os.write(ours, b"Who?\n")
    wait_for("tokens, the state is")
    os.write(ours, f"/read {long}\n".encode())
    wait_for("read ")
    time.sleep(5)
    os.kill(process.pid, signal.SIGINT)
    wait_for("stopped: the conversation is as it was before")
    wait_for("> ")
    time.sleep(1)
    os.write(ours, b"\x04")
    assert process.wait(60) == 0
  finally:
    process.kill()
    os.close(ours)
