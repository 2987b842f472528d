"""The vendors' attention kernels behind one name, for causal attention inside segments.

Segments are independent, so they are stacked on the batch dimension, and a kernel computes causal
squares of N x N. Each function here takes the arrays of one device, with any padding last in its
segment. `scale` and `softcap` are those of `attention.Scoring`. `why_not` says why a kernel
cannot do it, in words.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MULTIPLE = 128  # of a TPU's vector registers: splash works in multiples of it
SPLASH_BLOCK = 1024  # rows and columns of a block of scores, at most
SPLASH_BYTES = 2**19  # of such a block of queries, keys or values, at most: all are on the chip


def platform() -> str:
  """The platform of the mesh, which may be absent from this machine; without a mesh the default."""
  mesh = jax.sharding.get_abstract_mesh()
  device = None if mesh.empty else mesh.abstract_device
  return jax.default_backend() if device is None else device.platform


def why_not(
  kernel: str, on: str, N: int, E: int, U: int, dtype: jnp.dtype, softcap: float = 0.0
) -> str | None:
  """The reason why `splash` or `cudnn` cannot be used here; None if it can.

  Args:
    kernel: its name.
    on: the platform, 'cpu', 'gpu' or 'tpu'.
    N, E, U: tokens of a segment, sizes of a key and a value.
    dtype: of queries, keys and values.
    softcap: of the scores; 0: none.
  """
  if kernel == "splash":
    if on != "tpu":
      return f"it needs a TPU, and this is a {on.upper()}"
    if N % MULTIPLE:
      return f"{N} tokens of a segment are not a multiple of {MULTIPLE}"
    if E % MULTIPLE or U % MULTIPLE:
      return f"head sizes {E} and {U} are not both multiples of {MULTIPLE}"
  else:
    if on not in ("gpu", "cuda"):
      return f"it needs an NVIDIA GPU, and this is a {on.upper()}"
    if dtype not in (jnp.bfloat16, jnp.float16):
      return f"it takes bfloat16 and float16, and this is {dtype}: set run.compute_dtype"
    if E % 8 or U != E or E > 256:
      return f"heads of {E} and {U}: it takes equal ones, a multiple of 8 up to 256"
    if softcap:
      return f"it cannot cap scores, and family.attention_softcap is {softcap}"
  return None


def choose(
  kernel: str, on: str, N: int, E: int, U: int, dtype: jnp.dtype, softcap: float = 0.0
) -> str:
  """The kernel of a name; arguments as of `why_not`.

  Raises:
    ValueError: an unknown name, or a kernel that cannot do it, and why.
  """
  ask = lambda name: why_not(name, on, N, E, U, dtype, softcap)
  if kernel == "auto":
    return next((name for name in ("splash", "cudnn") if ask(name) is None), "xla")
  if kernel in ("splash", "cudnn") and (reason := ask(kernel)):
    raise ValueError(f"attention={kernel!r}: {reason}; choose 'auto' or 'xla'")
  if kernel not in ("xla", "reference", "splash", "cudnn"):
    raise ValueError(
      f"attention={kernel!r}: choose 'auto', 'reference', 'xla', 'splash' or 'cudnn'"
    )
  return kernel


def splash(
  q_BNHE: Float[Array, "B N H E"],
  k_BNKE: Float[Array, "B N K E"],
  v_BNKU: Float[Array, "B N K U"],
  scale: float,
  softcap: float = 0.0,
  *,
  interpret: bool = False,
) -> Float[Array, "B N H U"]:
  """Pallas' splash attention for TPUs."""
  q_BNHE = q_BNHE * jnp.asarray(scale, q_BNHE.dtype)
  q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q_BNHE, k_BNKE, v_BNKU))
  return jnp.moveaxis(splash_heads(q, k, v, softcap, interpret=interpret), 1, 2)


def splash_heads(
  q_BHNE: Float[Array, "B H N E"],
  k_BKNE: Float[Array, "B K N E"],
  v_BKNU: Float[Array, "B K N U"],
  softcap: float = 0.0,
  *,
  interpret: bool = False,
) -> Float[Array, "B H N U"]:
  """`splash` with heads first, as its kernel takes them; segments may be among the heads.

  The queries are scaled already. Padding that comes last needs no mask: no token before it sees it.
  """
  from jax.experimental.pallas.ops.tpu import splash_attention as pallas  # slow to import

  H, N = q_BHNE.shape[1:3]
  wide = max(x.shape[-1] * x.dtype.itemsize for x in (q_BHNE, k_BKNE, v_BKNU))
  most = max(MULTIPLE, min(N, SPLASH_BLOCK, SPLASH_BYTES // wide))
  block = max(b for b in range(MULTIPLE, most + 1, MULTIPLE) if N % b == 0)
  sizes = pallas.BlockSizes(
    block_q=block,
    block_kv=block,
    block_kv_compute=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=block,
    use_fused_bwd_kernel=True,
  )
  kernel = pallas.make_splash_mha_single_device(
    pallas.MultiHeadMask([pallas.CausalMask((N, N))] * H),
    block_sizes=sizes,
    attn_logits_soft_cap=softcap or None,
    interpret=interpret,
  )

  return jax.vmap(kernel)(q_BHNE, k_BKNE, v_BKNU)


def cudnn(
  q_BNHE: Float[Array, "B N H E"],
  k_BNKE: Float[Array, "B N K E"],
  v_BNKU: Float[Array, "B N K U"],
  mask_BN: Bool[Array, "B N"] | None,
  scale: float,
) -> Float[Array, "B N H U"]:
  """cuDNN's flash attention, through JAX; real tokens come first in a segment, padding after."""
  length_B = None if mask_BN is None else mask_BN.sum(1, dtype=jnp.int32)
  return jax.nn.dot_product_attention(
    q_BNHE,
    k_BNKE,
    v_BNKU,
    scale=scale,
    is_causal=True,
    query_seq_lengths=length_B,
    key_value_seq_lengths=length_B,
    implementation="cudnn",
  )
