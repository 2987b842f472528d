"""Evaluates: python eval.py --config=configs/demo.py --workdir=runs/demo [--config.a.b=v ...]."""

import sys

from infini_jax.cli import main

if __name__ == "__main__":
  sys.exit(main(["eval", *sys.argv[1:]]))
