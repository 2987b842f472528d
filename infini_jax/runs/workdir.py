"""The folder of a run, and the corpus that it reads.

A workdir is complete without other files:

  run.json           the config of the run, the fingerprints of its corpus and of its vocabulary
  tokenizer/         the vocabulary
  hf/                the small files of the pretrained model, if the run started from one
  checkpoints/STEP/  the state after so many updates: `params`, `ema` if there is an average, and
                     `rest` (optimizer, memory, step)
  branch.json        of which run and step the run is a branch, if it is one
  store/, stores/    the corpus in tokens, and other corpora that were evaluated
  metrics.jsonl      one line per log; also tensorboard/
  evaluation/TASK/   results.json and pictures of each task, by corpus and protocol
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
from rich.console import Console

from infini_jax import config as config_lib
from infini_jax.config import Config, InputError
from infini_jax.data import Tokenizer, find_template, is_saved, load_saved
from infini_jax.digests import matches, short_hash, signed
from infini_jax.files import atomic_folder, locked, write_json
from infini_jax.paths import folder_to_write, local
from infini_jax.tasks import Dataset, open_training
from infini_jax.tasks.summarization import older

Value = TypeVar("Value")
START_FROM = "config.train.start_from"

ORIGINAL = "hf"  # the subfolder with the small files of a Hugging Face folder


class Workdir:
  """The folder of one run.

  Args:
    path: the path of the folder.
    name: the flag or field that names it, for errors.

  Raises:
    InputError: the path is not local.
  """

  def __init__(self, path: str | Path, name: str = "--workdir"):
    self.path = local(path, name).absolute()

  @property
  def tokenizer(self) -> Path:
    """The folder with the vocabulary of the run."""
    return self.path / "tokenizer"

  def load_tokenizer(self) -> Tokenizer:
    """The vocabulary of the run.

    Raises:
      InputError: it is missing, damaged, or not the one that the run was made with.
    """
    tokenizer, run = load_saved(self.tokenizer), self._run()
    if run and run["tokenizer"] not in ("", tokenizer.fingerprint):
      raise InputError(
        f"{self.tokenizer}: not the vocabulary of this run ({tokenizer.fingerprint}, the run has "
        f"{run['tokenizer']}): damaged or replaced; put a copy there"
      )
    if tokenizer.template is None and (self.path / ORIGINAL).is_dir():
      tokenizer.template = find_template(self.path / ORIGINAL)  # older imports kept it only there
    return tokenizer

  def original(self) -> Path | None:
    """The folder with the small files of the Hugging Face model that the run, or the run that it
    started from, was converted from; None if there is none."""
    run, seen = self, set[Path]()
    while run.path not in seen and (run.path / "run.json").exists():
      if (run.path / ORIGINAL / "config.json").exists():
        return run.path / ORIGINAL
      seen.add(run.path)
      start = run.config().train.start_from
      run = Workdir(start) if start else run
    return None

  def keep_original(self) -> None:
    """Copies these files into this workdir, because the other run may be moved or removed."""
    files, here = self.original(), self.path / ORIGINAL
    if files is not None and files != here:
      with atomic_folder(here) as partial:
        shutil.copytree(files, partial, dirs_exist_ok=True)

  @property
  def store(self) -> Path:
    """The folder for the store of a corpus that was not prepared before."""
    return self.path / "store"

  @property
  def stores(self) -> Path:
    """The folder for the stores of other corpora that are evaluated."""
    return self.path / "stores"

  def check(
    self, config: Config, remedy: str = "choose another --workdir, or set the field back"
  ) -> None:
    """Checks that the folder is free, or holds a run of this config.

    Args:
      config: the config of a run.
      remedy: the end of the error about another config.

    Raises:
      InputError: the folder holds a run of another config, or checkpoints without run.json.
    """
    run = self._run()
    if run is None and (self.path / "checkpoints").exists():
      raise InputError(f"{self.path}: holds checkpoints but no run.json; choose another --workdir")
    if run is not None and (difference := config_lib.difference(run["config"], config)):
      raise InputError(f"{self.path} holds the run of another config ({difference}): {remedy}")

  def claim(self, config: Config, corpus: str, tokenizer: str = "") -> None:
    """Writes run.json.

    Args:
      config: the config of the run.
      corpus: the fingerprint of the corpus.
      tokenizer: the fingerprint of the vocabulary; empty: not known.

    Raises:
      InputError: the folder holds a run of another config, or on another corpus.
    """
    self.check(config)
    run = self._run()
    if run is not None and corpus != run["corpus"]:
      if older(corpus) == run["corpus"]:
        raise InputError(
          f"{self.path} holds a run on summaries of an older version, which read the pairs in "
          f"another order: start a new run with --{START_FROM}={self.path} and another --workdir"
        )
      raise InputError(
        f"{self.path} holds a run on another corpus: choose another --workdir, "
        f"or set config.data.path back"
      )
    self.path.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
      _write(self.path, config, corpus, tokenizer or (run or {}).get("tokenizer", ""))

  def copy_run(self, config: Config, folder: Path) -> None:
    """Writes the run.json of this run into another folder, with another config."""
    run = self._run()
    assert run is not None
    _write(folder, config, run["corpus"], run["tokenizer"])

  @contextlib.contextmanager
  def alone(self) -> Iterator[None]:
    """Makes the folder, and locks it, because two runs would damage each other's checkpoints.

    Raises:
      InputError: another process has locked it.
    """
    self.path.mkdir(parents=True, exist_ok=True)
    lock = locked(self.path) if jax.process_index() == 0 else contextlib.nullcontext()
    with alone(lock, self.path):
      yield

  def config(self) -> Config:
    """The config of the run's last start.

    Raises:
      InputError: there is no run in this folder.
    """
    run = self._run()
    if run is None:
      raise InputError(f"{self.path}: no run here; train first with --workdir={self.path}")
    return run["config"]

  def config_here(self) -> Config:
    """The same without a folder of compiled programs that this machine does not have."""
    config = self.config()
    folder = config.model.run.compilation_cache
    if folder == "auto" or os.access(folder, os.W_OK):
      return config
    return config.with_fields(run={"compilation_cache": ""})

  def standing(self) -> str:
    """A text that must be equal in all processes: a hash of run.json, and the newest checkpoint."""
    file, folder = self.path / "run.json", self.path / "checkpoints"
    if not file.exists():
      return "no run"
    whose = short_hash(file.read_bytes(), size=4)
    steps = [int(f.name) for f in folder.iterdir() if f.name.isdigit()] if folder.exists() else []
    return f"run {whose} at step {max(steps, default=0)}"

  def _run(self) -> dict[str, Any] | None:
    file = self.path / "run.json"
    if not file.exists():
      return None
    try:
      run = json.loads(file.read_text())
      is_whole = matches(run)
      sections = config_lib.migrated(run["config"])
      others = {"corpus": run["corpus"], "tokenizer": run.get("tokenizer", "")}
      run = {"config": config_lib.resolve(sections), **others}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise InputError(f"{file}: cannot be read ({error}); choose another --workdir") from None
    if not is_whole:
      raise InputError(
        f"{file}: damaged or edited; put a copy there, or remove its field sha256 to keep the edit"
      )
    return run


def _write(folder: Path, config: Config, corpus: str, tokenizer: str) -> None:
  """Writes run.json."""
  content = {"config": json.loads(config.to_json()), "corpus": corpus, "tokenizer": tokenizer}
  write_json(folder / "run.json", signed(content))


@contextlib.contextmanager
def alone(lock: contextlib.AbstractContextManager[Value], out: Path) -> Iterator[Value]:
  """Enters `files.locked` or `files.atomic_folder`, so that only one process writes `out`.

  Raises:
    InputError: another process has the lock.
  """
  with contextlib.ExitStack() as held:
    try:
      entered = held.enter_context(lock)
    except BlockingIOError:
      raise InputError(
        f"{out}: another process is writing it; wait for it, or choose another folder"
      ) from None
    yield entered


def open_inputs(config: Config, path: str, console: Console) -> tuple[Workdir, Dataset]:
  """The workdir at `path`, and the data that the config trains on; no device is used.

  The vocabulary is that of the run, if it has one already; else that of the run whose parameters it
  starts from; else that of the config.

  Args:
    config: the config of the run.
    path: the workdir.
    console: for progress.

  Raises:
    InputError: the workdir cannot be written, or has another config; the corpus is missing, cannot
      be read, or does not fit the model.
  """
  workdir = Workdir(folder_to_write(path, "--workdir"))
  workdir.check(config)
  saved = None
  begun = (workdir.path / "checkpoints").exists()
  if is_saved(workdir.tokenizer) or (begun and workdir.tokenizer.exists()):
    saved = workdir.load_tokenizer()  # without a checkpoint a start may have been stopped before it
  elif config.train.start_from:
    saved = Workdir(config.train.start_from, START_FROM).load_tokenizer()
  return workdir, open_training(config, workdir.store, console, saved)
