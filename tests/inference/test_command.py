"""`infini-jax generate`: streams, saved states, and refusals."""

import io
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from infini_jax import cli
from infini_jax.inference import Session, open_run, saved

ROOT = Path(__file__).parent.parent.parent
TEXT = "One line.\nAnother line, étrange.\n\nA third\n  and its end" * 3


@pytest.fixture(scope="module")
def opened(trained):
  return open_run(trained[1])


@pytest.fixture
def run(trained, opened, monkeypatch):
  monkeypatch.setattr(saved, "open_run", lambda *_: opened)  # compiles its programs once
  return f"--workdir={trained[1]}"


@pytest.fixture
def interruptible():
  """Ctrl-C works as in a terminal, also if the tests run in the background."""
  usual = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, usual)


def command(capsys, *arguments):
  status = cli.main(["generate", *map(str, arguments)])
  captured = capsys.readouterr()
  return status, captured.out, captured.err


def refused(capsys, *arguments):
  status, _, error = command(capsys, *arguments)
  assert status == 2 and error.splitlines()[-1].startswith("infini-jax generate: "), error
  return error


def test_a_file_a_stream_and_a_saved_state_give_the_same_text(run, tmp_path, capsys, monkeypatch):
  """Reading in one process and writing in another gives the same text as one process."""
  book, state = tmp_path / "book.txt", tmp_path / "book.state"
  book.write_text(TEXT, "utf-8")
  how = ("--tokens=20", "--seed=3", "--top-k=30", "--repetition-penalty=1.2", "--top-p=0.9")
  status, expected, told = command(capsys, run, f"--prompt-file={book}", *how)
  assert status == 0 and f"{1 + len(TEXT.encode()):,} tokens" in told and "MB" in told
  status, shown, told = command(
    capsys, run, f"--prompt-file={book}", "--tokens=0", f"--save-state={state}"
  )
  assert (status, shown) == (0, "") and f"at token {1 + len(TEXT.encode()):,}" in told
  assert command(capsys, f"--load-state={state}", *how)[:2] == (0, expected)
  monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
  stop = expected[len(expected) // 2]
  stopped = command(capsys, run, "--prompt-file=-", *how, "--stop=never in it", f"--stop={stop}")
  assert stopped[:2] == (0, expected.partition(stop)[0] + "\n")


def test_every_sampling_flag_has_its_effect(run, capsys):
  def wrote(*how):
    status, out, _ = command(capsys, run, "--prompt=One", "--tokens=9", "--temperature=3", *how)
    assert status == 0
    return out

  greedy = wrote("--temperature=0")
  assert wrote("--top-k=1") == wrote("--top-p=1e-9") == greedy
  assert wrote("--temperature=0", "--repetition-penalty=1e6") != greedy
  assert len({greedy, wrote(), wrote("--seed=1")}) == 3
  read, write = os.pipe()  # as from `<(command)`
  os.write(write, TEXT.encode())
  os.close(write)
  pipe = f"--prompt-file=/dev/fd/{read}"
  for prompt in (f"--prompt={TEXT}", "--prompt-document=test:0", pipe):
    status, _, told = command(capsys, run, prompt, "--prompt-tokens=5", "--tokens=0")
    assert status == 0 and "5 tokens read" in told and "now 6 tokens" in told, told


def test_wrong_inputs_are_named_with_the_remedy(run, tmp_path, capsys, monkeypatch):
  empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
  empty.write_text("")
  latin.write_bytes(b"caf\xe9" * 9)
  assert "--workdir=RUN is missing" in refused(capsys)
  assert "--prompt is empty" in refused(capsys, run, "--prompt=")
  assert "is empty" in refused(capsys, run, f"--prompt-file={empty}")
  assert "not UTF-8" in refused(capsys, run, f"--prompt-file={latin}")
  assert "must be at least 0" in refused(capsys, run, "--tokens=-1")
  assert "must be at least 1" in refused(capsys, run, "--prompt-tokens=0")
  assert "0 (greedy) or more" in refused(capsys, run, "--temperature=-1")
  assert "0 (off) or more" in refused(capsys, run, "--top-k=-2")
  assert "must be above 0" in refused(capsys, run, "--repetition-penalty=0")
  assert "at least one character" in refused(capsys, run, "--stop=")
  assert "no such file" in refused(capsys, f"--load-state={tmp_path / 'none'}")
  assert "no such folder" in refused(capsys, run, f"--save-state={tmp_path / 'no' / 'a.state'}")
  assert "is a folder" in refused(capsys, run, f"--save-state={tmp_path}")
  assert "is empty" in refused(capsys, run, "--save-state="), "an empty variable of a shell"
  assert "takes no files" in refused(capsys, run, "--save-state=/proc/a.state")
  assert "--load-state is empty" in refused(capsys, run, "--load-state=")
  assert "--prompt-file is empty" in refused(capsys, run, "--prompt-file=")
  assert "choose one of train" in refused(capsys, run, "--prompt-document=")
  assert "expected SPLIT:NUMBER" in refused(capsys, run, "--prompt-document=test:²")
  assert "not a whole" in refused(capsys, f"--load-state={latin}")
  assert "--prompt-document needs" in refused(
    capsys, f"--load-state={latin}", "--prompt-document=test:0"
  )


def test_wrong_flags_are_refused_before_a_model_is_opened(trained, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(saved, "open_run", lambda *_: pytest.fail("a model was opened"))
  monkeypatch.chdir(tmp_path)
  run = f"--workdir={trained[1]}"
  Path("book.txt").write_text("A book.")
  for wrong, message in (
    ("--prompt=book.txt", "--prompt=book.txt: a file of this name exists; --prompt-file reads it"),
    ("--seed=-1", "--seed=-1: must be at least 0"),
    ("--seed=4294967296", "--seed=4294967296: must be at most 4294967295"),
    ("--step=-1", "--step=-1: must be at least 0"),
    ("--tokens=9999999999", "--tokens=9999999999: must be at most 2147483647"),
    ("--prompt-tokens=9", "--prompt-tokens=9: there is no prompt"),
    ("--temperature=nan", "temperature=nan: must be 0"),
    ("--top-p=nan", "top_p=nan: must be above 0"),
    ("--prompt=\udcff", r"--prompt='\udcff': not UTF-8 text"),
    ("--stop=\udcff", r"--stop='\udcff': not UTF-8 text"),
    ("--prompt-file=/", "--prompt-file=/: is a folder; name a file (--workdir names a run's"),
    ("--load-state=/", "--load-state=/: is a folder; name a file (--workdir names a run's"),
    (r"--stop=\d", r"--stop=\d: \d has no meaning; there are \n, \t, \r"),
    ("--stop=end\\", "has no meaning"),
  ):
    status, out, error = command(capsys, run, wrong)
    assert (status, out, error.count("\n")) == (2, "", 1) and message in error, error
  for wrong in ("--top-k=2.5", "--seed=1.5", "--tokens=1e3", "--step=x", "--prompt-tokens=1.5"):
    with pytest.raises(SystemExit) as ended:
      command(capsys, run, wrong)
    assert ended.value.code == 2 and wrong.partition("=")[2] in capsys.readouterr().err


def test_a_stop_string_may_hold_newlines_and_backslashes(run, capsys, monkeypatch):
  heeded = []
  generate = lambda self, tokens, **how: heeded.extend(how["stop"]) or iter(())
  monkeypatch.setattr(Session, "generate", generate)
  given = (r"\n\n", r"a\tb", r"\\n", r"\\\n", "é", "\n")
  status, *_ = command(capsys, run, "--prompt=One", *(f"--stop={text}" for text in given))
  assert status == 0 and heeded == ["\n\n", "a\tb", "\\n", "\\\n", "é", "\n"]


def test_nothing_follows_a_state_whose_document_has_ended(
  run, opened, tmp_path, capsys, monkeypatch
):
  """The mark is a token like others. A state that is saved after it records the end."""
  state, eos = tmp_path / "ended.state", opened.tokenizer.eos
  monkeypatch.setattr(opened.engine, "draw", lambda logits, *_: np.full(len(logits), eos))
  status, _, told = command(capsys, run, "--prompt=One", f"--save-state={state}")
  assert status == 0 and "has ended the document; nothing can follow it" in told
  for how in (("--prompt=Two",), ("--tokens=9",), ("--tokens=0", f"--save-state={state}")):
    error = refused(capsys, f"--load-state={state}", *how)
    assert error.count("\n") == 1 and "has ended its document" in error and str(state) in error


def test_standard_input_may_be_closed(run, capsys, monkeypatch):
  monkeypatch.setattr("sys.stdin", None)
  assert "is closed" in refused(capsys, run, "--prompt-file=-")


def test_what_came_before_a_wrong_byte_of_standard_input_is_kept(
  run, tmp_path, capsys, monkeypatch
):
  piped, filed = tmp_path / "piped.state", tmp_path / "filed.state"
  data = (TEXT + "\n").encode() * 9
  give = lambda data: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
  give(data + b"\0 and more\n")
  status, out, told = command(capsys, run, "--prompt-file=-", f"--save-state={piped}")
  assert (status, out) == (2, "") and "holds NUL" in told, told
  book = tmp_path / "book.txt"
  book.write_bytes(data)
  how = (f"--prompt-file={book}", "--tokens=0", f"--save-state={filed}")
  assert command(capsys, run, *how)[0] == 0
  assert piped.read_bytes() == filed.read_bytes()

  give(data + b"\xff and more\n")
  status, _, told = command(capsys, run, "--prompt-file=-", f"--save-state={piped}")
  assert status == 2 and f"after {len(data.decode()):,} characters" in told, told
  assert piped.read_bytes() == filed.read_bytes()

  give(b"\xff" + data)  # nothing was before it
  piped.unlink()
  assert "not UTF-8 text (after 0" in refused(
    capsys, run, "--prompt-file=-", f"--save-state={piped}"
  )
  assert not piped.exists()


def test_the_saved_state_is_complete_after_any_end(
  run, opened, tmp_path, monkeypatch, interruptible
):
  """By Ctrl-C, a closed pipe, or a full disk; also if some characters cannot be printed."""
  state = tmp_path / "a.state"

  def written(output):
    monkeypatch.setattr("sys.stdout", output)
    how = ("--tokens=12", "--temperature=3", "--top-p=1", f"--save-state={state}")
    return cli.main(["generate", run, f"--prompt={TEXT}", *how])

  text = lambda: Session.load(state, model=Session(opened)).recent[0]
  plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
  assert written(plain) == 0 and b"?" in plain.buffer.getvalue()
  whole = text()

  calls, real = itertools.count(1), opened.engine.draw

  def draw(*arguments):
    if next(calls) == 5:
      signal.raise_signal(signal.SIGINT)
    return real(*arguments)

  monkeypatch.setattr(opened.engine, "draw", draw)
  assert written(io.TextIOWrapper(io.BytesIO())) == 130
  assert text() == whole[:-7], "five of twelve tokens are kept"

  read, write = os.pipe()
  os.close(read)
  with os.fdopen(write, "w") as closed:
    assert written(closed) == 0
  assert text() == whole[: len(text())] != whole, "it writes on into a closed pipe"

  state.unlink()
  if os.path.exists("/dev/full"):  # on Linux
    with open("/dev/full", "w") as full:
      assert written(full) == 2 and not state.exists()


def test_a_file_that_fails_while_read_leaves_no_state(
  run, opened, tmp_path, capsys, monkeypatch, interruptible
):
  book, state = tmp_path / "book.txt", tmp_path / "a.state"
  book.write_text(TEXT, "utf-8")
  read = lambda *_: signal.raise_signal(signal.SIGINT)
  monkeypatch.setattr(opened.engine, "read", read)
  status, out, told = command(capsys, run, f"--prompt-file={book}", f"--save-state={state}")
  assert (status, out) == (130, "") and "interrupted; nothing is kept" in told
  assert not state.exists()


def start(*arguments, before=""):
  """Starts a process as a user does; its shell runs `before` first."""
  program = [sys.executable, "-m", "infini_jax.cli", "generate", *map(str, arguments)]
  return subprocess.Popen(
    ["/bin/sh", "-c", f'{before} exec "$@"', "sh", *program],
    cwd=ROOT,
    env={"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def finished(process, given=b""):
  out, told = process.communicate(given, timeout=300)
  return process.returncode, out, told.decode()


@pytest.mark.slow
def test_real_processes_read_a_pipe_as_it_comes_and_keep_the_same_state(run, tmp_path):
  book = tmp_path / "book.txt"
  book.write_text(TEXT, "utf-8")
  states = [tmp_path / f"{name}.state" for name in ("file", "pipe", "stopped")]
  how = (run, "--tokens=12", "--seed=3")
  whole = finished(start(*how, f"--prompt-file={book}", f"--save-state={states[0]}"))
  assert whole[0] == 0, whole
  process = start(*how, "--prompt-file=-", f"--save-state={states[1]}")
  data = TEXT.encode()
  for i in range(0, len(data), 37):  # cuts words and characters
    process.stdin.write(data[i : i + 37])
    process.stdin.flush()
    time.sleep(0.05)
  assert finished(process)[:2] == whole[:2]
  assert states[0].read_bytes() == states[1].read_bytes(), "the pipe left another state"

  endless = start(*how, "--prompt-file=-", f"--save-state={states[2]}")
  endless.stdin.write(data + b"\n")
  endless.stdin.flush()
  for line in endless.stderr:  # it has read, and waits for more
    if b"read standard input" in line:
      break
  time.sleep(5)
  endless.send_signal(signal.SIGINT)  # Ctrl-C ends only the input
  status, out, told = finished(endless)
  assert status == 0 and "wrote 12 tokens" in told, told
  (read,) = re.findall("([0-9]+) tokens read", told)
  only = (f"--prompt-file={book}", f"--prompt-tokens={read}", f"--save-state={states[0]}")
  book.write_text(TEXT + "\n", "utf-8")
  assert finished(start(*how, *only))[1] == out, f"{read} tokens, read otherwise"
  assert states[0].read_bytes() == states[2].read_bytes(), "the pipe left another state"


@pytest.mark.slow
def test_real_processes_keep_a_state_whole_or_not_at_all(run, tmp_path):
  state = tmp_path / "book.state"
  keep = (run, f"--prompt={TEXT}", "--tokens=0", f"--save-state={state}")
  status, _, told = finished(start(*keep, before="ulimit -f 2;"))  # no file over 1 or 2 kB
  assert status == 2 and told.splitlines()[-1].startswith(f"infini-jax generate: {state}: cannot")
  assert "Traceback" not in told and not os.listdir(tmp_path), "half a state was left"
  assert finished(start(*keep))[0] == 0
  state.write_bytes(state.read_bytes()[:-9])
  status, out, told = finished(start(f"--load-state={state}"))
  assert (status, out, told.count("\n")) == (2, b"", 1), told
