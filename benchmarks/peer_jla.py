"""The peer `gla` of `peer.py`: gated linear attention of jax-linear-attention, in its own process.

    python benchmarks/peer_jla.py SHAPE      SHAPE is JSON; see `peer.py`

It is the nearest thing to a segment memory in that package: a state of constant size for each head,
here in its chunked form without convolutions and low-rank gates of 16. It needs an interpreter with
jax-linear-attention (Python 3.12), and prints what `peer_torch.py` prints.
"""

import json
import resource
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
from jla.models import AttentionConfig, LinearAttentionConfig, ModelConfig, build_model


def main() -> None:
  """Takes a step for each line that it reads."""
  shape = json.loads(sys.argv[1])
  heads, size = shape["heads"], shape["head_dim"]
  config = ModelConfig(
    vocab_size=shape["vocab"],
    d_model=shape["width"],
    n_layers=shape["layers"],
    d_ff=shape["ffn"],
    attention=AttentionConfig(num_heads=heads, num_kv_heads=heads, head_dim=size),
    linear_attention=LinearAttentionConfig(
      num_k_heads=heads,
      num_v_heads=heads,
      head_k_dim=size,
      head_v_dim=size,
      conv_size=0,
      qk_l2norm=False,
      gate_low_rank_dim=16,
      implementation="chunked",
    ),
    layer_types=("gla",) * shape["layers"],
    tie_embeddings=False,
    compute_dtype="float32",
    remat="none",
  )
  params, static = eqx.partition(build_model(config, key=jax.random.key(0)), eqx.is_inexact_array)
  text = jax.random.randint(
    jax.random.key(1), (shape["lanes"], shape["tokens"] + 1), 0, shape["vocab"]
  )

  def loss(params):
    model = eqx.combine(params, static)
    logits = model.logits(model(text[:, :-1], inference=True).hidden)
    target = jnp.take_along_axis(logits, text[:, 1:, None], -1)[..., 0]
    return (jax.nn.logsumexp(logits, -1) - target).mean()

  step = jax.jit(jax.value_and_grad(loss))
  print(sum(x.size for x in jax.tree.leaves(params)), f"jax {jax.__version__}", flush=True)
  for _ in sys.stdin:
    began, used = time.perf_counter(), time.process_time()
    jax.block_until_ready(step(params))
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    print(seconds, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)


if __name__ == "__main__":
  main()
