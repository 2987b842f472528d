"""Config files of users: imports of neighbours, errors with their lines, fields set by flags."""

import copy
import dataclasses
import os
import pickle
import sys

import ml_collections
import pytest

from infini_jax.config import (
  SECTIONS,
  Config,
  InputError,
  arguments,
  base_config,
  load_config,
  resolve,
)
from tests.tiny import config

WHOLE = [
  f"{section}.{field.name}"
  for section, schema in SECTIONS.items()
  for field in dataclasses.fields(schema)
  if type(field.default) is int
]


def project(folder, steps, **files):
  """A config whose number of steps is in a module beside it, and a package beside it."""
  (folder / "parts").mkdir(parents=True)
  (folder / "shared.py").write_text(f"STEPS = {steps}\n")
  (folder / "parts" / "__init__.py").write_text("from shared import STEPS\n")
  (folder / "parts" / "shapes.py").write_text(f"from . import STEPS\nWIDTH = {steps}\n")
  for name, text in files.items():
    (folder / f"{name}.py").write_text(text)
  (folder / "mine.py").write_text(
    "from __future__ import annotations\n"
    "import dataclasses\n"
    "from infini_jax.config import base_config\n"
    "from shared import STEPS\n"
    "@dataclasses.dataclass\n"
    "class Length:\n"
    "  steps: int\n"
    "def get_config(scale='1'):\n"
    "  from parts.shapes import WIDTH\n"
    "  import json, numpy, random\n"
    "  assert random.randint and json.dumps and numpy.zeros\n"
    "  config = base_config()\n"
    "  config.train.steps = Length(STEPS).steps * int(scale)\n"
    "  config.model.width = WIDTH\n"
    "  return config\n"
  )
  return folder / "mine.py"


def refused(*arguments):
  with pytest.raises(InputError) as error:
    load_config(arguments)
  assert "\n" not in str(error.value)
  return str(error.value)


def test_a_config_in_a_folder_that_cannot_be_listed_is_read(tmp_path, monkeypatch):
  file, listed = tmp_path / "mine.py", os.listdir
  file.write_text("from infini_jax.config import base_config\nget_config = base_config\n")

  def listdir(folder="."):
    if str(folder) == str(tmp_path):
      raise PermissionError(13, "Permission denied", folder)
    return listed(folder)

  monkeypatch.setattr(os, "listdir", listdir)
  assert load_config([f"--config={file}"]) == Config()


def test_neighbours_of_a_config_can_be_imported_and_are_forgotten(tmp_path):
  first, second = project(tmp_path / "a", 30), project(tmp_path / "b:c", 40)
  path, finders = [*sys.path], [*sys.meta_path]
  for file, steps in ((first, 30), (second, 40), (first, 30)):
    c = load_config([f"--config={file}"])
    assert (c.train.steps, c.model.width) == (steps, steps)
  assert load_config([f"--config={second}:3"]).train.steps == 120, "a colon in the path"
  assert not {"shared", "parts", "parts.shapes"} & set(sys.modules)
  assert (sys.path, sys.meta_path) == (path, finders)
  assert not list(tmp_path.rglob("__pycache__")), "nothing is left in a person's folder"


def test_neighbours_take_the_names_of_nothing_that_is_installed(tmp_path, monkeypatch):
  wrong = "raise AssertionError('the neighbour')\n"
  names = ("random", "json", "numpy", "jax", "infini_jax", "tests")
  file = project(tmp_path / "a", 30, **{name: wrong for name in names[:-1]}, tests="STEPS = 5\n")
  with open(file, "a") as f:
    f.write("from tests import STEPS\n")  # the host program also has a module of this name
  host = sys.modules["tests"]
  assert load_config([f"--config={file}"]).train.steps == 5
  assert sys.modules["tests"] is host


