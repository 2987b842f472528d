"""A GGUF file gives the same run as the Hugging Face folder of its model."""

import json

import gguf
import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.convert.building import check_finite
from infini_jax.convert.gguf import convert, llama3_divisors
from infini_jax.convert.layout import entries
from infini_jax.data import load_saved
from infini_jax.runs.workdir import Workdir
from tests.convert.gguf_files import E, byte_level, byte_level_fields, write
from tests.convert.reading import console, params_of


def test_weights_and_vocabulary_are_converted(rng, tmp_path):
  found = write(tmp_path / "a.gguf", rng)
  convert(tmp_path / "a.gguf", tmp_path / "run", None, console())
  model, params, _ = params_of(tmp_path / "run")
  assert (model.family.rope_theta, model.family.norm_eps, model.tied_embeddings) == (
    1e5,
    1e-5,
    True,
  )
  assert (model.segment_length, model.run.param_dtype, model.mixer) == (64, "float32", "full")
  for entry in entries(model):
    value = params
    for name in entry.parameter.split("."):
      value = value[name]
    layers = np.asarray(value) if entry.layers else [np.asarray(value)]
    for name, layer in zip(entry.names(entry.gguf), layers, strict=True):
      np.testing.assert_array_equal(entry.to_tensor(layer), found[name], err_msg=name)
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


def test_llama_3_scaling_is_recognised_by_its_factors(rng, tmp_path):
  scaling = (32.0, 1.0, 4.0, 8192.0)
  write(tmp_path / "a.gguf", rng, factors=llama3_divisors(100_000.0, E, scaling))
  convert(tmp_path / "a.gguf", tmp_path / "run", "bfloat16", console())
  model, *_ = params_of(tmp_path / "run")
  assert model.family.rope_scaling == scaling and model.run.param_dtype == "bfloat16"


ROPE = "llama.rope.scaling"


@pytest.mark.parametrize(
  ("fields", "expected"),
  [
    ({"llama.rope.scale_linear": 4.0}, (4.0,)),
    ({f"{ROPE}.factor": 4.0}, (4.0,)),
    ({f"{ROPE}.factor": 2.5, "llama.rope.scale_linear": 4.0}, (2.5,)),
    ({f"{ROPE}.factor": 0.0, f"{ROPE}.type": "linear"}, ()),
    ({f"{ROPE}.factor": 4.0, f"{ROPE}.type": "none"}, ()),
    ({"llama.attention.scale": E**-0.5, "llama.logit_scale": 1.0, "llama.expert_count": 0}, ()),
  ],
  ids=str,
)
def test_rope_scaling_is_what_llama_cpp_reads(rng, tmp_path, fields, expected):
  """A factor without a type is linear. The older key is read if the newer is missing."""
  write(tmp_path / "a.gguf", rng, fields=fields)
  convert(tmp_path / "a.gguf", tmp_path / "run", None, console())
  assert Workdir(tmp_path / "run").config().model.family.rope_scaling == expected


@pytest.mark.parametrize(
  ("how", "said"),
  [
    ({"fields": {f"{ROPE}.factor": -4.0}}, "scaling.factor=-4.0: must be a number above 0"),
    ({"fields": {f"{ROPE}.factor": "4"}}, "scaling.factor='4': must be a number above 0"),
    ({"fields": {"llama.rope.freq_base": 0.0}}, "llama.rope.freq_base=0.0: must be a number ab"),
    ({"vocabulary": {"bos_token_id": 1.0}}, "do not go with their types, scores or .'bos': 1.0"),
    ({"fields": {f"{ROPE}.type": "yarn", f"{ROPE}.factor": 4.0}}, "type 'yarn' is not supported"),
    ({"fields": {f"{ROPE}.yarn_log_multiplier": 0.1}}, "yarn_log_multiplier=0.1 is not supported"),
    ({"fields": {"llama.attention.scale": 0.25}}, "attention.scale=0.25 is not supported"),
    ({"fields": {"llama.attention.sliding_window": 8}}, "sliding_window=8 is not supported"),
    ({"fields": {"llama.rope.dimension_count": 2}}, "rope.dimension_count=2 is not supported"),
    ({"fields": {"llama.expert_count": 4}}, "a mixture of experts is not supported"),
    (
      {"fields": {f"{ROPE}.factor": 2.0}, "factors": llama3_divisors(1e5, E, (8, 1, 4, 8192))},
      "its rope_freqs.weight is not Llama 3's",
    ),
    ({"arch": "gemma2"}, "architecture 'gemma2' is not supported; llama is"),
    ({"vocabulary": {"pre": "qwen2"}}, "pre-tokenizer 'qwen2' is not supported, gpt-2, smollm"),
    ({"vocabulary": {"model": "bert"}}, "tokenizer 'bert' is not supported"),
    ({"vocabulary": {"token_type": [1, 2]}}, "263 tokens do not go with their types"),
    ({"vocabulary": {"eos_token_id": 263}}, "do not go with their types, scores or .*'eos': 263"),
    ({"vocabulary": {"merges": 7}}, "a field is damaged .*download it again"),
    ({"fields": {"split.count": 2}}, "is one of 2 files of a model; `llama-gguf-split --merge`"),
    ({"fields": {"llama.attention.head_count": 0}}, "head_count=0: must be a whole number of 1"),
    ({"fields": {"llama.block_count": 2**31}}, "tensor blk.2.attn_k.weight is missing"),
    ({"drop": "blk.1.ffn_up.weight"}, "tensor blk.1.ffn_up.weight is missing"),
    ({"factors": np.array([1.5, 2.5])}, "its rope_freqs.weight is not Llama 3's"),
  ],
  ids=str,
)
def test_other_files_are_refused(rng, tmp_path, how, said):
  how = how | {"vocabulary": byte_level_fields() | how.get("vocabulary", {})}
  write(tmp_path / "a.gguf", rng, **how)
  with pytest.raises(InputError, match=said) as error:
    convert(tmp_path / "a.gguf", tmp_path / "run", None, console())
  assert "\n" not in str(error.value)
  assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def test_weights_that_are_not_finite_are_refused(rng, tmp_path):
  """In a float tensor, and in the scale of a quantized block."""
  file, name = tmp_path / "a.gguf", "blk.1.ffn_up.weight"
  found = write(file, rng)
  whole, value = bytearray(file.read_bytes()), found[name].reshape(-1)[5].tobytes()
  entry = whole.index(found[name].tobytes()) + 20
  assert whole[entry : entry + 4] == value
  whole[entry : entry + 4] = np.float32(np.nan).tobytes()
  file.write_bytes(whole)
  with pytest.raises(InputError, match=f"tensor {name} holds nan, so"):
    convert(file, tmp_path / "run", None, console())
  blocks = gguf.quantize(np.ones((2, 32), np.float32), gguf.GGMLQuantizationType.Q8_0)
  blocks[0, :2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
  values = gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
  with pytest.raises(InputError, match="tensor of blocks holds (inf|nan)"):
    check_finite("of blocks", values, values)
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
  name = b"output_norm.weight"
  kind = whole.index(name) + len(name) + 12  # after the number of dimensions, and one dimension
  for number, said in ((24, "of type I8, which the package gguf cannot read"), (999, "999")):
    file.write_bytes(whole[:kind] + number.to_bytes(4, "little") + whole[kind + 4 :])
    with pytest.raises(InputError, match=said):
      convert(file, tmp_path / "run", None, console())
  assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]
  with pytest.raises(InputError, match="none.gguf: no such file"):
    convert(tmp_path / "none.gguf", tmp_path / "run", None, console())
