"""Where arrays live: one mesh, and one table from the glossary's letters to its axes."""

from infini_jax.parallel.hosts import abstract_batch, local_rows, put_batch
from infini_jax.parallel.lookup import lookup
from infini_jax.parallel.mesh import (
  check_divisible,
  einsum,
  in_mesh,
  make_mesh,
  param_shardings,
  shard,
  use,
  zeros,
)

__all__ = [
  "abstract_batch",
  "check_divisible",
  "einsum",
  "in_mesh",
  "local_rows",
  "lookup",
  "make_mesh",
  "param_shardings",
  "put_batch",
  "shard",
  "use",
  "zeros",
]
