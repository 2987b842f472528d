"""FLOPs and parameters, compared with known figures."""

import pytest

from infini_jax.models import costs
from infini_jax.models.costs import forward_flops
from tests.tiny import changed, model_config, patterned

# Llama 3's dimensions, with separate head and embedding. The figures are
# `3 (2 weights + L H (N + 1) 2E + L 2E^2 (H + K))` at N = 2048, computed by hand.
LLAMA_8B = {
  **{"layers": 32, "width": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "ffn": 14336},
  **{"vocab_size": 128_256, "segment_length": 2048, "tied_embeddings": False},
}
LLAMA_1B = {**LLAMA_8B, "layers": 16, "width": 2048, "heads": 16, "ffn": 8192}


@pytest.mark.parametrize("sizes, flops", [(LLAMA_1B, 8.06e9), (LLAMA_8B, 4.68e10)])
def test_model_flops_of_known_models(sizes, flops):
  assert costs.flops_per_token(model_config(**sizes), 32_768) == pytest.approx(flops, rel=2e-3)


def test_strict_flops_by_hand():
  c = model_config(layers=2, width=16, heads=4, kv_heads=2, head_dim=8, ffn=32, vocab_size=32)
  weights = 2 * (16 * 8 * (4 + 2 + 2 + 4) + 3 * 16 * 32) + 32 * 16
  attention, memory = 2 * 4 * (8 + 1) * (8 + 8), 2 * 2 * 8 * 8 * (4 + 2)
  assert costs.flops_per_token(c, 64) == 3 * (2 * weights + attention + memory)
  assert costs.flops_per_token(changed(c, rule="delta"), 64) == 3 * (
    2 * weights + attention + 2 * 2 * 8 * 8 * (4 + 2 + 2)
  )


def test_frozen_weights_have_no_gradient_to_compute():
  c = model_config(layers=2, width=16, heads=4, kv_heads=2, head_dim=8, ffn=32, vocab_size=32)
  projections, ffn, head = 2 * 2 * 16 * 8 * (4 + 2 + 2 + 4), 2 * 2 * 3 * 16 * 32, 2 * 32 * 16
  saved = lambda c, part: costs.flops_per_token(c, 64) - costs.flops_per_token(c, 64, part)
  assert saved(c, "all") == 0
  assert saved(c, "attention") == ffn + head
  assert saved(c, "gates") == saved(c, "lora") == projections + ffn + head
  adapted = changed(c, lora_rank=3)
  assert saved(adapted, "lora") == saved(c, "lora"), "adapters are trained themselves"
  added = costs.flops_per_token(adapted, 64) - costs.flops_per_token(c, 64)
  assert added == 3 * 2 * 2 * 3 * ((16 + 32) * 2 + (16 + 16) * 2)
  executed = lambda part: costs.executed_flops_per_token(c, 64, part, block=64, head_again=True)
  assert executed("all") - executed("attention") == ffn + head


def test_only_full_attention_grows_with_t():
  c = model_config()
  assert costs.flops_per_token(c, 64) == costs.flops_per_token(c, 6400)
  full = changed(c, mixer="full")
  assert costs.flops_per_token(full, 6400) > costs.flops_per_token(full, 64)


def test_a_pattern_is_the_sum_of_its_layers():
  whole = forward_flops(patterned(("infini", "full", "compressive", "local"), 8), 64)
  parts = [forward_flops(model_config(mixer=name, layers=2), 64)
           for name in ("infini", "full", "compressive", "local")]  # fmt: skip
  for name in ("weights", "attention", "memory"):
    assert whole[name] == pytest.approx(sum(part[name] for part in parts)), name
  assert whole["head"] == parts[0]["head"]
  wide = {"window": 8, "global_every": 4}  # the global layers are the last of each four: local
  windowed = forward_flops(patterned(("infini", "infini", "infini", "full"), 8, **wide), 64)
  other = forward_flops(patterned(("full", "infini", "infini", "infini"), 8, **wide), 64)
  assert windowed["attention"] > other["attention"]


def test_a_window_bounds_what_a_layer_attends_to():
  """4 layers: every second layer attends to all 64 tokens; the others to 8, fewer at the start."""
  full = model_config(mixer="full", layers=4, window=8, global_every=2)
  seen = sum(t + 1 for t in range(64)), sum(min(t + 1, 8) for t in range(64))
  one = 4 * full.heads * full.head_dim
  assert forward_flops(full, 64)["attention"] == pytest.approx(one * 2 * sum(seen) / 64)
  everywhere = forward_flops(changed(full, global_every=0), 64)["attention"]
  assert everywhere == pytest.approx(one * 4 * seen[1] / 64)
  executed = {"block": 64, "head_again": False}
  assert costs.executed_flops_per_token(full, 64, **executed) == costs.executed_flops_per_token(
    changed(full, window=0, global_every=0), 64, **executed
  ), "what lies outside a window is masked, not skipped"


def test_gated_activations_cost_the_same():
  swiglu = forward_flops(model_config(), 64)
  assert swiglu == forward_flops(model_config(activation="geglu"), 64)
  assert swiglu["weights"] > forward_flops(model_config(activation="gelu"), 64)["weights"]


def test_costs_of_other_memories_beside_their_segment():
  c = model_config(layers=4, width=16, heads=4, kv_heads=2, head_dim=8)
  local = forward_flops(changed(c, mixer="local"), 64)
  assert local["memory"] == forward_flops(changed(c, mixer="full"), 64)["memory"] == 0
  one = 4 * 4 * 8  # FLOPs of a key and its value, all heads
  xl = forward_flops(changed(c, mixer="transformer_xl"), 64)
  assert xl["memory"] == 4 * 8 * one and xl["attention"] == local["attention"]
  knn = changed(c, mixer="memorizing", knn_layers=(3,), knn_memory=100, knn_top=5)
  assert forward_flops(knn, 64)["memory"] == xl["memory"] + one / 2 * 100 + one * 5
  old = changed(c, mixer="compressive", compression_rate=4, compressed_memory=12)
  pooled = changed(old, compression="mean")
  projected = 2 * 16 * (2 * 2 * 8) * 1.25
  assert forward_flops(pooled, 64)["memory"] == 4 * ((8 + 12) * one + projected)
  assert forward_flops(old, 64)["memory"] == forward_flops(pooled, 64)["memory"] + 4 * 2 * 16**2


@pytest.mark.parametrize("mixer, prefix", [("rmt", 3), ("autocompressor", 6)])
def test_summaries_go_through_all_layers(mixer, prefix):
  """A segment of 8 costs as much as a causal sequence of prefix, 8 tokens and 3 summaries."""
  c = model_config(mixer=mixer, segment_length=8, summary_tokens=3, summary_steps=2)
  whole = prefix + 8 + 3
  parts = forward_flops(c, 64)
  alone = forward_flops(changed(c, mixer="local", segment_length=whole), whole)
  expected = whole * (alone["weights"] + alone["attention"])
  found = 8 * (parts["weights"] + parts["attention"] + parts["memory"])
  assert found == pytest.approx(expected)


def test_what_is_executed_is_more_and_remat_costs_most():
  c = model_config(**LLAMA_8B)
  executed = {
    remat: costs.executed_flops_per_token(
      changed(c, remat=remat), 32_768, block=512, head_again=True
    )
    for remat in ("none", "dots", "full")
  }
  strict = costs.flops_per_token(c, 32_768)
  assert strict < executed["none"] < executed["dots"] < executed["full"]
  parts = forward_flops(c, 32_768)
  assert executed["full"] - executed["dots"] == pytest.approx(parts["weights"])
