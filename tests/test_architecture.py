"""The rules of docs/architecture.md: allowed imports, libraries in one file, no import effects."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "infini_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

MAP = (PACKAGE.parent / "docs" / "architecture.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| [^|]+ \|([^|]*)\|$", re.MULTILINE)
# A room may import itself, these rooms, and nothing else of the package.
MAY_IMPORT = {room: set(re.findall(r"`(\w+)`", others)) for room, others in ROW.findall(MAP)}


@functools.cache
def nodes_of(file):
  """The syntax of a file, node by node."""
  return (*ast.walk(ast.parse(file.read_text())),)


@functools.cache
def imports(file):
  """Every module that a file imports, at any place."""
  found = []
  for node in nodes_of(file):
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      found += [f"{node.module}.{alias.name}" for alias in node.names]
  return found


def room(file):
  part = file.relative_to(PACKAGE).parts[0]
  return part.removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_go_one_way(file):
  if file == PACKAGE / "__init__.py":
    return
  for name in imports(file):
    parts = name.split(".")
    if parts[0] == "infini_jax" and len(parts) > 1:
      allowed = MAY_IMPORT[room(file)] | {room(file)}
      assert parts[1] in allowed, f"{file.name} imports {name}: {room(file)} may use {allowed}"


def test_the_map_has_every_room_and_no_circle():
  assert set(MAY_IMPORT) == {room(file) for file in FILES if file.parent != PACKAGE} | {
    file.stem for file in PACKAGE.glob("*.py") if file.stem != "__init__"
  }, "docs/architecture.md lists other rooms than there are"
  left = dict(MAY_IMPORT)
  while leaves := [name for name, others in left.items() if not others & left.keys()]:
    left = {name: others for name, others in left.items() if name not in leaves}
  assert not left, f"these rooms import each other in a circle: {sorted(left)}"


@pytest.mark.parametrize(
  "library",
  ["orbax", "grain", "array_record", "tensorboardX", "wandb", "sentencepiece", "tokenizers"]
  + ["tensorflow_datasets", "datasets", "rouge_score", "safetensors", "gguf", "huggingface_hub"]
  + [
    "apache_beam",
    "jinja2",
    "matplotlib",
    "obstore",
    "lm_eval",
    "uvicorn",
    "prometheus_client",
    "sqlite3",
    "fcntl",
  ],
)
def test_each_library_is_imported_by_one_file(library):
  users = [f for f in FILES if any(name.split(".")[0] == library for name in imports(f))]
  assert len(users) == 1, f"{library} is imported by {users}: keep it behind one file"


def test_one_file_makes_consoles_and_progress_bars():
  for file in FILES:
    made = {ast.unparse(node.func) for node in nodes_of(file) if isinstance(node, ast.Call)}
    bars = [name for name in imports(file) if name.startswith("rich.progress")]
    if file != PACKAGE / "progress.py":
      bars += [name for name in imports(file) if name.split(".")[0] == "tqdm"]
      assert not bars and "Console" not in made, f"{file}: infini_jax.progress has them"


def test_only_one_file_renames_files():
  for file in FILES:
    if file != PACKAGE / "files.py":
      calls = [node for node in nodes_of(file) if isinstance(node, ast.Call)]
      assert not [*filter(_renames, calls)], f"{file}: infini_jax.files renames"


def _renames(call):
  """Whether a call renames a file: of `os`, of `shutil`, or of a path, with one argument."""
  name = ast.unparse(call.func)
  if name in ("os.replace", "os.rename", "os.renames", "shutil.move"):
    return True
  is_method = isinstance(call.func, ast.Attribute) and call.func.attr in ("replace", "rename")
  return is_method and len(call.args) == 1 and not call.keywords


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_file_is_one_room(file):
  lines = len(file.read_text().splitlines())
  assert lines <= 400, f"{file} has {lines} lines: divide it by purpose"


# Operations that a user calls: each argument is one of the mathematics.
PUBLIC = {"attention", "infini_attention", "extend_stream", "prefix", "prepare"}
PUBLIC |= {"TrainLanes", "EvalLanes"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_function_has_at_most_eight_arguments(file):
  nodes = nodes_of(file)
  classes = [n for n in nodes if isinstance(n, ast.ClassDef) and n.name in PUBLIC]
  made = {method for n in classes for method in n.body}
  for node in nodes:
    if isinstance(node, ast.FunctionDef) and node.name not in PUBLIC and node not in made:
      names = [a.arg for a in (*node.args.args, *node.args.kwonlyargs) if a.arg != "self"]
      assert len(names) <= 8, (
        f"{file}: {node.name}({', '.join(names)}): group what belongs together"
      )


def test_no_code_compares_the_name_of_a_memory_system():
  """Code reads a fact (`config.systems.System`) instead, so a new system changes no other file."""
  from infini_jax.config import SYSTEMS

  found = []
  for file in FILES:
    for node in nodes_of(file):
      if isinstance(node, ast.Compare):
        words = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
        if "mixer" in ast.unparse(node) and words & SYSTEMS.keys():
          found.append(f"{file.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}")
  assert not found, "\n".join(found)


def test_every_checkpoints_is_closed():
  """Every `Checkpoints` is made in a `with` statement."""
  for file in FILES:
    nodes = nodes_of(file)
    made = {n for n in nodes if isinstance(n, ast.Call) and ast.unparse(n.func) == "Checkpoints"}
    closed = {item.context_expr for n in nodes if isinstance(n, ast.With) for item in n.items}
    assert made <= closed, f"{file}: with Checkpoints(...) as saved"


def test_importing_changes_nothing_of_the_host_program():
  """No module changes the logging, warnings or signal handlers of the host program."""
  code = (
    "import importlib, logging, os, pkgutil, signal, sys, threading, warnings\n"
    "import jax, numpy, scipy.special  # these change what they change\n"
    "import infini_jax\n"
    "def state():\n"
    "  names = ('', 'absl', 'jax', 'asyncio', 'py.warnings')\n"
    "  logs = [(n, logging.getLogger(n)) for n in names]\n"
    "  return {'disable': logging.root.manager.disable, 'last': logging.lastResort,\n"
    "    **{n: (g.level, [*g.handlers], [*g.filters], g.propagate) for n, g in logs},\n"
    "    'warnings': [*map(str, warnings.filters)], 'show': warnings.showwarning,\n"
    "    'environment': dict(os.environ), 'path': [*sys.path],\n"
    "    'hooks': (sys.excepthook, threading.excepthook, sys.stdout, sys.stderr),\n"
    "    'signals': [signal.getsignal(n) for n in range(1, 32)]}\n"
    "before = state()\n"
    "for module in pkgutil.walk_packages(infini_jax.__path__, 'infini_jax.'):\n"
    "  importlib.import_module(module.name)\n"
    "after = state()\n"
    "changed = {n: (before[n], after[n]) for n in before if before[n] != after[n]}\n"
    "assert not changed, changed\n"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def test_importing_touches_no_device():
  code = (
    "import sys, infini_jax, infini_jax.config, infini_jax.data\n"
    "assert 'jax' not in sys.modules, 'the schema and the data need no jax'\n"
    "import infini_jax.ops, infini_jax.models, infini_jax.parallel, infini_jax.processes\n"
    "import infini_jax.training.loop, infini_jax.evaluation.evaluate, infini_jax.report.page\n"
    "import infini_jax.inference.command, infini_jax.cli\n"
    "from jax._src import xla_bridge\n"
    "assert not xla_bridge.backends_are_initialized(), 'an import started a backend'\n"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
