"""`infini-jax convert gguf`: files of the llama architecture. Only this file imports gguf."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from infini_jax.config import InputError, ModelConfig
from infini_jax.convert.building import check_free
from infini_jax.convert.byte_level import CONTROL, tokenizer_json
from infini_jax.convert.families import structure
from infini_jax.convert.incoming import Incoming, original_model, write_run
from infini_jax.convert.layout import Entry, entries
from infini_jax.convert.pieces import piece_tokenizer
from infini_jax.convert.vocabulary import check_size
from infini_jax.data import HuggingFaceTokenizer, Template, Tokenizer
from infini_jax.data.tokenizers.marks import Declared, find_marks
from infini_jax.data.tokenizers.templates import DEFAULT

LLAMA_MARKS = {("llama", 1), ("llama", 2)}
ROTATED = ("attn_q", "attn_k")  # tensors whose rows have another order within a head
# Llama 3's rope scalings (factor, low, high, original). A GGUF file has only the divisors.
LLAMA3 = tuple((factor, 1.0, 4.0, 8192.0) for factor in (8.0, 32.0))
# Settings of a llama, by their names after `llama.`, that are read or change nothing.
READ = {
  *("embedding_length", "block_count", "feed_forward_length", "context_length", "vocab_size"),
  *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
  *("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.freq_base"),
  *("rope.scale_linear", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.finetuned"),
  *("rope.scaling.original_context_length", "tensor_data_layout"),
}
# Any other setting is supported only where it changes nothing: at 0, or at this value.
NEUTRAL = {
  **dict.fromkeys(("logit_scale", "embedding_scale", "residual_scale"), 1),
  **dict.fromkeys(("rope.scaling.attn_factor", "attention.causal"), 1),
}


def convert(file: Path, out: Path, dtype: str | None, console: Console) -> None:
  """Makes a run from a GGUF file. The weights are dequantized.

  Raises:
    InputError: the file is damaged, or its model or its vocabulary is not supported.
  """
  check_free(out)
  opened = _File(file)
  try:
    model, positions = opened.model(dtype or "float32")
    opened.check(model)
    tokenizer = opened.tokenizer()
  except (AttributeError, TypeError, ValueError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(f"{file}: a field is damaged ({error}); download it again") from None
  check_size(tokenizer, model.vocab_size, str(file))
  incoming = Incoming(model, opened.tensor, None, tokenizer, None, positions, {}, "gguf")
  write_run(incoming, out, console)


class _File:
  """The model, the tensors and the tokenizer of a GGUF file."""

  def __init__(self, path: Path):
    try:
      import gguf
    except ImportError:
      raise InputError(
        "convert gguf needs the package 'gguf': pip install -e '.[convert]'"
      ) from None
    if not path.is_file():
      raise InputError(f"{path}: no such file; give a .gguf file")
    self.path, self._gguf = path, gguf
    try:
      reader = gguf.GGUFReader(path)
      self._fields = {name: field.contents for name, field in reader.fields.items()}
      self._tensors = {tensor.name: tensor for tensor in reader.tensors}
    except Exception as error:  # the reader raises many kinds of errors
      raise InputError(
        f"{path}: not a whole GGUF file ({' '.join(str(error).split())}); download it again"
      ) from None
    if (kind := self._get("general.architecture")) != "llama":
      raise InputError(f"{path}: architecture {kind!r} is not supported; llama is")
    if (parts := self._get("split.count", 1)) != 1:
      raise InputError(
        f"{path}: is one of {parts} files of a model; `llama-gguf-split --merge` makes one file"
      )
    if reader.byte_order != "I":
      raise InputError(f"{path}: has another byte order than this machine; download the usual file")

  def model(self, dtype: str) -> tuple[ModelConfig, int]:
    """The model, and the longest text that it was trained on, in tokens."""
    width, heads = self._size("llama.embedding_length"), self._size("llama.attention.head_count")
    head_dim = self._size("llama.attention.key_length", width // heads)
    self._check_settings(head_dim)
    fields = structure(ModelConfig()) | {
      "layers": self._size("llama.block_count"),
      "width": width,
      "heads": heads,
      "kv_heads": self._size("llama.attention.head_count_kv", heads),
      "head_dim": head_dim,
      "ffn": self._size("llama.feed_forward_length"),
      "vocab_size": self._shape("token_embd.weight")[0],
      "rope_theta": self._number("llama.rope.freq_base", 10_000.0),
      "norm_eps": self._number("llama.attention.layer_norm_rms_epsilon"),
      "tied_embeddings": "output.weight" not in self._tensors,
    }
    fields["rope_scaling"] = self._scaling(fields["rope_theta"], head_dim)
    positions = self._size("llama.context_length")
    return original_model(fields, positions, dtype), positions

  def check(self, model: ModelConfig) -> None:
    """Raises InputError for a tensor that is missing, unexpected, or of another shape."""
    wanted = {"rope_freqs.weight"}
    for entry in entries(model):
      for name in entry.names(entry.gguf):  # can be very many; the first missing one raises
        if self._shape(name) != entry.tensor_shape:
          raise InputError(
            f"{self.path}: tensor {name} is {self._shape(name)} where the model needs "
            f"{entry.tensor_shape}; download it again"
          )
        wanted.add(name)
    for kind, found in {tensor.tensor_type: tensor for tensor in self._tensors.values()}.items():
      try:
        self._gguf.dequantize(found.data[:1], kind)
      except NotImplementedError:
        raise InputError(
          f"{self.path}: tensor {found.name} is of type {kind.name}, which the package gguf cannot "
          f"read; choose another quantization"
        ) from None
    if unknown := sorted(self._tensors.keys() - wanted):
      raise InputError(f"{self.path}: a llama has no tensor {unknown[0]}; choose another model")

  def tensor(self, entry: Entry, layer: int) -> np.ndarray:
    """One tensor, dequantized, with its rows in the order of a Hugging Face folder."""
    found = self._tensors[entry.gguf.format(layer)]
    with np.errstate(all="ignore"):  # values that are not finite are reported when written
      tensor = self._gguf.dequantize(found.data, found.tensor_type).reshape(entry.tensor_shape)
    if not any(f".{name}." in entry.gguf for name in ROTATED):
      return tensor
    heads, half = entry.shape[1], entry.shape[2] // 2
    return tensor.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(tensor.shape)

  def tokenizer(self) -> Tokenizer:
    """The tokenizer of the file."""
    get = lambda name, *default: self._get(f"tokenizer.ggml.{name}", *default)
    if (kind := get("model")) not in ("gpt2", "llama"):
      raise InputError(
        f"{self.path}: tokenizer {kind!r} is not supported, byte-level BPE ('gpt2') and "
        f"SentencePiece ('llama') are; convert the Hugging Face folder of this model"
      )
    tokens, kinds = get("tokens"), get("token_type")
    usual = {"bos": None, "eos": None} | ({"unknown": 0} if kind == "llama" else {})
    ids = {mark: get(f"{mark}_token_id", id) for mark, id in usual.items()}
    scores = get("scores") if kind == "llama" else tokens
    found = {id for id in ids.values() if id is not None}
    numbers = {type(number) for number in [*kinds, *found]} == {int}
    whole = numbers and len(tokens) == len(kinds) == len(scores)
    if not whole or found - set(range(len(tokens))):
      raise InputError(
        f"{self.path}: its {len(tokens)} tokens do not go with their types, scores or {ids}; "
        f"download it again"
      )
    # If a file names no marks, ids 1 and 2 of SentencePiece are its marks if their names fit.
    special = {t for i, t in enumerate(tokens) if kinds[i] == CONTROL or (kind, i) in LLAMA_MARKS}
    ids["bos"], ids["eos"] = marks = find_marks(
      {token: id for id, token in enumerate(tokens)},
      special,
      Declared(ids["bos"], ids["eos"]),
      str(self.path),
      "convert the Hugging Face folder of this model",
    )
    made: Tokenizer
    if kind == "gpt2":
      content = tokenizer_json(tokens, get("merges"), kinds, get("pre"), self.path)
      made = HuggingFaceTokenizer(content, str(self.path), marks)
    else:
      add_space = get("add_space_prefix", True)
      made = piece_tokenizer(tokens, scores, kinds, ids, add_space, self.path)
    if chat := self._get("tokenizer.chat_template", ""):
      roles = zip(("bos_token", "eos_token"), marks, strict=True)
      made.template = Template({DEFAULT: chat}, {role: tokens[id] for role, id in roles})
    return made

  def _scaling(self, theta: float, head_dim: int) -> tuple[float, ...]:
    """The scaling as llama.cpp reads it: a factor without a type is linear; `none` ignores it."""
    newer, older = "llama.rope.scaling.factor", "llama.rope.scale_linear"
    name = newer if newer in self._fields else older
    factor = self._number(name, 1.0) if self._get(name, 0) else 1.0
    if (kind := self._get("llama.rope.scaling.type", "linear")) not in ("linear", "none"):
      raise InputError(
        f"{self.path}: rope scaling of type {kind!r} is not supported; "
        f"convert the Hugging Face folder of this model"
      )
    linear = () if kind == "none" or factor == 1 else (factor,)
    if "rope_freqs.weight" not in self._tensors:
      return linear
    found = self._tensors["rope_freqs.weight"].data
    for scaling in () if linear else LLAMA3:
      divisors = llama3_divisors(theta, head_dim, scaling)
      if found.shape == divisors.shape and np.allclose(found, divisors, rtol=1e-4):
        return scaling
    if not linear and np.all(found == 1):
      return ()
    raise InputError(f"{self.path}: its rope_freqs.weight is not Llama 3's; choose another model")

  def _check_settings(self, head_dim: int) -> None:
    """Raises InputError for a setting that is not supported, or not known."""
    neutral = NEUTRAL | {
      "rope.dimension_count": head_dim,
      "attention.value_length": head_dim,
      "attention.scale": _plain(head_dim**-0.5),
    }
    for name in sorted(self._fields):
      if (setting := name.removeprefix("llama.")) == name or setting in READ:
        continue
      value = self._get(name)
      value = _plain(value) if isinstance(value, float) else value
      if value != neutral.get(setting, 0) and (value or setting == "attention.causal"):
        words = "a mixture of experts" if setting == "expert_count" else f"{setting}={value!r}"
        raise InputError(f"{self.path}: {words} is not supported; choose a model without it")

  def _shape(self, name: str) -> tuple[int, ...]:
    if name not in self._tensors:
      raise InputError(f"{self.path}: tensor {name} is missing; download it again")
    return tuple(int(n) for n in reversed(self._tensors[name].shape))

  def _size(self, name: str, *default: int) -> int:
    if type(size := self._get(name, *default)) is not int or size < 1:
      raise InputError(f"{self.path}: {name}={size!r}: must be a whole number of 1 or more")
    return size

  def _number(self, name: str, *default: float) -> float:
    if type(number := self._get(name, *default)) not in (int, float) or not 0 < number < math.inf:
      raise InputError(f"{self.path}: {name}={number!r}: must be a number above 0")
    return _plain(number)

  def _get(self, name: str, *default: Any) -> Any:
    if name in self._fields:
      return self._fields[name]()
    if default:
      return default[0]
    raise InputError(f"{self.path}: lacks {name}; download it again")


def llama3_divisors(theta: float, head_dim: int, scaling: Iterable[float]) -> np.ndarray:
  """What Llama 3 divides each frequency by: 1 for short waves, the factor for long ones.

  Args:
    theta: the base of the frequencies.
    head_dim: E, the key size of a head.
    scaling: factor, low, high, original, as in `FamilyConfig.rope_scaling`.

  Returns:
    A float64 array of shape (head_dim // 2,).
  """
  factor, low, high, original = scaling
  half = head_dim // 2
  waves = 2 * math.pi * theta ** (np.arange(half) / half)
  share = np.clip((original / waves - low) / (high - low), 0, 1)
  return 1 / ((1 - share) / factor + share)


def _plain(number: float) -> float:
  """A float32 as the shortest decimal that rounds to it: 1e-05, not 9.99999974e-06."""
  return float(str(np.float32(number)))
