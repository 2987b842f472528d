"""Runs a config file. It can import modules of its folder, and an error names the line."""

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
NAME = "__config__"  # the name of a config file's module
LONGEST = 600  # the most characters of an error that a config file raises


def run(spec: str) -> Any:
  """Returns the result of the function `get_config` of a file.

  Args:
    spec: FILE, or FILE:VARIANT to call get_config("VARIANT").

  Raises:
    InputError: there is no such file, or it fails; the error names the line.
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
  """The file, and the variant after its last colon, if there is one."""
  if os.path.isfile(spec):
    return spec, ()
  name, colon, variant = spec.rpartition(":")
  if colon and os.path.isfile(name):
    return name, (variant,)
  what = "is a folder; name a file in it" if os.path.isdir(spec) else "no such file"
  raise InputError(f"--config={spec}: {what}")


class _Plain(Exception):
  """An error of a file as a whole, without a line."""


@contextlib.contextmanager
def _located(spec: str, name: str, folder: Path) -> Iterator[None]:
  """Converts an error in the body to one line, which names the line of the file or of an import.

  Raises:
    InputError: the body failed.
  """
  try:
    yield
  except (Exception, SystemExit) as error:
    if isinstance(error, AttributeError) and error.args and isinstance(error.args[0], KeyError):
      error = error.args[0].with_traceback(error.__traceback__)  # ml_collections wraps it
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
  """Adds a module to `sys.modules`, where dataclasses look up their module, during the body."""
  sys.modules[module.__name__] = module
  try:
    yield
  finally:
    sys.modules.pop(module.__name__, None)


def _is_in(folder: Path, filename: str) -> bool:
  """Whether a file is the user's own, and not of a package installed below the same folder."""
  file = Path(filename)
  others = [str(PACKAGE), *_installed()]
  return file.is_relative_to(folder) and not any(file.is_relative_to(other) for other in others)


def _installed() -> list[str]:
  return [*site.getsitepackages(), site.getusersitepackages()]


@contextlib.contextmanager
def _neighbours(folder: Path) -> Iterator[None]:
  """Makes the modules of a folder importable during the body.

  The standard library and installed packages are searched first. Afterwards the modules are removed
  from `sys.modules`, because another config may have neighbours of the same names.
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
    """The finder interface of `importlib`."""
    if path is not None or name in sys.stdlib_module_names or name == PACKAGE.name:
      return None
    find = importlib.machinery.PathFinder.find_spec
    spec = find(name, [self._folder])
    return None if spec is None or find(name, _installed()) else spec

  def take_out(self) -> dict[str, types.ModuleType]:
    """Removes all modules with names of this folder's modules from `sys.modules`; returns them."""
    tops = {name.partition(".")[0] for name in sys.modules} - {"__main__"}
    names = set()
    with contextlib.suppress(OSError):  # a folder that cannot be listed has no modules
      names = {file.partition(".")[0] for file in os.listdir(self._folder)}
    own = {top for top in tops & names if self.find_spec(top)}
    return {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] in own}
