"""What is written into a file is whole: neither broken at a width nor cut."""

import sys

import pytest
from rich.columns import Columns
from rich.table import Table

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