@pytest.mark.parametrize(
  "line,said",
  [
    ("config.train.steps = '100'", "config.train.steps='100': expected int"),
    ("config.train.steps = 1e3", "config.train.steps=1000.0: expected int; write 1000"),
    ("config.train.steps = None", "config.train.steps=None: expected int"),
    ("config.train.update(steps='x')", "config.train.steps='x': expected int"),
    ("config.update({'train': {'steps': 'x'}})", "config.train.steps='x': expected int"),
    ("config.train = {'steps': 'x'}", "config.train.steps='x': expected int"),
    ("config.train = 5", "config.train=5: a section of fields is expected here"),
    ("config.evaluation.lengths = (1, 'b')", "lengths=(1, 'b'): expected several int"),
    ("config.optimizer.eps = 10 ** 400", "must be a finite number"),
    ("config.train.stepz = 3", "config.train.stepz: no such field; did you mean 'steps'?"),
    ("config.trian.steps = 3", "config.trian: no such section; did you mean 'train'?"),
    ("config.unlock().train.stepz = 3", "did you mean 'steps'?"),
    ("1 / 0", "ZeroDivisionError: division by zero"),
    ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ("raise SystemExit('no')", "SystemExit: no"),
    ("raise ValueError('a\\nb')", "ValueError: a b"),
  ],
)
def test_an_error_in_a_config_is_named_with_its_line(tmp_path, line, said):
  text = "from infini_jax.config import base_config\ndef get_config():\n  config = base_config()\n"
  own, other = tmp_path / "own.py", tmp_path / "other.py"
  own.write_text(f"{text}  {line}\n  return config\n")
  message = refused(f"--config={own}")
  assert f'File "{own}", line 4, in get_config' in message and said in message, message
  other.write_text(own.read_text())
  own.write_text("from other import get_config\n")
  message = refused(f"--config={own}")
  assert f'File "{other}", line 4, in get_config' in message and said in message, message


def test_a_file_that_is_not_a_config_is_named(tmp_path):
  own = tmp_path / "own.py"
  for text, said in (
    ("x = (\n", f'File "{own}", line 1: SyntaxError'),
    ("x = 1\n", "has no function get_config()"),
    ("def get_config(kind): pass\n", "needs a variant: --config=FILE:VARIANT"),
    ("def get_config(): return 5\n", "get_config() must return the config of base_config()"),
    ("import own_broken\n", f'File "{tmp_path / "own_broken.py"}", line 2: SyntaxError'),
  ):
    (tmp_path / "own_broken.py").write_text("y = 1\nx = = 2\n")
    own.write_text(text)
    assert said in refused(f"--config={own}")
  own.write_text("from infini_jax.config import base_config as get_config\n")
  assert "takes no variant; leave ':x' out" in refused(f"--config={own}:x")
  assert "is a folder" in refused(f"--config={tmp_path}")
  assert "no such file" in refused(f"--config={tmp_path / 'none.py'}:x")
  assert "no such file" in refused("--config=" + "x" * 5000)


def test_a_copy_of_the_base_is_a_config_too():
  base = base_config()
  base.train.steps = 77
  base.data.segments = base.train.get_ref("steps")
  for made in (
    copy.deepcopy(base),
    pickle.loads(pickle.dumps(base)),
    base.copy_and_resolve_references(),
    ml_collections.ConfigDict(base),
    ml_collections.FrozenConfigDict(base),
    base.to_dict(),
  ):
    c = resolve(made)
    assert (c.train.steps, c.data.segments) == (77, 77)


