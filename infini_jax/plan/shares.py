"""What one chip has of a training step: its share of every array, by the mesh's own tables."""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from infini_jax.config import Config, InputError
from infini_jax.ops.attention import BLOCK_ROWS
from infini_jax.ops.kernels import LANE, SPLASH_BLOCK, choose
from infini_jax.ops.loss import divides_vocabulary
from infini_jax.parallel.mesh import AXES, COMPUTE, STORAGE, axes_of
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import TrainState, abstract_state


@dataclasses.dataclass(frozen=True)
class Shares:
  """The sizes of one microbatch on one chip, by the glossary's letters.

  Attributes:
    lanes, segments, tokens: B, S, and all tokens B*T.
    heads, kv_heads, ffn, vocab: H, K, F, V.
    head_rows: V of the head while the loss is computed: where T is divided, it may be too.
    stored: chips over which D of a parameter lies divided; the parameter is gathered from them.
    copies: chips that hold the same part of a parameter and have other tokens.
    tensor, seq: chips along those axes.
    compute: bytes of a number in compute_dtype.
    kernel: of the local attention.
    block: rows of its blocks.
  """

  lanes: int
  segments: int
  tokens: int
  heads: int
  kv_heads: int
  ffn: int
  vocab: int
  head_rows: int
  stored: int
  copies: int
  tensor: int
  seq: int
  compute: int
  kernel: str
  block: int


def shares(config: Config, sizes: dict[str, int], platform: str) -> Shares:
  """The shares of `config` on a mesh of these sizes."""
  m, d = config.model, config.data
  parts = lambda table, letter: math.prod(sizes[axis] for axis in axes_of(table, letter))
  tokened = {*axes_of(COMPUTE, "B"), *axes_of(COMPUTE, "T")}
  lanes = d.lanes // config.train.accumulate // parts(COMPUTE, "B")
  segments = d.segments // parts(COMPUTE, "S")
  tensor = parts(COMPUTE, "H")
  kernel, block = _kernel(config, platform)
  vocab, seq = m.vocab_size // parts(COMPUTE, "V"), parts(COMPUTE, "T")
  T = d.segments * m.segment_length
  divided = divides_vocabulary(T, m.vocab_size, seq, seq * parts(COMPUTE, "V"))
  return Shares(
    lanes=lanes,
    segments=segments,
    tokens=lanes * segments * m.segment_length,
    heads=m.heads // tensor,
    kv_heads=m.kv_heads // tensor,
    ffn=m.ffn // parts(COMPUTE, "F"),
    vocab=vocab,
    head_rows=vocab // seq if divided else vocab,
    stored=parts(STORAGE, "D"),
    copies=math.prod(sizes[axis] for axis in tokened - {*axes_of(STORAGE, "D")}),
    tensor=tensor,
    seq=seq,
    compute=2 if m.run.compute_dtype == "bfloat16" else 4,
    kernel=kernel,
    block=block,
  )


def abstract_mesh(sizes: dict[str, int]) -> AbstractMesh:
  """A mesh of these sizes without any devices."""
  explicit = (AxisType.Explicit,) * len(AXES)
  return AbstractMesh(tuple(sizes[axis] for axis in AXES), AXES, axis_types=explicit)


def laid_out(config: Config, sizes: dict[str, int]) -> TrainState:
  """Shapes, types and shardings of the whole train state."""
  mesh = abstract_mesh(sizes)
  with jax.sharding.use_abstract_mesh(mesh):
    return abstract_state(config, make_optimizer(config), mesh)


def chip_bytes(tree: Any) -> int:
  """Bytes that one chip holds of abstract arrays with shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def spec_text(spec: PartitionSpec) -> str:
  """A sharding in a few letters: '-,fsdp+seq,tensor'."""
  return ",".join("-" if p is None else p if isinstance(p, str) else "+".join(p) for p in spec)


def _kernel(config: Config, platform: str) -> tuple[str, int]:
  """The kernel that `attention` chooses there, and the rows of its blocks."""
  m = config.model
  sizes = (m.segment_length, m.head_dim, m.head_dim)
  try:
    dtype = jax.numpy.dtype(m.run.compute_dtype)
    kernel = choose(m.run.attention, platform, *sizes, dtype, m.family.attention_softcap)
  except ValueError as error:
    raise InputError(f"config.run.{error}") from None
  if not m.memory.kernels and kernel != "reference":
    kernel = "xla"  # it attends to more than a segment, which the kernels of segments do not
  blocks = {"splash": SPLASH_BLOCK, "cudnn": LANE, "xla": BLOCK_ROWS}
  return kernel, min(m.segment_length, blocks.get(kernel, m.segment_length))
