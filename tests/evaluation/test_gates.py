"""Counts of specialised heads, and the picture."""

import jax.numpy as jnp
import numpy as np

from infini_jax.evaluation import gates


def test_counts_specialised_heads_and_mixers():
  values = np.array([[0.02, 0.5, 0.95], [0.1, 0.9, 0.3]])
  counts = gates.summary(values)
  assert (counts["local_heads"], counts["mixer_heads"], counts["memory_heads"]) == (1, 4, 1)
  assert (counts["least"], counts["greatest"]) == (0.02, 0.95)


def test_gates_come_from_the_parameters_and_are_absent_without_them():
  params = {"blocks": {"attention": {"mixer": {"beta_H": jnp.array([[0.0, 2.0]])}}}}
  np.testing.assert_allclose(gates.gates(params), [[0.5, 1 / (1 + np.exp(-2))]], rtol=1e-6)
  assert gates.gates({"blocks": {"attention": {}}}) is None


def test_the_picture_has_a_cell_for_each_head(tmp_path):
  from matplotlib.image import imread

  gates.draw(np.random.default_rng(0).random((3, 4)), tmp_path / "deep" / "gates.png")
  assert imread(tmp_path / "deep" / "gates.png").std() > 0.05, "the picture is blank"
