"""Which tensor of a Hugging Face folder or a GGUF file is which parameter, and its layout."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from infini_jax.config import ModelConfig
from infini_jax.models import param_shapes
from infini_jax.models.mixers.base import GATE

# By parameter: the tensor of a Hugging Face folder, and of a GGUF file. The name of the norm before
# the feed-forward depends on whether there is a norm after the attention.
NAMES = {
  "embed_VD": ("model.embed_tokens.weight", "token_embd.weight"),
  "head_VD": ("lm_head.weight", "output.weight"),
  "final_norm.scale_E": ("model.norm.weight", "output_norm.weight"),
  "blocks.attention_norm.scale_E": ("input_layernorm.weight", "attn_norm.weight"),
  "blocks.attention.w_q_DHE": ("self_attn.q_proj.weight", "attn_q.weight"),
  "blocks.attention.w_k_DKE": ("self_attn.k_proj.weight", "attn_k.weight"),
  "blocks.attention.w_v_DKE": ("self_attn.v_proj.weight", "attn_v.weight"),
  "blocks.attention.w_o_HED": ("self_attn.o_proj.weight", "attn_output.weight"),
  "blocks.attention.b_q_HE": ("self_attn.q_proj.bias", ""),
  "blocks.attention.b_k_KE": ("self_attn.k_proj.bias", ""),
  "blocks.attention.b_v_KE": ("self_attn.v_proj.bias", ""),
  "blocks.attention.q_norm.scale_E": ("self_attn.q_norm.weight", ""),
  "blocks.attention.k_norm.scale_E": ("self_attn.k_norm.weight", ""),
  "blocks.attention_post_norm.scale_E": ("post_attention_layernorm.weight", ""),
  "blocks.ffn_norm.scale_E": ("post_attention_layernorm.weight", "ffn_norm.weight"),
  "blocks.ffn_post_norm.scale_E": ("post_feedforward_layernorm.weight", ""),
  "blocks.ffn.w_gate_DF": ("mlp.gate_proj.weight", "ffn_gate.weight"),
  "blocks.ffn.w_up_DF": ("mlp.up_proj.weight", "ffn_up.weight"),
  "blocks.ffn.w_down_FD": ("mlp.down_proj.weight", "ffn_down.weight"),
}
PRE_FFN_NORM = "pre_feedforward_layernorm.weight"


class Entry(NamedTuple):
  """A parameter, and the tensors of its layers.

  Attributes:
    parameter: its path, joined by dots.
    shape: the shape of the parameter, or of one layer of it.
    layers: the length of its first dimension L; 0: it has no layers.
    huggingface: the name of its tensor, with {} for the number of the layer.
    gguf: the name of its tensor in a GGUF file.
  """

  parameter: str
  shape: tuple[int, ...]
  layers: int
  huggingface: str
  gguf: str

  @property
  def turned(self) -> bool:
    """Whether the tensor is the transpose: (out, in) where the parameter is (in, out)."""
    return ".w_" in self.parameter

  @property
  def tensor_shape(self) -> tuple[int, ...]:
    """The shape of its tensor."""
    if not self.turned:
      return self.shape if self.parameter[-3:] == "_VD" else (int(np.prod(self.shape)),)
    inputs = int(np.prod(self.shape[: self._inputs]))
    return (int(np.prod(self.shape)) // inputs, inputs)

  def from_tensor(self, tensor: np.ndarray) -> np.ndarray:
    """One layer of the parameter, of shape `shape`, from its tensor."""
    return (tensor.T if self.turned else tensor).reshape(self.shape)

  def to_tensor(self, layer: np.ndarray) -> np.ndarray:
    """The tensor, of shape `tensor_shape`, of one layer of the parameter."""
    if not self.turned:
      return layer.reshape(self.tensor_shape)
    return layer.reshape(self.tensor_shape[::-1]).T

  def names(self, pattern: str) -> Iterator[str]:
    """The names of the tensors of all layers, from the pattern `huggingface` or `gguf`."""
    return (pattern.format(layer) for layer in range(max(1, self.layers)))

  @property
  def _inputs(self) -> int:
    return 2 if self.parameter.endswith("_HED") else 1


def entries(model: ModelConfig) -> list[Entry]:
  """Every parameter for which a Hugging Face folder has a tensor."""
  found = []
  for parameter, shape in parameter_shapes(model).items():
    if parameter not in NAMES:
      continue
    huggingface, gguf = NAMES[parameter]
    layers = model.layers if parameter.startswith("blocks.") else 0
    if parameter == "blocks.ffn_norm.scale_E" and model.family.post_norms:
      huggingface = PRE_FFN_NORM
    if layers:
      huggingface, gguf, shape = f"model.layers.{{}}.{huggingface}", f"blk.{{}}.{gguf}", shape[1:]
    found.append(Entry(parameter, shape, layers, huggingface, gguf))
  return found


def gates(model: ModelConfig) -> str:
  """The path of the gates; empty: the model has none. Of the systems that can be exported, only one
  has gates."""
  for name, own in model.by_system.items():
    if own.memory.gated:
      return f"blocks.attention.mixer.{f'{name}.' if model.pattern else ''}{GATE}"
  return ""


def parameter_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
  """The shapes of all parameters, by their paths."""
  leaves = jax.tree_util.tree_leaves_with_path(param_shapes(model))
  return {".".join(key.key for key in path): leaf.shape for path, leaf in leaves}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
  """Converts a dict of paths joined by dots to nested dicts."""
  tree: dict[str, Any] = {}
  for path, value in flat.items():
    *parents, last = path.split(".")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  return tree
