"""The arguments of `infini-jax score` and `lm-eval`; importing them imports no JAX."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `infini-jax score`."""
  made = parser.add_argument
  made("files", metavar="FILE", nargs="*", help="a file of text, of any length; - is stdin")
  made("--text", action="append", default=[], help="a text; may be repeated")
  made("--workdir", help="the folder of the run")
  state = "score what follows a saved state; without --workdir, its own run is used"
  made("--load-state", metavar="FILE", help=state)
  prompt = parser.add_mutually_exclusive_group()
  prompt.add_argument("--prompt", help="a text before each of them, which is read once")
  prompt.add_argument("--prompt-file", metavar="FILE", help="a file of it, of any length")
  made("--empty", action="store_true", help="also with the memory held empty")
  made("--per-token", action="store_true", help="also a line for each token")
  made("--step", type=int, help="which checkpoint; the newest by default")
  averaged = "the moving average of the parameters (config.optimizer.ema), not their last values"
  made("--ema", action="store_true", help=averaged)


def add_harness(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `infini-jax lm-eval`; all others are those of the harness's `run`."""
  made = parser.add_argument
  parser.epilog = (
    "All other arguments are those of lm-evaluation-harness: --tasks, --output_path, ..."
  )
  made("--workdir", help="the folder of the run: --model_args workdir=...")
  made("--step", type=int, help="which checkpoint; the newest by default")
  made("--ema", action="store_true", help="the moving average of the parameters")
  made("--empty", action="store_true", help="with the memory held empty")
  parser.set_defaults(passes=True)
