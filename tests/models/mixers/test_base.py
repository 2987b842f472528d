"""`read` and `write` define a memory system; its faster forms compute the same."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from infini_jax.config import MeshConfig
from infini_jax.models.mixers import MIXERS
from infini_jax.models.mixers.base import Chunk, Mixer, Segment, Stream, Tokens, empty_segment
from infini_jax.parallel import make_mesh, shard
from tests.tiny import array, model_config

B, S, N, H, K, E, D = 2, 4, 4, 4, 2, 8, 6
T = S * N
SIZES = dict(width=D, segment_length=N, heads=H, kv_heads=K, head_dim=E, rope_theta=100.0)
CASES = {
  "infini-linear": dict(write_gate=True, adapter_rank=2),
  "infini-delta": dict(rule="delta", normalize_keys=True, z_correction=True, decay=0.7,
                       gate="hard_sigmoid", readout_norm=True, scale_first_segment=True),
  "gated_delta": dict(mixer="gated_delta"),
  "local": dict(mixer="local"),
  "transformer_xl": dict(mixer="transformer_xl"),
  "compressive": dict(mixer="compressive", compression_rate=2, compressed_memory=4),
  "memorizing": dict(mixer="memorizing", knn_layers=(1,), knn_memory=10, knn_top=10),
}  # fmt: skip


def close(got, want, why=""):
  """Equal up to float32 rounding, which in a sum is relative to its largest terms."""
  got, want = np.float32(got), np.float32(want)
  scale = max(1.0, np.abs(want).max(initial=0))
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * scale, err_msg=why)


class System:
  """A memory system in one layer, with random parameters.

  A jitted function takes `arrays` and binds them, so that its compiled program has no random array
  in it and is found again in the next run.
  """

  def __init__(self, rng, options):
    self.config = model_config(**SIZES, **options)
    self.graph, state = nnx.split(MIXERS[self.config.mixer](self.config, nnx.Rngs(0)))
    fan_in = lambda x: x.shape[0] if x.ndim > 1 else 1
    draw = lambda x: jnp.float32(rng.standard_normal(x.shape) / fan_in(x) ** 0.5)
    weights = [jnp.float32(rng.standard_normal((D, n, E)) / D**0.5) for n in (H, K, K)]
    self.arrays = jax.tree.map(draw, state), weights

  def bind(self, arrays):
    state, weights = arrays
    return Layer(nnx.merge(self.graph, state), weights)


class Layer(NamedTuple):
  """The mixer of a `System`, and what makes queries, keys and values."""

  mixer: Mixer
  weights: list[jax.Array]

  def plain(self, *args):
    """The definition: where it is called and not a faster form, Mixer's own functions are."""
    return Mixer.__call__(self.mixer, *args)

  def tokens(self, x):
    def project(x, *, frozen=False):
      return tuple(jnp.einsum("btd,dke->btke", x, w) for w in self.weights[1:])

    return Tokens(jnp.einsum("btd,dhe->bthe", x, self.weights[0]), *project(x), x, project)


SLOW = {"infini-linear": [pytest.mark.slow]}  # `infini-delta` has more forms of its own


@pytest.fixture(params=[pytest.param(name, marks=SLOW.get(name, ())) for name in CASES])
def system(rng, request):
  return System(rng, CASES[request.param])


def flags(rng):
  """Resets, and documents that end inside a segment."""
  reset = np.array([[True, False, False, True], [False, False, True, False]])
  mask = np.ones((B, T), bool)
  mask[0, 3 * N - 1], mask[1, T - 2 :] = False, False
  return array(reset), array(mask)


