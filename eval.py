"""Evaluates: python eval.py --workdir=runs/demo [--config=FILE] [--config.a.b=v ...]."""

import sys

from infini_jax.cli import program

if __name__ == "__main__":
  program(["eval", *sys.argv[1:]])
