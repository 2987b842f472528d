"""Evaluates: python eval.py --workdir=runs/demo [--config=FILE] [--config.a.b=v ...]."""

import sys

from infini_jax.cli import main

if __name__ == "__main__":
  sys.exit(main(["eval", *sys.argv[1:]]))
