"""What one chip holds of every array of a training step."""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from infini_jax.config import Config, InputError, ModelConfig
from infini_jax.ops.attention import BLOCK_ROWS
from infini_jax.ops.kernels import MULTIPLE, SPLASH_BLOCK, choose
from infini_jax.ops.loss import divides_vocabulary
from infini_jax.parallel.mesh import AXES, COMPUTE, STORAGE, axes_of
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import TrainState, abstract_state


@dataclasses.dataclass(frozen=True)
class PerChip:
  """The sizes of one microbatch on one chip, in the glossary's letters.

  Attributes:
    lanes, segments, tokens: B, S, and all tokens B*T.
    heads, kv_heads, ffn, vocab: H, K, F, V.
    head_rows: V of the head while the loss is computed; it may be divided where T is divided.
    stored: chips that D of a stored parameter is divided over; it is gathered from them.
    copies: chips that hold the same shard of a parameter and read other tokens.
    tensor, seq: chips along the mesh axes `tensor` and `seq`.
    compute: bytes of a number of type `compute_dtype`.
    kernel: the kernel of local attention.
    block: query rows in one block of the kernel.
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


def per_chip(config: Config, sizes: dict[str, int], platform: str) -> PerChip:
  """The sizes on one chip of `config`, on a mesh with `sizes` devices along each axis.

  Raises:
    InputError: the kernel of `config.run.attention` cannot compute this model.
  """
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
  return PerChip(
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


def of_system(s: PerChip, own: ModelConfig) -> PerChip:
  """The sizes in the layers of one memory system: not every one has the kernel."""
  if own.memory.kernels or s.kernel == "reference":
    return s
  return dataclasses.replace(s, kernel="xla", block=min(own.segment_length, BLOCK_ROWS))


def abstract_mesh(sizes: dict[str, int]) -> AbstractMesh:
  """A mesh of these sizes without devices."""
  explicit = (AxisType.Explicit,) * len(AXES)
  return AbstractMesh(tuple(sizes[axis] for axis in AXES), AXES, axis_types=explicit)


def laid_out(config: Config, sizes: dict[str, int]) -> TrainState:
  """Shapes, types and shardings of the whole train state."""
  mesh = abstract_mesh(sizes)
  with jax.sharding.use_abstract_mesh(mesh):
    return abstract_state(config, make_optimizer(config), mesh)


def chip_bytes(tree: Any) -> int:
  """The bytes that one chip holds of a tree of abstract arrays with shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def spec_text(spec: PartitionSpec) -> str:
  """A sharding as a short text, such as '-,fsdp+seq,tensor'."""
  return ",".join("-" if p is None else p if isinstance(p, str) else "+".join(p) for p in spec)


def _kernel(config: Config, platform: str) -> tuple[str, int]:
  """The kernel that `config.run.attention` selects on the platform, and the rows of its blocks."""
  m = config.model
  sizes = (m.segment_length, m.head_dim, m.head_dim)
  try:
    dtype = jax.numpy.dtype(m.run.compute_dtype)
    kernel = choose(m.run.attention, platform, *sizes, dtype, m.family.attention_softcap)
  except ValueError as error:
    raise InputError(f"config.run.{error}") from None
  if not m.memory.kernels and kernel != "reference":
    kernel = "xla"  # the other kernels attend within one segment only
  blocks = {"splash": SPLASH_BLOCK, "cudnn": MULTIPLE, "xla": BLOCK_ROWS}
  return kernel, min(m.segment_length, blocks.get(kernel, m.segment_length))
