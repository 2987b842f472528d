"""Console output to a file is neither wrapped nor cut."""

import sys

import pytest
from rich.columns import Columns
from rich.table import Table

from infini_jax import progress
from infini_jax.progress import make_console, track


@pytest.mark.parametrize("environment", [{}, {"COLUMNS": "20"}, {"FORCE_COLOR": "1"}], ids=str)
@pytest.mark.parametrize("stderr", [False, True])
def test_nothing_is_wrapped_or_cut_in_a_file(monkeypatch, capsys, environment, stderr):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  console, path = make_console(stderr), "/a folder/[/x] :smile:" * 20
  console.print(f"saved in {path}")
  with track(console, f"read {path}", 2) as advance:
    advance(2, f"text {path}")
  table, other = Table(title=f"title {path}"), Table(title=f"other {path}")
  for made in (table, other):
    made.add_column("figure")
    made.add_column("value", justify="right", overflow="fold")
  table.add_row("path", path)
  other.add_row("a", "b")
  console.print(table)
  console.print(Columns([other, Table()]))
  text = capsys.readouterr()[int(stderr)]
  for whole in (f"saved in {path}", f"read {path} 2/2", f"text {path}", f"title {path}", path):
    assert sum(whole in line for line in text.splitlines()) >= 1, whole
  assert sum(f"other {path}" in line for line in text.splitlines()) == 1
  assert "\x1b" not in text and "..." not in text and "…" not in text


def test_a_terminal_keeps_its_width(monkeypatch, capsys):
  monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
  monkeypatch.setenv("COLUMNS", "30")
  monkeypatch.setenv("TERM", "xterm")
  make_console().print("word " * 20, highlight=False)
  assert max(map(len, capsys.readouterr().out.splitlines())) <= 30


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_bytes_are_lines_at_times_in_a_file(monkeypatch, capsys, seconds):
  monkeypatch.setattr(progress, "LINE_SECONDS", seconds)
  with track(make_console(), "tokenizing", 4_000_000, in_bytes=True) as advance:
    advance(1_000_000)
    advance(4_000_000)
  lines = ["tokenizing: 1 of 4 MB, 0 s to go", "tokenizing: 4 of 4 MB, 0 s to go"]
  assert capsys.readouterr().out.splitlines() == (lines if not seconds else [])


def test_bytes_are_a_bar_on_a_terminal(monkeypatch, capsys):
  monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
  monkeypatch.setenv("COLUMNS", "80")
  monkeypatch.setenv("TERM", "xterm")
  with track(make_console(), "tokenizing", 4_000_000, in_bytes=True) as advance:
    advance(4_000_000)
  out = capsys.readouterr().out
  assert "tokenizing" in out and "4.0/4.0 MB" in out
