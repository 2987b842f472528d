"""A quarter of a million tokens over eight devices, compared with chunks on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import MeshConfig
from infini_jax.models import bind
from infini_jax.ops.loss import cross_entropy
from infini_jax.parallel import make_mesh, param_shardings, put_batch
from tests.tiny import fake_params, model_config

T, N = 262_144, 256


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_a_sequence_over_eight_devices_equals_chunks_on_one(rng, rule):
  """Loss and gradient; on one device, the state is carried between chunks with its gradient."""
  shape = {"layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "segment_length": N}
  config = model_config(rule=rule, remat="full", **shape)
  params = fake_params(config)
  text = rng.integers(0, config.vocab_size, (1, T + 1)).astype(np.int32)
  batch = {"tokens_BT": text[:, :-1], "targets_BT": text[:, 1:]}

  def total(model, tokens, targets, state):
    hidden, state = model(tokens, state)
    return cross_entropy(hidden, model.head(), targets, chunk=4096)[0].sum(), state

  def whole(params, batch):
    model = bind(config, params)
    return total(model, batch["tokens_BT"], batch["targets_BT"], model.state(1))[0] / T

  def in_chunks(params, batch, chunks=16):
    model = bind(config, params)

    @jax.checkpoint
    def chunk(state, xs):
      loss, state = total(model, *xs, state)
      return state, loss

    xs = [batch[name].reshape(chunks, 1, -1) for name in ("tokens_BT", "targets_BT")]
    return jax.lax.scan(chunk, model.state(1), tuple(xs))[1].sum() / T

  expected, expected_grads = jax.jit(jax.value_and_grad(in_chunks))(
    params, jax.tree.map(jnp.asarray, batch)
  )
  mesh = make_mesh(MeshConfig(data=1, seq=8))
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, param_shardings(params, mesh))
    got, grads = jax.jit(jax.value_and_grad(whole))(placed, put_batch(batch, mesh, 1))
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected_grads), strict=True
  ):
    scale = float(jnp.abs(b).max())
    np.testing.assert_allclose(
      a, b, rtol=1e-3, atol=1e-4 * scale, err_msg=jax.tree_util.keystr(path)
    )
