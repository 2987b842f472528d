"""Folders of the Hugging Face hub. Only this file imports huggingface_hub."""

import re
from pathlib import Path
from typing import Any

from rich.console import Console

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
  huggingface_hub = _library(f"{name}: no such folder, and a name of the hub")
  failed = ""
  for local in (False, True):  # the cache comes last: it often holds only a part of a model
    try:
      return Path(
        huggingface_hub.snapshot_download(name, allow_patterns=PATTERNS, local_files_only=local)
      )
    except Exception as error:  # of the network, the hub or the name: treated alike
      failed = failed or type(error).__name__
  raise InputError(
    f"{name}: no such folder, and it could not be downloaded from the hub ({failed}); where there "
    f"is a network: hf download {name}, then give its folder"
  )


def check_push(name: str) -> None:
  """Raises InputError if a folder cannot be uploaded under this name; sends nothing."""
  wrong = InputError(f"--push={name}: must be a name of the hub, OWNER/MODEL")
  if name.count("/") != 1:
    raise wrong
  _library("--push")
  from huggingface_hub.utils import validate_repo_id

  try:
    validate_repo_id(name)
  except ValueError:
    raise wrong from None


def push(folder: Path, name: str, console: Console) -> None:
  """Uploads a folder to the hub as a model; one that does not exist yet is made private.

  Args:
    folder: what is uploaded; files of the model that it does not have stay.
    name: OWNER/MODEL.
    console: where the address is printed.

  Raises:
    InputError: the hub does not take it. The folder stays as it is.
  """
  hub = _library("--push")
  try:
    client = hub.HfApi()
    client.create_repo(name, private=True, exist_ok=True)
    client.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload the model")
  except Exception as error:  # of the network, the hub or the name: treated alike
    reason = " ".join(str(error).split())[:200]
    raise InputError(
      f"{folder}: is written, but --push={name} failed ({type(error).__name__}: {reason}); after "
      f"hf auth login, hf upload {name} {folder} sends it again"
    ) from None
  console.print(f"pushed: {client.endpoint}/{name}", highlight=False, soft_wrap=True)


def _library(what: str) -> Any:
  """The package; raises InputError, with the beginning of the line, if it is not installed."""
  try:
    import huggingface_hub
  except ImportError:
    raise InputError(
      f"{what} needs the package 'huggingface_hub': pip install huggingface_hub"
    ) from None
  return huggingface_hub
