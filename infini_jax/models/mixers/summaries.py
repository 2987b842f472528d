"""Systems whose memory is summary embeddings, passed from segment to segment outside of the layers.

RMT (Bulatov et al., arXiv 2207.06881): P memory embeddings are before a segment and after it. The
outputs of those after it in the last layer are the memory of the next segment.

AutoCompressors (Chevalier et al., arXiv 2305.14788): P learned embeddings follow each segment.
Their outputs in the last layer are its summary. The summaries of the last `summary_steps` segments
precede the next segment. The gradient goes back through two segments. In training, segments end at
random.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from infini_jax.config import ModelConfig
from infini_jax.models.mixers import MIXERS
from infini_jax.models.mixers.base import Chunk, Stream
from infini_jax.models.transformer import REMAT, Transformer, matrix
from infini_jax.ops.attention import to_segments
from infini_jax.ops.lanes import where_lane
from infini_jax.ops.shards import on_shards
from infini_jax.parallel import shard, zeros
from infini_jax.parallel.mesh import COMPUTE

BY_LANE = {"B": COMPUTE["B"]}


class Summaries(NamedTuple):
  """A summaries of each lane, the newest last, and which of them are there. The first dimension is
  1 and not L, because all layers use the same ones."""

  x_1BAI: jax.Array
  seen_1BA: jax.Array


class SummaryStream(NamedTuple):
  """The summaries before the open segment, and each layer's keys and values of it."""

  summaries: Summaries
  layers: Stream


class SummaryTransformer(Transformer):
  """One segment after the other, each through all layers."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    super().__init__(config, rngs)
    # RMT: the first memory. AutoCompressors: what follows every segment.
    self.summary_PD = matrix(
      rngs, (config.memory.summary_tokens, config.width), config.init_width, config
    )

  def state(self, lanes: int) -> Summaries:
    """No summary yet."""
    A = self.config.memory.prefix_length
    shape = (1, lanes, A, self.config.width)
    dtype = jnp.dtype(self.config.run.compute_dtype)
    return Summaries(zeros(shape, "_BAI", dtype), zeros(shape[:3], "_BA", bool))

  def __call__(  # type: ignore[override]
    self,
    tokens_BT,
    state,
    *,
    reset_BS=None,
    mask_BT=None,
    times_BT=None,
    cut_L=None,
    shift_BS=None,
    state_only=False,
  ):
    """A chunk of whole segments. `cut_L` is for all layers or none. A state is not a sum over
    tokens, so the config refuses what makes `times_BT`.

    The state is made by the last layer, so `state_only` saves nothing.

    With `shift_BS`, of `random_borders`, segments begin so many tokens later than they would.
    """
    c = self.config
    (B, T), N = tokens_BT.shape, c.segment_length
    S = -(-T // N)
    mask_BT = jnp.ones((B, T), bool) if mask_BT is None else mask_BT
    reset_BS = jnp.zeros((B, S), bool) if reset_BS is None else reset_BS
    if cut_L is not None:
      reset_BS |= cut_L.all()
    if shift_BS is not None:
      N += 2 * _reach(c)  # room for the longest
      cut = partial(_cut, length=c.segment_length, N=N)
      rows = {"tokens_BT": tokens_BT, "mask_BT": mask_BT, "shift_BS": shift_BS}
      tokens_BT, mask_BT, slot_BT = on_shards(cut, BY_LANE, ("BT", "BT", "BT"), **rows)
    x_BTD = shard(self.embed(tokens_BT), "B__")
    split = lambda x_BT: jnp.moveaxis(to_segments(x_BT, N), 1, 0)
    mixer: Any = MIXERS[c.mixer]

    def segment(summaries, xs):
      x_BND, mask_BN, reset_B, s = xs
      x_1BAI, seen_1BA = summaries
      x_1BAI = mixer.carried(x_1BAI, s)
      summaries = Summaries(x_1BAI, seen_1BA & ~reset_B[None, :, None])
      before_BAD, seen_BA, behind_BPD = self._around(summaries)
      whole_BTD = jnp.concatenate([before_BAD, x_BND, behind_BPD], 1)
      behind_BP = jnp.ones_like(behind_BPD[..., 0], bool)
      real_BT = jnp.concatenate([seen_BA, mask_BN, behind_BP], 1)
      hidden_BTD = self._through(whole_BTD, real_BT)[0]
      A = before_BAD.shape[1]
      return self._after(summaries, hidden_BTD[:, A + N :]), hidden_BTD[:, A : A + N]

    if c.run.remat != "none":
      segment = jax.checkpoint(segment, prevent_cse=False)
    xs = (split(x_BTD), split(shard(mask_BT, "B_")), shard(reset_BS, "B_").T, jnp.arange(S))
    state, hidden_SBND = jax.lax.scan(segment, state, xs)
    hidden_BTD = jnp.moveaxis(hidden_SBND, 0, 1).reshape(B, S * N, -1)
    if shift_BS is not None:
      pick = lambda x_BTD, slot_BT: jnp.take_along_axis(x_BTD, slot_BT[..., None], 1)
      rows = {"x_BTD": hidden_BTD, "slot_BT": slot_BT}
      hidden_BTD = on_shards(pick, BY_LANE, "BTD", **rows)
    return self.for_head(shard(hidden_BTD[:, :T], "BTD")), state

  def open(self, state: Summaries, lanes: int) -> SummaryStream:
    """The summaries go through all layers: their keys and values precede the open segment."""
    before_BAD, seen_BA, _ = self._around(state)
    prefix = self._through(before_BAD, seen_BA)[1]
    mixer, dtype = self._mixer(), jnp.dtype(self.config.run.compute_dtype)
    return SummaryStream(state, jax.vmap(lambda s: mixer.open(s, lanes, dtype))(prefix))

  def close(self, stream: SummaryStream) -> Summaries:
    """The summaries, where no lane has a token in its open segment."""
    return stream.summaries

  def extend(self, tokens_BT, stream, mask_BT):  # type: ignore[override]
    """A few tokens of each lane's open segment; where one is full, it is summed up."""
    x_BTD = self.embed(tokens_BT)
    hidden_BTD, layers = self._behind(x_BTD, stream.layers, mask_BT)
    stream = SummaryStream(stream.summaries, layers)
    full_B = layers.cache.fill_B[0] == self.config.segment_length
    hidden_BTD = self.for_head(hidden_BTD)
    return hidden_BTD, jax.lax.cond(full_B.any(), self._close, lambda s, _: s, stream, full_B)

  def _close(self, stream, full_B):
    summaries, layers = stream
    behind_BPD = self._around(summaries)[2]
    real_BP = jnp.broadcast_to(full_B[:, None], behind_BPD.shape[:2])
    hidden_BPD, _ = self._behind(behind_BPD, layers, real_BP)
    after = self._after(summaries, hidden_BPD)
    before_BAD, seen_BA, _ = self._around(after)
    prefix = self._through(before_BAD, seen_BA)[1]
    cache = layers.cache._replace(fill_B=where_lane(full_B, 0, layers.cache.fill_B, axis=1))
    layers = Stream(where_lane(full_B, prefix, layers.state, axis=1), cache)
    return SummaryStream(where_lane(full_B, after, summaries, axis=1), layers)

  def _around(self, summaries):
    """What precedes a segment, which of its tokens are there, and what follows the segment."""
    (x_BAI,), (seen_BA,) = summaries
    learned_PD = shard(self.summary_PD[...].astype(x_BAI.dtype), "__")
    B, P = x_BAI.shape[0], self.config.memory.summary_tokens
    learned_BPD = zeros((B, P, self.config.width), "BPI", x_BAI.dtype) + learned_PD[None]
    mixer: Any = MIXERS[self.config.mixer]
    return mixer.placed(x_BAI, seen_BA, learned_BPD)

  def _after(self, summaries, hidden_BPD):
    """The summaries after a segment: all are new, or the oldest are dropped."""
    new = Summaries(
      hidden_BPD[None], jnp.ones_like(summaries.seen_1BA[:, :, : hidden_BPD.shape[1]])
    )
    P = hidden_BPD.shape[1]
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y], 2)[:, :, P:], summaries, new)

  def _through(self, x_BTD, real_BT):
    """All layers over prefix and segment; the state is each layer's of the prefix."""
    chunk = Chunk(mask_BT=real_BT)
    return self._run_layers(x_BTD, (), chunk, REMAT[self.config.run.remat])

  def _behind(self, x_BTD, layers, real_BT):
    """All layers over a few tokens behind the prefix."""
    return self._run_layers(x_BTD, layers, Chunk(mask_BT=real_BT, extends=True), None)

  def _run_layers(self, x_BTD, state, chunk, policy):
    """T is never divided here: summaries and tokens are cut apart and joined."""
    hidden_BTD, state = self._layers(shard(x_BTD, "BTD"), state, chunk, policy)
    return shard(hidden_BTD, "B__"), state