def test_flags_behind_an_equals_sign_or_a_blank_and_one_config(tmp_path):
  own = tmp_path / "own.py"
  own.write_text(
    "from infini_jax.config import base_config\n"
    "def get_config():\n"
    "  config = base_config()\n"
    "  config.data.segments = config.train.get_ref('steps')\n"
    "  return config\n"
  )
  fields = (
    "--config.train.steps",
    "5",
    "--config.infini.gate_init",
    "-5",
    "--config.data.path",
    "",
  )
  c = load_config(["--config", str(own), *fields])
  assert (c.train.steps, c.model.memory.gate_init, c.data.path, c.data.segments) == (5, -5.0, "", 5)
  steps = lambda *more: load_config([f"--config={own}", *more]).train.steps
  assert steps("--config.train.steps=5", "--config.train.steps=9") == 9, "the last one counts"
  for knocked in ("empty,reads", "(empty,reads)", "('empty','reads')", "['empty', 'reads']"):
    c = load_config([f"--config={own}", f"--config.evaluation.knock_out={knocked}"])
    assert c.evaluation.knock_out == ("empty", "reads")
  for other in (own, tmp_path / "none.py"):
    assert "is given 2 times" in refused(f"--config={own}", f"--config={other}")
  assert "has no value" in refused(f"--config={own}", "--config.train.steps")
  assert "has no value" in refused(
    f"--config={own}", "--config.train.steps", "--config.data.path=x"
  )
  for wrong in (
    "-config.train.steps=5",
    "config.train.steps=5",
    "x",
    "--config.train=5",
    "--config.",
  ):
    assert f"unknown argument {wrong!r}" in refused(f"--config={own}", wrong)
  for truth, text in ((True, "true"), (True, "1"), (False, "False"), (False, "0")):
    c = load_config([f"--config={own}", f"--config.log.tensorboard={text}"])
    assert c.log.tensorboard is truth
  assert "expected True or False" in refused(f"--config={own}", "--config.log.tensorboard=off")
  assert "such as 0.001" in refused(f"--config={own}", "--config.optimizer.eps=1e-3f")


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_are_read_as_python_writes_them_or_refused_in_one_line(tmp_path, name):
  own = tmp_path / "own.py"
  own.write_text("from infini_jax.config import base_config as get_config\n")
  for text, said in (
    ("1e3", "expected a whole number; write 1000"),
    ("1000.0", "expected a whole number; write 1000"),
    ("1.5", "expected a whole number"),
    ("True", "expected a whole number"),
    ("", "expected a whole number"),
    ("inf", "expected a whole number"),
    (str(2**31), "must be at most 2147483647"),
    ("9" * 5000, "expected a whole number"),
  ):
    message = refused(f"--config={own}", f"--config.{name}={text}")
    assert said in message and f"config.{name}=" in message, message
  for text, number in (("1_000", 1000), ("0x10", 16), ("10 ", 10), ("007", 7)):
    assert arguments._value(*name.split("."), text) == number


def test_the_runs_own_config_is_the_default_and_a_file_changes_what_it_sets(tmp_path):
  own = config("books", model={"width": 48}, evaluation={"split": "validation", "lanes": 4})
  assert load_config([], own) == own
  changed = load_config(["--config.evaluation.lanes=2"], own)
  assert dataclasses.replace(changed, evaluation=own.evaluation) == own
  assert (changed.evaluation.lanes, changed.evaluation.split) == (2, "validation")
  file = tmp_path / "evaluation.py"
  file.write_text(
    "from infini_jax.config import base_config\n\n"
    "def get_config():\n"
    "  config = base_config()\n"
    "  assert config.model.width == 48, 'the run stands in place of the defaults'\n"
    "  config.evaluation.max_tokens = 7\n"
    "  return config\n"
  )
  changed = load_config([f"--config={file}", "--config.data.path=other"], own)
  assert (changed.model, changed.data.path) == (own.model, "other")
  assert (changed.evaluation.max_tokens, changed.evaluation.lanes) == (7, 4)
  file.write_text("def get_config():\n  return {'evaluation': {'max_tokens': 9}}\n")
  assert load_config([f"--config={file}"], own).model == own.model
  assert base_config().model.width == Config().model.width, "for the file alone"
  with pytest.raises(InputError, match="--config=FILE is missing"):
    load_config([])
