"""A server as a process of its own, as users start it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Process:
  """`infini-jax serve` with a run; `address` is where it answers."""

  def __init__(self, workdir: Path, *flags: str, **environ: str):
    command = [sys.executable, "-m", "infini_jax.cli", "serve", f"--workdir={workdir}", "--port=0"]
    self._log = (workdir.parent / "serve.log").open("a+")
    at = self._log.seek(0, os.SEEK_END)
    self._process = subprocess.Popen(
      [*command, *flags],
      stdout=self._log,
      stderr=subprocess.STDOUT,
      cwd=ROOT,
      env=os.environ | {"JAX_PLATFORMS": "cpu"} | environ,
    )
    ends = time.monotonic() + 240
    while (found := re.search(r"http://\S+", self.said(at))) is None:
      assert self._process.poll() is None and time.monotonic() < ends, self.said(at)
      time.sleep(0.1)
    self.address = found[0]

  @property
  def pid(self) -> int:
    return self._process.pid

  def said(self, at: int = 0) -> str:
    """What the server has printed, from a place of its log on."""
    self._log.seek(at)
    return self._log.read()

  def memory(self) -> float:
    """The resident memory, MB."""
    text = Path(f"/proc/{self.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) / 1024

  def kill(self) -> None:
    """Ends it as a crash does."""
    self.end(signal.SIGKILL)

  def end(self, number: int = signal.SIGTERM) -> int:
    """Ends it by a signal; returns its exit status."""
    with contextlib.suppress(ProcessLookupError):
      self._process.send_signal(number)
    return self._process.wait(60)

  def __enter__(self) -> "Process":
    return self

  def __exit__(self, *error: object) -> None:
    if self._process.poll() is None:
      self.kill()
    self._log.close()