@pytest.mark.parametrize("cut", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_form_of_a_chunk_is_read_and_write_in_turn(rng, system, cut):
  x = jnp.float32(rng.standard_normal((B, T, D)))
  reset, mask = flags(rng)
  real = jnp.float32(mask)[..., None, None]
  weight = jnp.float32(rng.standard_normal((B, T, H, E))) * real

  def graded(form):
    def loss(x, arrays, weight):
      layer = system.bind(arrays)
      chunk = Chunk(reset, mask, cut=jnp.array(cut))
      out, state = form(layer)(layer.tokens(x), chunk, layer.mixer.state(B))
      return (out * weight).sum(), (out * real, state)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(x, system.arrays, weight)

  (_, (want, want_state)), want_grad = graded(lambda layer: layer.plain)
  (_, (got, state)), grad = graded(lambda layer: layer.mixer)
  close(got, want, "the output differs from read()")
  np.testing.assert_allclose(grad, want_grad, rtol=1e-3, atol=1e-4, err_msg="gradient of x")
  if hasattr(state, "loss_B"):  # a chunk alone measures how well the last segment was compressed
    state, want_state = (s._replace(loss_B=jnp.zeros(B)) for s in (state, want_state))
  jax.tree.map(lambda a, b: close(a, b, "the state differs from write()"), state, want_state)


def test_read_and_write_in_turn_are_the_same_on_a_mesh(rng):
  """A new system needs no form of its own to be trained on several devices."""
  system = System(rng, CASES["transformer_xl"])
  x = jnp.float32(rng.standard_normal((B, T, D)))
  reset, mask = flags(rng)

  def call(x, arrays, reset, mask):
    state, weights = arrays
    layer = system.bind((state, [shard(w, "_H_") for w in weights]))
    tokens = layer.tokens(shard(x, "BT_"))
    return layer.plain(tokens, Chunk(reset, mask), layer.mixer.state(B))

  want = jax.jit(call)(x, system.arrays, reset, mask)
  with jax.set_mesh(make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4])):
    got = jax.jit(call)(x, system.arrays, reset, mask)
  real = np.float32(mask)[..., None, None]
  close(got[0] * real, want[0] * real)
  jax.tree.map(close, got[1], want[1])


@pytest.mark.parametrize(
  "pieces",
  [pytest.param([1] * T, marks=pytest.mark.slow, id="tokens"), [3, 1, 1, 3, 3, 1, 1, 3]],
  ids=lambda _: "pieces",
)
def test_the_extension_is_read_and_write_in_turn(rng, system, pieces):
  x = jnp.float32(rng.standard_normal((B, T, D)))

  @jax.jit
  def whole(x, arrays):
    layer = system.bind(arrays)
    return layer.plain(layer.tokens(x), Chunk(), layer.mixer.state(B))

  @jax.jit
  def extend(x, arrays, stream):
    layer, chunk = system.bind(arrays), Chunk(mask_BT=jnp.ones(x.shape[:2], bool), extends=True)
    return layer.mixer.extend(layer.tokens(x), chunk, stream)

  want, state = whole(x, system.arrays)
  mixer = system.bind(system.arrays).mixer
  stream, outs, start = mixer.open(mixer.state(B), B, jnp.float32), [], 0
  for size in pieces:
    out, stream = extend(x[:, start : start + size], system.arrays, stream)
    outs.append(out)
    start += size
  close(np.concatenate(outs, 1), want)
  jax.tree.map(close, mixer.close(stream), state)


def test_a_segment_is_written_once_and_only_when_it_is_full(rng):
  """The compression of a segment costs nothing at the tokens between."""
  written = []

  class Counted(Mixer):
    def state(self, lanes, layer=0):
      return jnp.zeros((lanes,))

    def read(self, tokens, position_BT, segment, state, chunk):
      return tokens.q_BTHE

    def write(self, segment, state):
      jax.debug.callback(lambda fill: written.append(fill.tolist()), segment.fill_B)
      return state + 1

  config = model_config(**SIZES)
  mixer = Counted(config, nnx.Rngs(0))
  stream = Stream(jnp.zeros((B,)), empty_segment(config, B, jnp.float32))
  one = jnp.zeros((B, 1, H, E)), *(jnp.zeros((B, 1, K, E)),) * 2, jnp.zeros((B, 1, D))
  lanes = jnp.array([True, True]), jnp.array([True, False])
  extend = jax.jit(
    lambda stream, lane_B: mixer.extend(
      Tokens(*one, None), Chunk(mask_BT=lane_B[:, None], extends=True), stream
    )[1]
  )
  for both in [0, 0, 1, 0, 0, 0]:  # the first lane is full after 4, the second after 5 tokens
    stream = extend(stream, lanes[both])
  jax.effects_barrier()
  assert written == [[N, N - 1], [2, N]] or written == [[N, N - 1], [1, N]], written
  assert stream.state.tolist() == [1, 1]
  assert isinstance(stream.cache, Segment) and stream.cache.fill_B.tolist() == [2, 1]
