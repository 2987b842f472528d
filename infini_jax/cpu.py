"""What XLA's programs depend on in this machine: flags for CPUs, and where programs are kept."""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path

# Products by XLA's newer library: training in float32 takes about a fifth less time on two threads.
# Products of bfloat16 are several times slower with this flag (docs/performance.md).
FLAGS = {"float32": ("--xla_cpu_experimental_ynn_fusion_type=dot",)}
ACCELERATORS = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")

KEPT = 30 * 24 * 3600  # seconds


def set_flags(environ: MutableMapping[str, str], dtype: str) -> None:
  """Adds the flags to XLA_FLAGS where a CPU computes; jax must not have computed anything yet.

  A flag that is set already stays as it is.

  Args:
    environ: the environment of this process.
    dtype: that of the products: `run.compute_dtype`.
  """
  platforms = environ.get("JAX_PLATFORMS", "")
  if platforms != "cpu" and (platforms or any(map(importlib.util.find_spec, ACCELERATORS))):
    return
  given = environ.get("XLA_FLAGS", "").split()
  names = {flag.split("=")[0] for flag in given}
  more = [flag for flag in FLAGS.get(dtype, ()) if flag.split("=")[0] not in names]
  if more:
    environ["XLA_FLAGS"] = " ".join([*given, *more])


def programs(environ: Mapping[str, str]) -> Path | None:
  """The user's folder for programs that were compiled on machines like this; None: there is none.

  A home folder may be shared by machines whose processors have other instructions, so each kind of
  processor, and each version of jaxlib, has its own. Programs older than `KEPT` are removed.
  """
  home = environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
  kind = hashlib.sha256(_processor().encode()).hexdigest()[:12]
  folder = Path(home) / "infini_jax" / f"programs-{kind}"
  try:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for file in folder.iterdir():
      if time.time() - file.stat().st_mtime > KEPT:
        file.unlink(missing_ok=True)
  except OSError:
    return None
  return folder if os.access(folder, os.W_OK | os.X_OK) else None


def _processor() -> str:
  """What a compiled program depends on: the instructions of the processor, and jaxlib."""
  try:
    found = re.search(r"^(flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
  except OSError:
    found = None
  features = " ".join(sorted(found[0].split())) if found else platform.processor()
  return f"{platform.machine()} {features} {importlib.metadata.version('jaxlib')}"
