"""How arrays are divided over devices: one mesh, and one table from dimension letters to axes."""

from infini_jax.parallel.hosts import abstract_batch, local_rows, put_batch
from infini_jax.parallel.mesh import (
  check_divisible,
  in_mesh,
  make_mesh,
  param_shardings,
  shard,
  zeros,
)
from infini_jax.parallel.weights import lookup, product

__all__ = [
  "abstract_batch",
  "check_divisible",
  "in_mesh",
  "local_rows",
  "lookup",
  "make_mesh",
  "param_shardings",
  "product",
  "put_batch",
  "shard",
  "zeros",
]