def random_borders(
  config: ModelConfig, key: jax.Array, reset_BS: jax.Array, mask_BT: jax.Array
) -> jax.Array:
  """How many tokens later (or, below 0, earlier) each segment begins, drawn again for every batch.

  Lengths lie within (1 +- `segment_jitter`) N. The first segment of a chunk or of a document begins
  where it would, and so does one that is not full.
  """
  B, S = reset_BS.shape
  reach = _reach(config)
  shift_BS = shard(jax.random.randint(key, (B, S), -reach, reach + 1), "B_")
  full_BS = to_segments(shard(mask_BT, "B_"), config.segment_length).all(-1)
  moves_BS = full_BS & ~shard(reset_BS, "B_") & (jnp.arange(S) > 0)[None]
  return jnp.where(moves_BS, shift_BS, 0)


def _reach(config):
  return int(config.segment_length * config.memory.segment_jitter / 2)


def _cut(tokens_BT, mask_BT, shift_BS, *, length, N):
  """Segments with room for N tokens, each with what is between two borders; the slot of each token.

  Without a shift a border is after every `length` tokens.
  """
  (B, T), S = tokens_BT.shape, shift_BS.shape[1]
  start_BS = length * jnp.arange(S)[None] + shift_BS
  stop_BS = jnp.pad(start_BS[:, 1:], ((0, 0), (0, 1)), constant_values=T)
  from_BSN = start_BS[..., None] + jnp.arange(N)[None, None]
  inside_BT = (from_BSN < stop_BS[..., None]).reshape(B, -1)
  pick = lambda x: jnp.take_along_axis(x, jnp.minimum(from_BSN, T - 1).reshape(B, -1), 1)
  t_1T = jnp.arange(T)[None]
  s_BT = (t_1T[..., None] >= start_BS[:, None, 1:]).sum(-1)
  slot_BT = N * s_BT + t_1T - jnp.take_along_axis(start_BS, s_BT, 1)
  return pick(tokens_BT), pick(mask_BT) & inside_BT, slot_BT
