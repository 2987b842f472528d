import jax.numpy as jnp
import numpy as np

from infini_jax.evaluation import gates
from tests.tiny import fake_params, model_config, patterned


def test_gates_are_the_sigmoid_of_beta_and_absent_without_a_memory():
  c = model_config(layers=3)
  params = fake_params(c)
  beta = np.asarray(params["blocks"]["attention"]["mixer"]["beta_H"])
  np.testing.assert_allclose(gates.gates(c, params), 1 / (1 + np.exp(-beta)), rtol=1e-6)
  hard = gates.gates(model_config(layers=3, gate="hard_sigmoid"), params)
  np.testing.assert_allclose(hard, np.clip(beta / 6 + 0.5, 0, 1), rtol=1e-5, atol=1e-7)
  local = model_config(mixer="local")
  assert gates.gates(local, fake_params(local)) is None


def test_a_layer_without_a_store_reads_nothing():
  c = model_config(mixer="memorizing", layers=3, knn_layers=(2,))
  gates_LH = gates.gates(c, fake_params(c))
  np.testing.assert_array_equal(gates_LH[[0, 2]], 0.0)
  assert 0 < gates_LH[1].min() < 1
  np.testing.assert_array_equal(gates.with_gates(c), [False, True, False])


def test_gates_of_a_pattern_stand_in_their_layers():
  c = patterned(("local", "infini", "full"), 6)
  params = fake_params(c)
  gates_LH = gates.gates(c, params)
  beta = np.asarray(params["blocks"]["attention"]["mixer"]["infini"]["beta_H"])
  np.testing.assert_allclose(gates_LH[[1, 4]], 1 / (1 + np.exp(-beta)), rtol=1e-6)
  np.testing.assert_array_equal(gates_LH[[0, 2, 3, 5]], 0.0)
  counted = gates.summary(gates_LH[gates.with_gates(c)])
  heads = ("local_heads", "mixer_heads", "memory_heads")
  assert sum(counted[name] for name in heads) == 2 * c.heads and counted["least"] > 0
  none = patterned(("local", "full"), 2)
  assert gates.gates(none, fake_params(none)) is None


def test_summary_counts_every_head_once():
  gates_LH = np.array([[0.0, 0.0999, 0.1], [0.5, 0.9, 0.901], [1.0, 0.95, 0.3]])
  assert gates.summary(gates_LH) == {
    "opened_heads": 4,
    "local_heads": 2,
    "memory_heads": 3,
    "mixer_heads": 4,
    "least": 0.0,
    "greatest": 1.0,
  }


def test_picture_is_written_whatever_its_size(tmp_path):
  for shape in ((1, 1), (2, 4), (24, 16)):
    file = tmp_path / "new" / f"{shape[0]}.png"
    gates.draw(np.asarray(jnp.linspace(0, 1, shape[0] * shape[1])).reshape(shape), file)
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and content.rstrip().endswith(b"IEND\xaeB`\x82")
