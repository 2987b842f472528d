"""Peak figures of chips, by JAX's names for them."""

import pytest

from infini_jax.parallel.chips import peak_flops


@pytest.mark.parametrize(
  "kind, peak",
  [("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("TPU v5", 459e12), ("TPU v6 lite", 918e12)]
  + [("TPU v4", 275e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H200", 989e12), ("cpu", None)],
)
def test_peaks_by_the_names_that_jax_gives(kind, peak):
  assert peak_flops(kind) == peak
