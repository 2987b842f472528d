"""Trains: python train.py --config=configs/demo.py --workdir=runs/demo [--config.a.b=value ...]."""

import sys

from infini_jax.cli import main

if __name__ == "__main__":
  sys.exit(main(["train", *sys.argv[1:]]))
