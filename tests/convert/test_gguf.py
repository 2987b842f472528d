"""GGUF files come in as the same model's Hugging Face folder does, rows and vocabulary too."""

import json

import numpy as np
import pytest
import tokenizers

from infini_jax.config import InputError
from infini_jax.convert.gguf import convert, llama3_divisors
from infini_jax.convert.layout import places
from infini_jax.data import load_saved
from tests.convert.reading import console, params_of

gguf = pytest.importorskip("gguf", reason="pip install -e .[convert]")
SIZES = {"layers": 2, "width": 8, "heads": 4, "kv_heads": 2, "ffn": 12}
E = 8


def byte_level():
  """Tokens and merges of a tokenizer of digits, letters and a few pairs, as transformers has it."""
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


def write(path, rng, *, arch="llama", cut="smollm", vocabulary="gpt2", drop="", factors=None):
  """A file with random weights; what a Hugging Face folder would hold comes back."""
  tokens, merges, _ = byte_level()
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
  writer.add_tokenizer_model(vocabulary)
  writer.add_tokenizer_pre(cut)
  writer.add_token_list(tokens)
  writer.add_token_merges(merges)
  writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  D, F, HE, KE = SIZES["width"], SIZES["ffn"], SIZES["heads"] * E, SIZES["kv_heads"] * E
  shapes = {"attn_norm": (D,), "ffn_norm": (D,), "attn_q": (HE, D), "attn_k": (KE, D)}
  shapes |= {"attn_v": (KE, D), "attn_output": (D, HE), "ffn_gate": (F, D), "ffn_up": (F, D)}
  shapes |= {"ffn_down": (D, F)}
  plain = {"token_embd.weight": (len(tokens), D), "output_norm.weight": (D,)}
  for i in range(SIZES["layers"]):
    plain |= {f"blk.{i}.{name}.weight": shape for name, shape in shapes.items()}
  found = {}
  for name, shape in plain.items():
    x = found[name] = rng.standard_normal(shape).astype(np.float32)
    if "attn_q" in name or "attn_k" in name:  # the order that llama.cpp keeps the rows in
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


def test_weights_and_vocabulary_come_in(rng, tmp_path):
  found = write(tmp_path / "a.gguf", rng)
  convert(tmp_path / "a.gguf", tmp_path / "run", None, console())
  model, params, _ = params_of(tmp_path / "run")
  assert (model.rope_theta, model.norm_eps, model.tied_embeddings) == (1e5, 1e-5, True)
  assert (model.segment_length, model.param_dtype, model.mixer) == (64, "float32", "full")
  for place in places(model):
    value = params
    for name in place.parameter.split("."):
      value = value[name]
    layers = np.asarray(value) if place.layers else [np.asarray(value)]
    for name, layer in zip(place.names(place.gguf), layers, strict=True):
      np.testing.assert_array_equal(place.to_tensor(layer), found[name], err_msg=name)
  tokens, _, made = byte_level()
  tokenizer = load_saved(tmp_path / "run" / "tokenizer")
  assert (tokenizer.size, tokenizer.bos, tokenizer.eos) == (len(tokens), 1, 2)
  text = "the other 1234, the thé\n\n"
  ids = tokenizer.encode(text)
  assert ids.tolist() == made.encode(text, add_special_tokens=False).ids
  assert tokenizer.decode(ids) == text
  assert 1 not in tokenizer.encode("<|im_start|>"), "text that names a special token stays text"
  raw = json.loads((tmp_path / "run" / "hf" / "config.json").read_text())
  assert raw["model_type"] == "llama" and raw["bos_token_id"] == 1


def test_llama_3_is_known_by_its_factors(rng, tmp_path):
  scaling = (32.0, 1.0, 4.0, 8192.0)
  write(tmp_path / "a.gguf", rng, factors=llama3_divisors(100_000.0, E, scaling))
  convert(tmp_path / "a.gguf", tmp_path / "run", "bfloat16", console())
  model, *_ = params_of(tmp_path / "run")
  assert model.rope_scaling == scaling and model.param_dtype == "bfloat16"


@pytest.mark.parametrize(
  ("how", "said"),
  [
    ({"arch": "gemma2"}, "architecture 'gemma2' is not supported; llama is"),
    ({"cut": "tekken"}, "pre-tokenizer 'tekken' is not supported, gpt-2, smollm"),
    ({"vocabulary": "bert"}, "tokenizer 'bert' is not supported"),
    ({"drop": "blk.1.ffn_up.weight"}, "tensor blk.1.ffn_up.weight is missing"),
    ({"factors": np.array([1.5, 2.5])}, "its rope_freqs.weight is not Llama 3's"),
  ],
  ids=str,
)
def test_other_files_are_refused(rng, tmp_path, how, said):
  write(tmp_path / "a.gguf", rng, **how)
  with pytest.raises(InputError, match=said) as error:
    convert(tmp_path / "a.gguf", tmp_path / "run", None, console())
  assert "\n" not in str(error.value)
  assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def test_a_damaged_file_is_refused(rng, tmp_path):
  file = tmp_path / "a.gguf"
  write(file, rng)
  whole = file.read_bytes()
  for content in (whole[:-1000], whole[:100], b"", b"no gguf at all, but text"):
    file.write_bytes(content)
    with pytest.raises(InputError, match="not a whole GGUF file.*download it again") as error:
      convert(file, tmp_path / "run", None, console())
    assert "\n" not in str(error.value)
  with pytest.raises(InputError, match="none.gguf: no such file"):
    convert(tmp_path / "none.gguf", tmp_path / "run", None, console())
