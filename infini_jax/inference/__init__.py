"""Inference: `Session`, a model with a state that reads text and generates text."""

from infini_jax.inference.saved import OpenedRun, open_run
from infini_jax.inference.scoring import Score
from infini_jax.inference.session import Session
from infini_jax.inference.writing import Piece

__all__ = ["OpenedRun", "Piece", "Score", "Session", "open_run"]
