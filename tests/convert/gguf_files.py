"""GGUF files with random weights, as llama.cpp's converter writes them."""

import numpy as np
import pytest
import tokenizers

gguf = pytest.importorskip("gguf", reason="pip install -e .[convert]")

SIZES = {"layers": 2, "width": 8, "heads": 4, "kv_heads": 2, "ffn": 12}
E = 8
NORMAL, CONTROL = int(gguf.TokenType.NORMAL), int(gguf.TokenType.CONTROL)
# How a value is written, by its type.
ADD = {
  str: gguf.GGUFWriter.add_string,
  int: gguf.GGUFWriter.add_uint32,
  bool: gguf.GGUFWriter.add_bool,
  float: gguf.GGUFWriter.add_float32,
  list: gguf.GGUFWriter.add_array,
}


def byte_level():
  """Tokens and merges of a small tokenizer (digits, letters, a few pairs), as in transformers."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("1", "2")]
  tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet]
  tokens += ["".join(pair) for pair in merges]
  made = tokenizers.Tokenizer(tokenizers.models.BPE({t: i for i, t in enumerate(tokens)}, merges))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Digits(individual_digits=True),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  made.decoder = tokenizers.decoders.ByteLevel()
  return tokens, [" ".join(pair) for pair in merges], made


def byte_level_fields():
  """The fields of a file for this tokenizer."""
  tokens, merges, _ = byte_level()
  types = [CONTROL] * 3 + [NORMAL] * (len(tokens) - 3)
  said = {"model": "gpt2", "pre": "smollm", "tokens": tokens, "merges": merges, "token_type": types}
  return said | {"bos_token_id": 1, "eos_token_id": 2}


def write(path, rng, *, arch="llama", vocabulary=None, drop="", factors=None, fields=None):
  """Writes a file with random weights; returns the tensors of the same Hugging Face folder."""
  vocabulary = vocabulary or byte_level_fields()
  writer = gguf.GGUFWriter(path, arch)
  writer.add_block_count(SIZES["layers"])
  writer.add_context_length(64)
  writer.add_embedding_length(SIZES["width"])
  writer.add_feed_forward_length(SIZES["ffn"])
  writer.add_head_count(SIZES["heads"])
  writer.add_head_count_kv(SIZES["kv_heads"])
  writer.add_key_length(E)
  writer.add_value_length(E)
  writer.add_rope_dimension_count(E)
  writer.add_rope_freq_base(100_000.0)
  writer.add_layer_norm_rms_eps(1e-5)
  for name, value in vocabulary.items():
    ADD[type(value)](writer, f"tokenizer.ggml.{name}", value)
  for name, value in (fields or {}).items():
    ADD[type(value)](writer, name, value)
  D, F, HE, KE = SIZES["width"], SIZES["ffn"], SIZES["heads"] * E, SIZES["kv_heads"] * E
  shapes = {"attn_norm": (D,), "ffn_norm": (D,), "attn_q": (HE, D), "attn_k": (KE, D)}
  shapes |= {"attn_v": (KE, D), "attn_output": (D, HE), "ffn_gate": (F, D), "ffn_up": (F, D)}
  shapes |= {"ffn_down": (D, F)}
  plain = {"token_embd.weight": (len(vocabulary["tokens"]), D), "output_norm.weight": (D,)}
  for i in range(SIZES["layers"]):
    plain |= {f"blk.{i}.{name}.weight": shape for name, shape in shapes.items()}
  found = {}
  for name, shape in plain.items():
    x = found[name] = rng.standard_normal(shape).astype(np.float32)
    if "attn_q" in name or "attn_k" in name:  # llama.cpp's order of rows
      heads = shape[0] // E
      x = x.reshape(heads, 2, E // 2, D).swapaxes(1, 2).reshape(shape)
    if name != drop:
      writer.add_tensor(name, np.ascontiguousarray(x))
  if factors is not None:
    writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return found
