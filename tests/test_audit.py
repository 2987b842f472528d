"""`make check` compares the locked packages with known weaknesses where it can, and never waits."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def audit(tmp_path, **programs):
  """Runs the target with stand-ins for pip-audit and for the Python that asks for the list."""
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
  done = audit(tmp_path, pip_audit="echo audited", python="exit 1")
  assert done.returncode == 0
  assert re.fullmatch(
    r"not audited: https://pypi\.org/pypi/[\w-]+/[\w.]+/json does not answer\n", done.stdout
  )
  name, version = done.stdout.split("/")[4:6]
  assert f"\n{name}=={version} " in (ROOT / "requirements.lock").read_text()


@pytest.mark.parametrize("found", [0, 1])
def test_what_is_found_fails_the_check(tmp_path, found):
  done = audit(tmp_path, pip_audit=f'echo "$@"; exit {found}', python="exit 0")
  assert (done.returncode == 0) == (found == 0)
  assert "--requirement requirements.lock" in done.stdout


def test_the_check_has_it():
  lines = (ROOT / "Makefile").read_text().partition("\ncheck:")[2].splitlines()[1:]
  assert any("audit-here" in line for line in lines[: lines.index("")])
