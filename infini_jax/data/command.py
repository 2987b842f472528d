"""The command `infini-jax prepare`: by one machine, in parts, or as a pipeline of Apache Beam."""

import argparse

from rich.console import Console

from infini_jax.config import InputError
from infini_jax.data import join_parts, prepare, prepare_part, prepare_with_beam
from infini_jax.paths import folder_to_write


def run(args: argparse.Namespace, flags: list[str], console: Console) -> None:
  """Runs the command.

  Args:
    args: its parsed arguments.
    flags: further flags, for the runner of Beam.
    console: for progress.

  Raises:
    InputError: as the functions that it calls.
  """
  out = folder_to_write(args.out, "--out")
  what = (args.source, out, args.tokenizer)
  if args.runner == "":  # as from a variable of a script that is not set
    raise InputError("--runner= is empty: name a runner of Apache Beam, such as DirectRunner")
  if args.runner and args.workers is not None:
    raise InputError(
      f"--workers={args.workers}: is of this machine; give --runner={args.runner} its own flag, "
      f"such as --direct_num_workers or --max_num_workers"
    )
  if args.runner:
    prepare_with_beam(args.runner, flags, *what, args.min_tokens, console)
  elif args.part is not None:
    prepare_part(args.part, *what, args.workers, args.min_tokens, console)
  elif args.join:
    join_parts(*what, args.min_tokens, console)
  else:
    prepare(*what, args.workers, args.min_tokens, console)
