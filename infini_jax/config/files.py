"""Runs a person's config file: its neighbours can be imported, and a fault in it has its line."""

import contextlib
import importlib
import importlib.machinery
import inspect
import os
import site
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infini_jax.config.bounds import InputError

PACKAGE = Path(__file__).parent.parent
NAME = "__config__"  # of a config file's module
LONGEST = 600  # characters of what a config file raises


def run(spec: str) -> Any:
  """What the `get_config` of a file returns.

  Args:
    spec: FILE, or FILE:VARIANT, where get_config("VARIANT") is called.

  Raises:
    InputError: no such file, or one that fails; the line is named.
  """
  name, variant = _divide(os.path.expanduser(spec))
  file = Path(name).absolute()
  module = types.ModuleType(NAME)
  module.__file__ = str(file)
  with _neighbours(file.parent), _known(module), _located(spec, name, file.parent):
    exec(compile(file.read_bytes(), name, "exec"), module.__dict__)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
      raise _Plain("has no function get_config()")
    try:
      inspect.signature(get_config).bind(*variant)
    except TypeError:
      if variant:
        raise _Plain(f"get_config() takes no variant; leave ':{variant[0]}' out") from None
      raise _Plain("get_config() needs a variant: --config=FILE:VARIANT") from None
    return get_config(*variant)


def _divide(spec: str) -> tuple[str, tuple[str, ...]]:
  """The file, and the variant behind its last colon, if there is one."""
  if os.path.isfile(spec):
    return spec, ()
  name, colon, variant = spec.rpartition(":")
  if colon and os.path.isfile(name):
    return name, (variant,)
  what = "is a folder; name a file in it" if os.path.isdir(spec) else "no such file"
  raise InputError(f"--config={spec}: {what}")


class _Plain(Exception):
  """What is wrong with a file as a whole."""


@contextlib.contextmanager
def _located(spec: str, name: str, folder: Path) -> Iterator[None]:
  """Says in one line where a file, or a neighbour of it, fails.

  Raises:
    InputError: what is done in here failed.
  """
  try:
    yield
  except (Exception, SystemExit) as error:
    if isinstance(error, AttributeError) and error.args and isinstance(error.args[0], KeyError):
      error = error.args[0].with_traceback(error.__traceback__)  # so ml_collections wraps them
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    where = ""
    if isinstance(error, SyntaxError) and error.lineno:
      where, what = f'File "{error.filename}", line {error.lineno}: ', f"SyntaxError: {error.msg}"
    elif isinstance(error, _Plain):
      what = str(error)
    else:
      frames = traceback.extract_tb(error.__traceback__)
      own = [frame for frame in frames if frame.filename == name or _is_in(folder, frame.filename)]
      if own:
        where = f'File "{own[-1].filename}", line {own[-1].lineno}, in {own[-1].name}: '
    raise InputError(f"--config={spec}: {where}{' '.join(what.split())[:LONGEST]}") from None


@contextlib.contextmanager
def _known(module: types.ModuleType) -> Iterator[None]:
  """Makes a module known by its name, where dataclasses look their own up."""
  sys.modules[module.__name__] = module
  try:
    yield
  finally:
    sys.modules.pop(module.__name__, None)


def _is_in(folder: Path, filename: str) -> bool:
  """Whether a file is a person's own: what is installed may lie in the same folder."""
  file = Path(filename)
  others = [str(PACKAGE), *_installed()]
  return file.is_relative_to(folder) and not any(file.is_relative_to(other) for other in others)


def _installed() -> list[str]:
  return [*site.getsitepackages(), site.getusersitepackages()]


@contextlib.contextmanager
def _neighbours(folder: Path) -> Iterator[None]:
  """Makes the modules of a folder importable, for as long as this lasts.

  They come behind the standard library and all that is installed, and before everything else. They
  are forgotten afterwards, for another config may have neighbours of the same names.
  """
  finder = _Finder(folder)
  importlib.invalidate_caches()
  hidden = finder.take_out()
  written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
  sys.meta_path.insert(0, finder)
  try:
    yield
  finally:
    sys.meta_path.remove(finder)
    sys.dont_write_bytecode = written
    finder.take_out()
    sys.modules.update(hidden)


class _Finder:
  """Finds the modules of a folder."""

  def __init__(self, folder: Path):
    self._folder = str(folder)

  def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
    """As `importlib` asks."""
    if path is not None or name in sys.stdlib_module_names or name == PACKAGE.name:
      return None
    find = importlib.machinery.PathFinder.find_spec
    spec = find(name, [self._folder])
    return None if spec is None or find(name, _installed()) else spec

  def take_out(self) -> dict[str, types.ModuleType]:
    """Takes all modules whose names are of the folder's out of those that are imported."""
    tops = {name.partition(".")[0] for name in sys.modules} - {"__main__"}
    own = {top for top in tops if self.find_spec(top)}
    return {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] in own}
