"""How arrays are cut into programs of a kernel, and what kernels have in common."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

MULTIPLE = 128  # of a TPU's vector registers
TOKENS = 2048  # of one program of a kernel, at most: all its blocks are on the chip together
BLOCK = 2**20  # bytes of a block of tokens, at most: of float32 heads of 256 it has 1,024 tokens
TPU_HEADS = MULTIPLE, 2 * MULTIPLE  # sizes that tests compile
ROWS = {"tpu": 512, "gpu": 64}  # of these, tokens in a product


def why_not(on: str, N: int, E: int, U: int) -> str | None:
  """Why the kernels cannot do it; None if they can.

  Args:
    on: the platform, 'cpu', 'gpu' or 'tpu'; on a CPU they are interpreted, for tests.
    N, E, U: tokens of a segment, sizes of a key and a value.
  """
  if on == "cpu":
    return None
  if on in ("gpu", "cuda"):
    if N % 16 or E not in (64, 128) or U not in (64, 128):
      return f"segments of {N} and heads of {E}: they take a multiple of 16, and 64 or 128"
  elif N % MULTIPLE or not {E, U} <= set(TPU_HEADS):
    sizes = " or ".join(map(str, TPU_HEADS))
    return (
      f"segments of {N} and heads of {E} and {U}: they take a multiple of {MULTIPLE}, and {sizes}"
    )
  return None


class Tile(NamedTuple):
  """How a kernel goes through its block."""

  rows: int  # tokens at a time
  on: str  # the platform
  exact: bool  # products of float32 numbers


class Shape:
  """How the arrays of one call are cut into programs: lanes, segments, heads, blocks of tokens."""

  def __init__(self, order: str, x: Array, on: str, *others: Array, G: int = 1):
    self.order, self.on = order, "gpu" if on in ("gpu", "cuda") else on
    self.exact = x.dtype == jnp.float32
    sizes = dict(zip(order, x.shape, strict=True))
    self.B, self.S, self.N = (sizes[letter] for letter in "BSN")
    self.H = sizes["H"] if "H" in sizes else sizes["K"] * sizes["G"]
    self.G = G  # query heads of each key/value head
    most = min(TOKENS, BLOCK // max(a.shape[-1] * a.dtype.itemsize for a in (x, *others)))
    if self.on == "gpu":  # Triton takes powers of two
      self.rows = min(self.N & -self.N, ROWS["gpu"])
    else:
      self.rows = largest(self.N, ROWS.get(self.on, MULTIPLE), MULTIPLE if self.on == "tpu" else 1)
    self.tokens = largest(self.N, max(most, self.rows), self.rows)
    self.blocks = self.N // self.tokens

  def token(self, size: int, order: str = "") -> pl.BlockSpec:
    """A block of tokens of one head, (tokens, size)."""
    letters, G = (order or self.order)[:-1], self.G
    blocks = tuple(self.tokens if letter == "N" else None for letter in letters)

    def index(b, s, h, n):
      at = {"B": b, "S": s, "H": h, "K": h // G, "G": h % G, "N": n}
      return (*(at[letter] for letter in letters), 0)

    return pl.BlockSpec((*blocks, size), index)

  def array(self, size: int, dtype, order: str = "") -> jax.ShapeDtypeStruct:
    """The array of such blocks."""
    sizes = {"B": self.B, "S": self.S, "H": self.H, "N": self.N}
    sizes |= {"K": self.H // self.G, "G": self.G}
    shape = tuple(sizes[letter] for letter in (order or self.order)[:-1])
    return jax.ShapeDtypeStruct((*shape, size), dtype)

  def state(self, rows: int, columns: int, group: int = 1) -> pl.BlockSpec:
    """A float32 matrix of one segment and head, of (B, S, H, rows, columns)."""
    index = lambda b, s, h, n: (b, s, h // group, 0, 0)
    return pl.BlockSpec((None, None, None, rows, columns), index)

  def count(self, heads: int) -> pl.BlockSpec:
    """A number for each token, of (B, S, 1 or H, 1, N)."""
    index = lambda b, s, h, n: (b, s, h if heads > 1 else 0, 0, n)
    return pl.BlockSpec((None, None, None, 1, self.tokens), index)

  def count_gradient(self) -> tuple[pl.BlockSpec, jax.ShapeDtypeStruct]:
    """A float32 number for each token and head."""
    whole = (self.B, self.S, self.H, 1, self.N)
    return self.count(self.H), jax.ShapeDtypeStruct(whole, jnp.float32)

  def sums(self, rows: int, columns: int) -> tuple[pl.BlockSpec, jax.ShapeDtypeStruct]:
    """A float32 matrix of each program."""
    index = lambda b, s, h, n: (b, s, h, n, 0, 0)
    whole = (self.B, self.S, self.H, self.blocks, rows, columns)
    spec = pl.BlockSpec((None, None, None, None, rows, columns), index)
    return spec, jax.ShapeDtypeStruct(whole, jnp.float32)

  def call(self, kernel, name: str, ins, outs, *args):
    """Runs a kernel over all programs.

    Args:
      kernel: called with references to `ins` and to `outs`, and a `Tile`.
      name: what profilers show.
      ins: a spec for each of `args`.
      outs: of each result, its spec and the array.
      args: the arrays.
    """
    specs, shapes = zip(*outs, strict=True)
    tile = Tile(self.rows, self.on, self.exact)

    def run(*refs):
      kernel(refs[: len(ins)], refs[len(ins) :], tile)

    return pl.pallas_call(
      run,
      grid=(self.B, self.S, self.H, self.blocks),
      in_specs=ins,
      out_specs=specs,
      out_shape=shapes,
      interpret=self.on == "cpu",
      name=name,
      compiler_params=_params(self.on),
    )(*args)


def _params(on: str):
  if on == "tpu":
    from jax.experimental.pallas import tpu as pltpu  # slow to import

    return pltpu.CompilerParams(dimension_semantics=("parallel",) * 4)
  if on == "gpu":
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=4, num_stages=2)
  return None


def largest(whole: int, most: int, of: int = 1) -> int:
  """The largest divisor of `whole` that is a multiple of `of`, and at most `most`."""
  return max(size for size in range(of, min(whole, most) + 1, of) if whole % size == 0)


def slope(x: Array) -> Array:
  """The derivative of `sigma`."""
  return jnp.exp(jnp.minimum(x.astype(jnp.float32), 0))


def dot(a: Array, b: Array, over: tuple[int, int], tile: Tile) -> Array:
  """A float32 product of two matrices over these dimensions."""
  if tile.on == "tpu" and not tile.exact:  # a TPU rounds float32 factors so by default
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
  precision = jax.lax.Precision.HIGHEST if tile.exact else jax.lax.Precision.DEFAULT
  dimensions = (((over[0],), (over[1],)), ((), ()))
  return jax.lax.dot_general(
    a, b, dimensions, precision=precision, preferred_element_type=jnp.float32
  )


def each(ref, tile: Tile, step: Callable, start):
  """`step(slice, sums)` over the tokens of a block, so many at a time."""

  def body(i, sums):
    return step(pl.ds(pl.multiple_of(i * tile.rows, tile.rows), tile.rows), sums)

  return jax.lax.fori_loop(0, ref.shape[0] // tile.rows, body, start)


def column(ref, at) -> Array:
  """Numbers (1, tokens) of these tokens as a column."""
  return ref[:, at].reshape(-1, 1)


def inverse_of(weight: Array) -> Array:
  """1 / weight; 0 where it is 0."""
  return jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1.0), 0.0)


def zeros(*shape: int) -> Array:
  """Float32 zeros."""
  return jnp.zeros(shape, jnp.float32)
