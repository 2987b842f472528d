"""`infini-jax verify`: compares runs, stores and states with the digests from their writing.

What was written by a program without digests is listed as "not sealed".
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from infini_jax import digests
from infini_jax.config import InputError
from infini_jax.data import Store
from infini_jax.data.store.store import is_store
from infini_jax.runs.tensors import CHECKSUM, Tensors
from infini_jax.runs.workdir import Workdir

WHOLE, UNSEALED = "whole", "not sealed: an older program wrote it, and nothing can be compared"


class Found(NamedTuple):
  """One item, and what is wrong with it; `WHOLE`, or `UNSEALED`."""

  what: str
  result: str

  @property
  def is_damaged(self) -> bool:
    """Whether something differs."""
    return self.result not in (WHOLE, UNSEALED)


def verify(path: Path, console: Console) -> bool:
  """Prints a table of the items of a run, a store, a checkpoint or a safetensors file.

  Args:
    path: the folder or file.
    console: for the table.

  Returns:
    Whether nothing differs.

  Raises:
    InputError: there is nothing that could be verified.
  """
  if not path.exists():
    raise InputError(f"{path}: no such file or folder")
  table = Table(title=f"verify {path}", title_justify="left")
  table.add_column("what")
  table.add_column("result", overflow="fold")
  damaged = 0
  for found in _parts(path):
    table.add_row(found.what, found.result)
    damaged += found.is_damaged
  if not table.row_count:
    raise InputError(f"{path}: not a run, a store, a checkpoint, or a state; give one of these")
  console.print(table)
  return not damaged


def _parts(path: Path) -> Iterator[Found]:
  if path.is_file():
    yield Found(path.name, _of(partial(_tensors, path)))
  elif is_store(path):
    yield from _store(path, "")
  elif (path / "run.json").exists():
    yield from _run(path)
  elif digests.is_sealed(path):
    yield _folder(path, path.name)
  else:
    for file in sorted(path.glob("*.safetensors")):
      yield Found(file.name, _of(partial(_tensors, file)))


def _run(path: Path) -> Iterator[Found]:
  workdir = Workdir(path)
  sealed = '"sha256"' in (path / "run.json").read_text(errors="replace")
  yield Found("run.json", _of(lambda: workdir.config() and (None if sealed else UNSEALED)))
  if workdir.tokenizer.exists():
    yield Found("tokenizer", _of(workdir.load_tokenizer))
  steps = (path / "checkpoints").glob("*")
  for folder in sorted((f for f in steps if f.name.isdigit()), key=lambda f: int(f.name)):
    yield _folder(folder, f"checkpoints/{folder.name}")
  for store in (workdir.store, *sorted(workdir.stores.glob("*"))):
    if is_store(store):
      yield from _store(store, f"{store.relative_to(path)}: ")


def _store(path: Path, prefix: str) -> Iterator[Found]:
  """Each shard is read from its first token to its last: its files have checksums of their own."""
  try:
    store = Store.open(path)
    store.tokenizer  # noqa: B018
  except InputError as error:
    yield Found(f"{prefix}store.json", str(error))
    return
  for shard in store.all_shards():
    yield Found(f"{prefix}{shard.folder.name}/{shard.number:05d}", _of(shard.check))


def _folder(folder: Path, name: str) -> Found:
  if not digests.is_sealed(folder):
    return Found(name, UNSEALED)
  return Found(name, digests.in_one_line(digests.problems(folder)) or WHOLE)


def _tensors(file: Path) -> str | None:
  tensors = Tensors(file)
  if CHECKSUM not in tensors.shapes:
    return UNSEALED
  tensors.check()
  return None


def _of(check: Callable[[], Any]) -> str:
  """The result of a check that raises InputError for damage."""
  try:
    result = check()
  except InputError as error:
    return str(error)
  return result if result == UNSEALED else WHOLE
