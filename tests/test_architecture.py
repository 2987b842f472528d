"""The rules of docs/architecture.md: allowed imports, libraries in one file, no import effects."""

import ast
import dataclasses
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


def test_imports_go_one_way():
  found = []
  for file in set(FILES) - {PACKAGE / "__init__.py"}:
    allowed = MAY_IMPORT[room(file)] | {room(file)}
    for name in imports(file):
      parts = name.split(".")
      if parts[0] == "infini_jax" and len(parts) > 1 and parts[1] not in allowed:
        found.append(f"{file} imports {name}: {room(file)} may use {allowed}")
  assert not found, "\n".join(found)


def test_the_map_has_every_room_and_no_circle():
  assert set(MAY_IMPORT) == {room(file) for file in FILES if file.parent != PACKAGE} | {
    file.stem for file in PACKAGE.glob("*.py") if file.stem != "__init__"
  }, "docs/architecture.md lists other rooms than there are"
  left = dict(MAY_IMPORT)
  while leaves := [name for name, others in left.items() if not others & left.keys()]:
    left = {name: others for name, others in left.items() if name not in leaves}
  assert not left, f"these rooms import each other in a circle: {sorted(left)}"


MODULES = {
  ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): file
  for file in FILES
}


def needed(module):
  """The modules of the package that a module imports, at any place but for types alone."""
  file = MODULES[module]
  typing = {
    inner
    for node in nodes_of(file)
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    for inner in ast.walk(node)
  }
  found = set()
  for node in set(nodes_of(file)) - typing:
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      names = {f"{node.module}.{alias.name}" for alias in node.names}
      found |= names & MODULES.keys() or {node.module}
  return found & MODULES.keys() - {module}


def test_modules_do_not_import_each_other_in_a_circle():
  """An import inside of a function counts too: it may wait, but it may not hide a circle."""
  left = {module: needed(module) for module in MODULES}
  while leaves := [name for name, others in left.items() if not others & left.keys()]:
    left = {name: others for name, others in left.items() if name not in leaves}
  while roots := left.keys() - set().union(*left.values()):  # they import a circle, and are in none
    left = {name: others for name, others in left.items() if name not in roots}
  assert not left, f"these modules import each other in a circle: {sorted(left)}"


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


def test_a_file_is_one_room():
  lines = {file: len(file.read_text().splitlines()) for file in FILES}
  found = [f"{file} has {count} lines: divide it by purpose" for file, count in lines.items()
           if count > 400]  # fmt: skip
  assert not found, "\n".join(found)


def test_a_section_of_the_config_has_at_most_fifteen_fields():
  from infini_jax.config import SECTIONS

  for name, section in SECTIONS.items():
    count = len(dataclasses.fields(section))
    assert count <= 15, f"config.{name} has {count} fields: divide it by purpose"


# Operations that a user calls: each argument is one of the mathematics.
PUBLIC = {"attention", "infini_attention", "extend_stream", "prefix", "prepare"}
PUBLIC |= {"TrainLanes", "EvalLanes"}


def test_a_function_has_at_most_eight_arguments():
  found = []
  for file in FILES:
    nodes = nodes_of(file)
    classes = [n for n in nodes if isinstance(n, ast.ClassDef) and n.name in PUBLIC]
    made = {method for n in classes for method in n.body}
    for node in nodes:
      is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
      if is_function and node.name not in PUBLIC and node not in made:
        of = node.args
        every = (*of.posonlyargs, *of.args, *of.kwonlyargs)
        names = [a.arg for a in every if a.arg not in ("self", "cls")]
        if len(names) > 8:
          found.append(f"{file}: {node.name}({', '.join(names)}): group what belongs together")
  assert not found, "\n".join(found)


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


def of_systems(file):
  """Whether a file belongs to memory systems, or to their mathematics."""
  of_torch = "torch_model" in file.parts  # a program of its own, which an export copies
  return of_torch or file.is_relative_to(PACKAGE / "models/mixers") or room(file) == "ops"


