"""Settings that keep tests honest: eight CPU devices, strict types and ranks, checked shapes."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import jaxtyping
import numpy as np
import pytest
from absl import flags

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
flags.FLAGS.mark_as_parsed()

# Every annotated shape of the operations is checked while the tests run.
jaxtyping.install_import_hook("infini_jax.ops", "beartype.beartype")


@pytest.fixture
def rng(request):
  """Fresh random inputs on every run; a failure prints the seed."""
  seed = int(os.environ.get("INFINI_JAX_TEST_SEED", np.random.SeedSequence().entropy % 2**32))
  print(f"to repeat: INFINI_JAX_TEST_SEED={seed}")
  return np.random.default_rng(seed)
