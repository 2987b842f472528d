"""Trains: python train.py --config=configs/demo.py --workdir=runs/demo [--config.a.b=value ...]."""

import sys

from infini_jax.cli import program

if __name__ == "__main__":
  program(["train", *sys.argv[1:]])
