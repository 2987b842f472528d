"""Adds a memory to a pretrained model: every stage of configs/adapt_smollm.py, and two tables.

    python benchmarks/adapt.py --model=FILE_OR_FOLDER --books=BOOKS --workdir=runs/adapt
    python benchmarks/adapt.py ... --short        # a few steps of each stage, for 2 CPU cores

FILE_OR_FOLDER is a .gguf file or a Hugging Face folder of SmolLM2-135M. A stage that was already
trained resumes from its last state. Fields given as --config.a.b=value apply to all stages.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from infini_jax.evaluation.filing import newest
from infini_jax.paths import expand, folder_to_write
from infini_jax.progress import make_console

ROOT = Path(__file__).parent.parent
CONFIG = "configs/adapt_smollm.py"
# arXiv 2404.07143, Table 3, linear + delta: right tokens, in percent, of keys at start/middle/end.
LENGTHS = (32_768, 131_072, 262_144, 524_288, 1_048_576)
PAPER = {
  "the paper's 1B, zero-shot": ("13/11/99", "6/9/99", "7/5/99", "6/8/97", "7/6/97"),
  "the paper's 1B, 400 steps": ("100/100/100", *2 * ("100/100/99",), *2 * ("100/100/100",)),
}
SHORT = (
  "--config.run.compute_dtype=float32",
  "--config.model.segment_length=256",
  "--config.data.lanes=1",
  "--config.train.loss_chunk=256",
  "--config.optimizer.learning_rate=2e-5",
  "--config.optimizer.warmup_steps=2",
  "--config.evaluation.lanes=2",
  "--config.evaluation.segments=2",
  "--config.evaluation.max_documents=2",
  "--config.evaluation.max_tokens=1024",
  "--config.evaluation.lengths=(1024,)",
  "--config.evaluation.depths=(0.0,0.5,1.0)",
  "--config.evaluation.samples=2",
)
SHORT_TRAINING = {
  "pretrain": (
    "--config.train.rollout=(64,)",
    "--config.train.rollout_steps=3",
    "--config.train.steps=4",
  ),
  "passkey": (
    "--config.data.segments=2",
    "--config.task.min_segments=2",
    "--config.train.steps=2",
  ),
}


def main() -> int:
  """Runs the stages one after another; returns an exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", required=True, help="a .gguf file or a Hugging Face folder")
  parser.add_argument("--books", required=True, help="a folder of long documents, or a store")
  what = "a folder; each stage has its own folder in it"
  parser.add_argument("--workdir", required=True, type=folder_to_write, help=what)
  parser.add_argument("--short", action="store_true", help="a few steps of each stage")
  args, fields = parser.parse_known_args()
  console, root = make_console(), args.workdir.resolve()
  original, pretrained, passkey = (root / name for name in ("original", "pretrained", "passkey"))
  model, books = (
    str(Path(p).resolve()) if Path(p).exists() else p for p in map(expand, (args.model, args.books))
  )

  def settings(stage: str, run: Path, start: Path) -> list[str]:
    short = (*SHORT, *SHORT_TRAINING[stage]) if args.short else ()
    given = [f"--config.train.start_from={start}", f"--config.data.path={books}"]
    return [f"--config={CONFIG}:{stage}", f"--workdir={run}", *given, *short, *fields]

  first = settings("pretrain", pretrained, original)
  second = settings("passkey", passkey, pretrained)
  format = "gguf" if model.endswith(".gguf") else "hf"
  convert = ["-m", "infini_jax.cli", "convert", format, model, str(original)]
  stages = {
    "convert": convert if not original.exists() else None,
    "pretrain": ["train.py", *first],
    "surgery": ["eval.py", *first, "--task=surgery,perplexity"],
    "zero-shot": ["eval.py", *first, "--task=passkey"],
    "fine-tune": ["train.py", *second],
    "grid": ["eval.py", *second, "--task=passkey"],
  }
  root.mkdir(parents=True, exist_ok=True)
  for name, command in stages.items():
    if command and not ran(name, command, root, console):
      return 1
  console.print(cost(newest(pretrained, "surgery")))
  keys = {"zero-shot": newest(pretrained, "passkey"), "tuned": newest(passkey, "passkey")}
  console.print(grid(keys))
  return 0


def ran(name: str, command: list[str], root: Path, console: Console) -> bool:
  """Runs a stage; False if it failed."""
  log = root / f"{name}.log"
  console.print(f"{name} (see {log})", highlight=False)
  started = time.perf_counter()
  with log.open("w") as file:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=file, stderr=file)
  state = "failed" if done.returncode else "took"
  console.print(f"{name} {state}: {time.perf_counter() - started:.0f} s", highlight=False)
  return not done.returncode


def cost(results: dict) -> Table:
  """The cost of the surgery: perplexity of the same tokens before and after it."""
  made = Table(title=f"the surgery, {results['memory']['tokens']:,} held-out tokens")
  for name in ("", "perplexity", "change"):
    made.add_column(name, justify="right" if name else "left")
  rows = results["before"] | {f"step {results['step']:,}": results["memory"]}
  first = results["before"]["original"]["perplexity"]
  for name, found in rows.items():
    change = "" if name == "original" else f"{found['perplexity'] / first - 1:+.2%}"
    made.add_row(name, f"{found['perplexity']:.3f}", change)
  return made


def grid(found: dict[str, dict]) -> Table:
  """The percentage of right tokens of the pass key, next to the paper's Table 3."""
  cells = {name: results["memory"]["cells"] for name, results in found.items()}
  lengths = sorted({c["length"] for c in next(iter(cells.values()))})
  depths = sorted({c["depth"] for c in next(iter(cells.values()))})
  made = Table(title=f"right tokens of the pass key, percent, at depths {depths}")
  made.add_column("model")
  for length in lengths:
    made.add_column(f"{length:,} tokens", justify="right")
  for name, own in cells.items():
    share = {(c["length"], c["depth"]): f"{100 * c['token_accuracy']:.0f}" for c in own}
    rows = ["/".join(share[length, depth] for depth in depths) for length in lengths]
    made.add_row(f"{name}, step {found[name]['step']:,}", *rows)
  for name, shares in PAPER.items():
    known = dict(zip(LENGTHS, shares, strict=True))
    made.add_row(name, *(known.get(length, "") for length in lengths))
  return made


if __name__ == "__main__":
  sys.exit(main())
