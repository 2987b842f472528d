"""`infini-jax generate`, as a person uses it: streams, kept states, what is refused."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infini_jax import cli

ROOT = Path(__file__).parent.parent.parent
TEXT = "One line.\nAnother line, étrange.\n\nA third\n  and its end" * 3


@pytest.fixture
def run(trained):
  return f"--workdir={trained[1]}"


def command(capsys, *arguments):
  status = cli.main(["generate", *map(str, arguments)])
  captured = capsys.readouterr()
  return status, captured.out, captured.err


def refused(capsys, *arguments):
  status, _, error = command(capsys, *arguments)
  assert status == 2 and error.splitlines()[-1].startswith("infini-jax generate: "), error
  return error


def test_a_file_a_stream_and_a_kept_state_go_on_alike(run, tmp_path, capsys, monkeypatch):
  """Read in one process and asked in another, or all at once: the same text."""
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


def test_wrong_inputs_are_named_with_the_remedy(run, trained, tmp_path, capsys):
  empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
  empty.write_text("")
  latin.write_bytes(b"caf\xe9" * 9)
  assert "--workdir=RUN is missing" in refused(capsys)
  assert "--prompt is empty" in refused(capsys, run, "--prompt=")
  assert "is empty" in refused(capsys, run, f"--prompt-file={empty}")
  assert "not UTF-8" in refused(capsys, run, f"--prompt-file={latin}")
  assert "must be at least 0" in refused(capsys, run, "--tokens=-1")
  assert "0 (greedy) or more" in refused(capsys, run, "--temperature=-1")
  assert "0 (off) or more" in refused(capsys, run, "--top-k=-2")
  assert "must be above 0" in refused(capsys, run, "--repetition-penalty=0")
  assert "at least one character" in refused(capsys, run, "--stop=")
  assert "no such file" in refused(capsys, f"--load-state={tmp_path / 'none'}")
  assert "no such folder" in refused(capsys, run, f"--save-state={tmp_path / 'no' / 'a.state'}")
  assert "not a whole" in refused(capsys, f"--load-state={latin}")
  assert "--prompt-document needs" in refused(
    capsys, f"--load-state={latin}", "--prompt-document=test:0"
  )


def start(*arguments, before=""):
  """A process of its own, as a person starts it; `before` is done by its shell."""
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
  for i in range(0, len(data), 37):  # inside of words and of characters
    process.stdin.write(data[i : i + 37])
    process.stdin.flush()
    time.sleep(0.05)
  assert finished(process)[:2] == whole[:2]
  assert states[0].read_bytes() == states[1].read_bytes(), "the pipe left another state"

  endless = start(*how, "--prompt-file=-", f"--save-state={states[2]}")
  endless.stdin.write(data + b"\n")
  endless.stdin.flush()
  for line in endless.stderr:  # it reads, and waits for more
    if b"read standard input" in line:
      break
  time.sleep(5)
  endless.send_signal(signal.SIGINT)  # Ctrl-C ends the input alone
  status, _, told = finished(endless)
  assert status == 0 and "wrote 12 tokens" in told and states[2].is_file(), told


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
