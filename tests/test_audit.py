"""`make check` compares the locked packages with known weaknesses where it can, and never waits."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def audit(tmp_path, **programs):
  """Runs the target with a stand-in for pip-audit."""
  for name, body in programs.items():
    (tmp_path / name.replace("_", "-")).write_text(f"#!/bin/sh\n{body}\n")
    (tmp_path / name.replace("_", "-")).chmod(0o755)
  command = ["make", "--no-print-directory", "audit-here", f"AUDIT={tmp_path}"]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make")


def test_without_the_environment_one_line_says_so(tmp_path):
  done = audit(tmp_path)
  assert done.returncode == 0
  assert done.stdout == "not audited: make audit has not made its environment here\n"


def test_without_an_answer_one_line_says_so(tmp_path):
  done = audit(tmp_path, pip_audit="echo ERROR: connection failed >&2; exit 1")
  assert done.returncode == 0
  assert done.stdout == "not audited: the list of known weaknesses does not answer\n"


def test_what_is_found_fails_the_check(tmp_path):
  done = audit(tmp_path, pip_audit="echo Found 1 known vulnerability in 1 package >&2; exit 1")
  assert done.returncode != 0 and "Found 1 known vulnerability" in done.stdout


def test_nothing_found_passes_the_check(tmp_path):
  done = audit(tmp_path, pip_audit='echo "$@"')
  assert done.returncode == 0 and "--requirement requirements.lock" in done.stdout


def test_the_check_has_it():
  lines = (ROOT / "Makefile").read_text().partition("\ncheck:")[2].splitlines()[1:]
  assert any("audit-here" in line for line in lines[: lines.index("")])
