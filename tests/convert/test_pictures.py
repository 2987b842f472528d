"""The language model of a Gemma 3 with pictures is imported, under any names of its tensors."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from infini_jax.convert.export import export
from infini_jax.convert.families import positions_of, read_config
from infini_jax.convert.huggingface import convert
from infini_jax.runs.tensors import Tensors, save
from tests.convert import golden
from tests.convert.reading import console, logits_of, params_of

# Prefixes of the tensors of the language model, and of those for pictures.
LAYOUTS = {
  "as published": ({"model.": "language_model.model."}, ""),
  "as in memory": ({"model.": "model.language_model."}, "model."),
}
REMEDY = "pip install -e .[reference]"
OF_PICTURES = ("vision_tower.encoder.layers.0.layer_norm1.bias", "multi_modal_projector.norm")


def test_the_config_of_the_4b_model():
  """The published config: the other settings of its text part are defaults of transformers."""
  text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
  text |= {"model_type": "gemma3_text", "sliding_window": 1024}
  text |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
  outer = {"model_type": "gemma3", "eos_token_id": [1, 106], "torch_dtype": "bfloat16"}
  fields, raw = read_config({**outer, "text_config": text}, "config.json")
  got = {name: fields[name] for name in ("layers", "heads", "kv_heads", "head_dim", "vocab_size")}
  want = {"layers": 34, "heads": 8, "kv_heads": 4, "head_dim": 256, "vocab_size": 262_208}
  assert got == want, "a setting that transformers has a default for must be that default"
  assert (fields["window"], fields["global_every"], fields["rope_scaling"]) == (1024, 6, (8.0,))
  assert fields["window_theta"] == 1e4 and fields["tied_embeddings"]
  assert positions_of(raw) == 131_072 and raw["vocab_size"] == 262_208
  assert raw["eos_token_id"] == [1, 106]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_layouts_are_the_model_without_pictures(converted, tmp_path, layout):
  folder = golden.HERE / "gemma3"
  surround(folder, tmp_path / "model", *LAYOUTS[layout])
  convert(str(tmp_path / "model"), tmp_path / "run", None, console())
  alone, want, _ = params_of(converted("gemma3"))
  model, got, _ = params_of(tmp_path / "run")
  assert model == alone
  jax.tree.map(np.testing.assert_array_equal, got, want)
  raw = json.loads((tmp_path / "run" / "hf" / "config.json").read_text())
  assert raw["model_type"] == "gemma3_text" and "vision_config" not in raw


def surround(folder, out, prefixes, of_pictures):
  """Writes the model as the language model of one that reads pictures."""
  out.mkdir()
  shutil.copy(folder / "tokenizer.json", out)
  text = json.loads((folder / "config.json").read_text())
  raw = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 4}}
  (out / "config.json").write_text(json.dumps(raw))
  file = Tensors(folder / "model.safetensors")
  tensors = {f"{of_pictures}{name}": np.ones(4, np.float32) for name in OF_PICTURES}
  for name in file.shapes:
    prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
    tensors[prefixes[prefix] + name.removeprefix(prefix)] = file.read(name)
  save(out / "model.safetensors", tensors)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_beside_transformers(rng, tmp_path, layout):
  """The class with pictures computes text. The export is a model without pictures."""
  os.environ["HF_HUB_OFFLINE"] = "1"
  torch = pytest.importorskip("torch", reason=REMEDY)
  transformers = pytest.importorskip("transformers", reason=REMEDY)
  torch.manual_seed(int(rng.integers(1000)))
  vision = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
  vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
  config = transformers.Gemma3Config(
    text_config=golden.SIZES | golden.MODELS["gemma3"][1],
    vision_config=vision,
    mm_tokens_per_image=4,
    image_token_index=39,
  )
  kind = transformers.AutoModelForImageTextToText
  model = golden.randomize(kind.from_config(config, attn_implementation="eager"))
  folder = tmp_path / "model"
  model.save_pretrained(folder)
  golden.write_tokenizer(folder)
  if layout == "as in memory":
    tensors = {name: x.numpy() for name, x in model.state_dict().items()}
    save(folder / "model.safetensors", tensors)
  (prefix,), of_pictures = LAYOUTS[layout][0].values(), LAYOUTS[layout][1]
  names = Tensors(folder / "model.safetensors").shapes
  assert f"{prefix}norm.weight" in names, f"the layout {layout!r} is another now: {[*names]}"
  assert any(name.startswith(f"{of_pictures}vision_tower.") for name in names)
  tokens_BT, mask_BT = golden.texts(rng)
  tokens_BT = np.minimum(tokens_BT, 38)  # the last token is for pictures
  want_BTV = golden.reference_logits(model, tokens_BT, mask_BT)
  convert(str(folder), tmp_path / "run", None, console())
  difference = np.abs(logits_of(tmp_path / "run", tokens_BT, mask_BT) - want_BTV)[mask_BT].max()
  print(f"gemma3 that reads pictures, {layout}: largest difference of logits {difference:.1e}")
  assert difference < 1e-4, f"{layout}: logits differ by {difference:.1e}"
  export(str(tmp_path / "run"), tmp_path / "out", 10**9, None, console())
  again = golden.load(tmp_path / "out")
  assert type(again).__name__ == "Gemma3ForCausalLM"
  alone_BTV = golden.reference_logits(again, tokens_BT, mask_BT)
  np.testing.assert_allclose(alone_BTV[mask_BT], want_BTV[mask_BT], atol=1e-6)