def test_no_code_lists_memory_systems_outside_of_the_registries():
  from infini_jax.config import SYSTEMS

  registries = PACKAGE / "config/systems.py", PACKAGE / "models/mixers/__init__.py"
  of_older_configs = PACKAGE / "config/migration.py"  # to which nothing is added
  found = []
  for file in set(FILES) - {*registries, of_older_configs}:
    for node in nodes_of(file):
      if isinstance(node, ast.Dict | ast.Tuple | ast.List | ast.Set):
        parts = node.keys if isinstance(node, ast.Dict) else node.elts
        words = {part.value for part in parts if isinstance(part, ast.Constant)}
        if len(words) > 1 and words <= SYSTEMS.keys():
          found.append(f"{file.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}")
  assert not found, "\n".join(found)


def test_parameters_and_states_of_memory_systems_are_named_in_their_own_files():
  """Other code asks the mixer: `GATE`, `of_model`, `tensors`, `close`, `work`."""
  from infini_jax.ops import MemoryState

  own = set(MemoryState._fields)
  for file in (PACKAGE / "models/mixers").glob("*.py"):
    for node in nodes_of(file):
      if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        own |= {node.attr} if re.search(r"_[A-Z]+$", node.attr) else set()
  assert {"beta_H", "summary_PD", "M_BKEU"} <= own
  found = []
  for file in (file for file in FILES if not of_systems(file)):
    for node in nodes_of(file):
      text = node.value if isinstance(node, ast.Constant) else getattr(node, "attr", "")
      if isinstance(text, str) and set(re.findall(r"\w+", text)) & own:
        found.append(f"{file.relative_to(PACKAGE)}:{node.lineno}: {text}")
  assert not found, "\n".join(found)


def test_fields_of_a_memory_system_are_read_in_its_own_files():
  """Other code reads facts: what `System` itself has."""
  from infini_jax.config import SYSTEMS, System

  fields = {field.name for one in SYSTEMS.values() for field in dataclasses.fields(one)}
  fields -= set(dir(System))
  assert {"rule", "decay_init", "knn_layers"} <= fields
  found = []
  for file in (file for file in FILES if not of_systems(file) and room(file) != "config"):
    for node in nodes_of(file):
      asks = isinstance(node, ast.Call) and ast.unparse(node.func) in ("hasattr", "getattr")
      asked = ast.unparse(node) if asks or isinstance(node, ast.Attribute) else ""
      if re.search(rf"memory(\.|, ['\"])({'|'.join(sorted(fields))})\b", asked):
        found.append(f"{file.relative_to(PACKAGE)}:{node.lineno}: {asked}")
  assert not found, "\n".join(found)


def test_no_code_compares_the_name_of_a_task():
  """Code reads a fact (`config.tasks.TaskKind`, `tasks.Facts`); older results get theirs in one
  file."""
  from infini_jax.config import TASKS
  from infini_jax.tasks.published import FORMS

  names = {*TASKS, *FORMS, "perplexity"}
  found = []
  for file in set(FILES) - {PACKAGE / "evaluation/facts.py"}:
    for node in nodes_of(file):
      if isinstance(node, ast.Compare):
        of_task = re.search(r"\b(task|name|asked|written)\b", ast.unparse(node))
        sides = (node.left, *node.comparators)
        inside = isinstance(node.ops[0], ast.In | ast.NotIn)
        words = {n.value for side in sides[inside:] for n in ast.walk(side) if is_text(n)}
        if of_task and words & names:
          found.append(f"{file.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}")
  assert not found, "\n".join(found)


def is_text(node):
  return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_every_checkpoints_is_closed():
  """Every `Checkpoints` is made in a `with` statement."""
  for file in FILES:
    nodes = nodes_of(file)
    made = {n for n in nodes if isinstance(n, ast.Call) and ast.unparse(n.func) == "Checkpoints"}
    closed = {item.context_expr for n in nodes if isinstance(n, ast.With) for item in n.items}
    assert made <= closed, f"{file}: with Checkpoints(...) as saved"


def test_importing_changes_nothing_of_the_host_program_and_touches_no_device():
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
    "from jax._src import xla_bridge\n"
    "assert not xla_bridge.backends_are_initialized(), 'an import started a backend'\n"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
