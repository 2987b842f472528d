"""Tiny models of every family, and the logits that transformers computes with them.

`python -m tests.convert.golden` writes tests/convert/golden/FAMILY/: a Hugging Face folder with
random weights, and tokens with their logits. It needs `pip install -e .[reference]`.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "golden"
LENGTHS = (21, 13)  # tokens of the two texts of a batch
SIZES = {
  "hidden_size": 8,
  "intermediate_size": 12,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 4,
  "vocab_size": 40,
  "max_position_embeddings": 64,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "pad_token_id": 0,
}
LLAMA3 = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
GEMMA = {"sliding_window": 6, "query_pre_attn_scalar": 24}
# By the name of a model: its class in transformers, and its settings besides the sizes.
MODELS = {
  "llama": ("Llama", {"rope_theta": 100_000.0, "tie_word_embeddings": True}),
  "llama3": ("Llama", {"rope_theta": 500_000.0, "rope_scaling": LLAMA3}),
  "llama_linear": ("Llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
  "mistral": ("Mistral", {"sliding_window": 5}),
  "qwen2": ("Qwen2", {"rope_theta": 1_000_000.0}),
  "qwen2_windows": (
    "Qwen2",
    {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
  ),
  "qwen2_yarn": ("Qwen2", {"rope_scaling": YARN | {"beta_fast": 2}}),
  "qwen3": ("Qwen3", {"rope_theta": 1_000_000.0, "tie_word_embeddings": True}),
  "smollm3_yarn": ("SmolLM3", {"no_rope_layer_interval": 2, "rope_scaling": YARN}),
  "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2, "rope_theta": 100_000.0}),
  "gemma2": ("Gemma2", GEMMA),
  "gemma3": (
    "Gemma3Text",
    GEMMA
    | {
      "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
      "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
  ),
}
GOLDEN = ("llama3", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "smollm3")  # with folders


def make_folder(name: str, folder: Path, seed: int = 0, **changes):
  """A folder of random weights, and its model."""
  import torch
  import transformers

  kind, settings = MODELS[name]
  torch.manual_seed(seed)
  config = getattr(transformers, f"{kind}Config")(**SIZES | settings | changes)
  # eager: the reference attention, which supports softcap
  model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
  randomize(model).save_pretrained(folder)
  write_tokenizer(folder)
  return model


def randomize(model):
  """Sets weights so large that every part changes the logits, norms and biases too."""
  import torch

  with torch.no_grad():
    for parameter in model.parameters():
      spread = 0.2 if parameter.ndim == 1 else 0.35
      start = parameter if parameter.ndim == 1 else 0
      parameter.copy_(start + spread * torch.randn_like(parameter))
  return model.eval()


def load(folder: Path):
  """The model of a folder in transformers."""
  import torch
  import transformers

  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, attn_implementation="eager", dtype=torch.float32
  ).eval()


def reference_logits(model, tokens_BT, mask_BT):
  """The logits of a model for texts with padding at the end."""
  import torch

  with torch.no_grad():
    ids, mask = torch.tensor(tokens_BT), torch.tensor(mask_BT.astype(np.int64))
    return model(input_ids=ids, attention_mask=mask).logits.float().numpy()


def texts(rng):
  """Random tokens of texts of several lengths, and their mask."""
  tokens_BT = rng.integers(3, SIZES["vocab_size"], (len(LENGTHS), max(LENGTHS)))
  mask_BT = np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None]
  return np.where(mask_BT, tokens_BT, 0).astype(np.int32), mask_BT


def write_tokenizer(folder: Path) -> None:
  """Writes a tokenizer with one token for each of a few characters."""
  import tokenizers

  characters = "abcdefghijklmnopqrstuvwxyz .,!?"
  vocab = {c: i for i, c in enumerate(["<pad>", "<s>", "</s>", *characters])}
  made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
  made.add_special_tokens(["<pad>", "<s>", "</s>"])
  made.decoder = tokenizers.decoders.Fuse()
  folder.mkdir(parents=True, exist_ok=True)
  made.save(str(folder / "tokenizer.json"))


def main() -> None:
  import transformers

  rng = np.random.default_rng(0)
  shutil.rmtree(HERE, ignore_errors=True)
  for name in GOLDEN:
    model = make_folder(name, HERE / name)
    tokens_BT, mask_BT = texts(rng)
    logits_BTV = reference_logits(model, tokens_BT, mask_BT)
    for file in ("generation_config.json", "chat_template.jinja"):
      (HERE / name / file).unlink(missing_ok=True)
    made = {"tokens": tokens_BT, "mask": mask_BT, "logits": logits_BTV}
    np.savez_compressed(HERE / name / "logits.npz", **made)
  (HERE / "made_with.json").write_text(json.dumps({"transformers": transformers.__version__}))
  print(f"wrote {HERE}: {sum(f.stat().st_size for f in HERE.rglob('*')) / 1000:.0f} kB")


if __name__ == "__main__":
  sys.exit(main())
