"""Folders of the Hugging Face hub. Only this file imports huggingface_hub."""

import re
from pathlib import Path

from infini_jax.config import InputError

PATTERNS = [  # no pickles
  *("*.json", "*.jinja", "*.txt", "tokenizer.model"),
  *("model*.safetensors", "infini.safetensors"),
]


def find_folder(name: str) -> Path:
  """The folder with this path, or of the hub's model with this name: downloaded, or from the cache.

  Raises:
    InputError: there is no such folder, and no such model can be downloaded.
  """
  if Path(name).is_dir():
    return Path(name)
  if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or Path(name).exists():
    raise InputError(f"{name}: no such folder; give one with config.json and *.safetensors")
  try:
    import huggingface_hub
  except ImportError:
    raise InputError(
      f"{name}: no such folder, and a name of the hub needs the package 'huggingface_hub': "
      f"pip install huggingface_hub"
    ) from None
  failed = ""
  for local in (False, True):  # the cache comes last: it often holds only a part of a model
    try:
      return Path(
        huggingface_hub.snapshot_download(name, allow_patterns=PATTERNS, local_files_only=local)
      )
    except Exception as error:  # of the network, the hub or the name: treated alike
      failed = failed or type(error).__name__
  raise InputError(
    f"{name}: no such folder, and not to be had from the hub ({failed}); where there "
    f"is a network: hf download {name}, then give its folder"
  )
