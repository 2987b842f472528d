"""The memory path as kernels: read and mix, write, what delta recalls; each in one pass.

In plain JAX the products of the memory go to and from HBM in float32. A kernel reads queries, keys
and values once, in their own type, computes in float32 on the chip, and writes its result once. All
of it is Pallas: for TPUs compiled by Mosaic, for NVIDIA GPUs by Triton. `ops.memory` has the same
functions in plain JAX; `ops.infini` chooses.

Arrays have segments S of N tokens each and heads: H, or K key/value heads of G query heads. The
order of these axes is the caller's: `order` is the letters of a token array, such as "BHSNE" for
heads first. The last axis is always E or U. Float32 inputs are multiplied in float32; others as the
platform multiplies them.
"""

from infini_jax.ops.memory_kernels.blocks import why_not
from infini_jax.ops.memory_kernels.read import read
from infini_jax.ops.memory_kernels.rotate import rotate, rotate_only
from infini_jax.ops.memory_kernels.write import erase, write

__all__ = ["erase", "read", "rotate", "rotate_only", "why_not", "write"]
