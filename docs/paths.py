"""Draws the way of one batch and of one parameter through the code: `make pictures`.

    python docs/paths.py [FILE]

The script trains `configs/demo.py` for one step on the pages of docs/, on a mesh of 8 CPU devices,
and records which functions are called with which arrays. The files are the first of each item in
the section "The path of one batch" of docs/architecture.md. The exit status is 1 if one of them is
not called, or if they are first called in another order. The default file is docs/paths.svg.
"""

import os
import re
import sys
import tempfile
import threading
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "infini_jax"
MESH = {"data": 2, "fsdp": 2, "tensor": 2}
WEIGHT = "w_q_DHE"  # of the parameter that is followed
# The functions of each file that are drawn: those that the batch goes through.
DRAWN = {
  "cli.py": ("main",),
  "training/loop.py": ("train",),
  "tasks/from_config.py": ("train_lanes",),
  "data/lanes/documents.py": ("TrainLanes.batch",),
  "training/step.py": ("train_step", "loss_fn"),
  "models/transformer.py": ("Transformer.__call__", "Attention.__call__"),
  "models/mixers/infini.py": ("Infini.__call__",),
  "ops/infini.py": ("infini_attention",),
  "ops/memory.py": ("prefix", "read", "mix"),
}
BATCH = ("tokens_BT", "targets_BT", "mask_BT", "reset_BS")
LINE, PAD = 17, 10


class Call:
  """The first call of a function: its arguments, as names and shapes."""

  def __init__(self, name: str, arguments: dict[str, Any]):
    self.name, self.arrays = name, dict(_arrays(arguments))


def _arrays(tree: dict[str, Any]):
  """Names that end in letters, and the shapes of the arrays."""
  for name, value in tree.items():
    if hasattr(value, "_asdict"):
      yield from _arrays(value._asdict())
    elif isinstance(value, dict):
      yield from _arrays({k: v for k, v in value.items() if isinstance(k, str)})
    elif getattr(value, "shape", None) and re.search(r"_[A-Z]+$", name):
      yield name, tuple(value.shape)


def record(run) -> dict[str, list[Call]]:
  """Calls `run`; returns the first calls of the functions in `DRAWN`, by file, in their order."""
  calls: dict[str, list[Call]] = {}
  seen = set()

  def on(frame, event, _):
    code = frame.f_code
    if event != "call" or not code.co_filename.startswith(str(PACKAGE)) or code in seen:
      return
    seen.add(code)
    file = str(Path(code.co_filename).relative_to(PACKAGE))
    name = code.co_qualname.replace("<locals>.", "")
    if not any(name == drawn or name.endswith(f".{drawn}") for drawn in DRAWN.get(file, ())):
      return
    calls.setdefault(file, []).append(Call(code.co_qualname, dict(frame.f_locals)))

  threading.setprofile(on)  # of the threads that will read batches
  sys.setprofile(on)
  try:
    run()
  finally:
    sys.setprofile(None)
    threading.setprofile(None)
  return calls


def listed() -> list[str]:
  """The files of the section, in their order."""
  page = (ROOT / "docs" / "architecture.md").read_text()
  section = page.partition("## The path of one batch")[2].partition("\n## ")[0]
  first = re.findall(r"^\d+\. [^`]*`([\w/]+\.py)`", section, re.MULTILINE)
  return [name.removeprefix("infini_jax/") for name in first]


def wrong(calls: dict[str, list[Call]], files: list[str]) -> str | None:
  """What the section says and the calls do not."""
  called = [name for name in calls if name in files]
  missing = [name for name in files if name not in calls]
  if missing:
    return f"docs/architecture.md names {', '.join(missing)}, which no batch goes through"
  if called != files:
    return f"docs/architecture.md names {files}; the order of the first calls is {called}"
  return None


def batch_boxes(calls: dict[str, list[Call]], files: list[str]) -> list[tuple[str, list[str]]]:
  """For each file a title, and lines: a function and its arrays."""
  boxes = []
  for file in files:
    lines = []
    for name in DRAWN[file]:
      found = [c for c in calls[file] if c.name == name or c.name.endswith(f".{name}")]
      if not found:
        raise SystemExit(f"{file}: {name} was not called; correct DRAWN")
      arrays = [
        f"{n} {'x'.join(map(str, shape))}"
        for n, shape in found[0].arrays.items()
        if file != "training/step.py" or n in BATCH
      ]
      lines.append(f"{name}({', '.join(arrays[:4])}{', ...' if len(arrays) > 4 else ''})")
    boxes.append((file, lines))
  return boxes


def parameter_boxes(config: Any) -> list[tuple[str, list[str]]]:
  """The same for one parameter: where it is made, kept, used and changed, and its layout."""
  import jax

  from infini_jax.models import abstract_params
  from infini_jax.parallel import make_mesh
  from infini_jax.parallel.mesh import COMPUTE, spec
  from infini_jax.training.optimizer import make_optimizer
  from infini_jax.training.step import abstract_state

  mesh = make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    state = abstract_state(config, make_optimizer(config), mesh)
    params = abstract_params(config.model, mesh)
  letters = "L" + WEIGHT.rpartition("_")[2]

  def of(tree):
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [x for path, x in pairs if WEIGHT in jax.tree_util.keystr(path)]

  def layout(array_spec):
    axes = dict(zip(letters, array_spec, strict=False))
    text = lambda a: "*".join(a) if isinstance(a, tuple) else a
    over = [f"{letter} over {text(a)}" for letter, a in axes.items() if a]
    return ", ".join(over) or "whole on each device"

  (weight,), moments = of(params), of(state.opt_state)
  shape = "x".join(map(str, weight.shape))
  used = spec(letters[1:], COMPUTE)
  return [
    ("models/transformer.py", [f"Attention makes {WEIGHT}, once per layer"]),
    ("parallel/mesh.py", [f"stored as {letters} {shape}", layout(weight.sharding.spec)]),
    ("runs/checkpoints.py", ["saved and restored in this layout"]),
    ("parallel/weights.py", [f"product() gathers it: {layout((None, *used))}"]),
    ("parallel/weights.py", ["its gradient is scattered:", layout(weight.sharding.spec)]),
    ("training/optimizer.py", [f"{len(moments)} moments: {layout(moments[0].sharding.spec)}"]),
    ("training/step.py", ["train_step adds the update, in place"]),
  ]


def picture(columns: list[tuple[str, list[tuple[str, list[str]]], int]]) -> str:
  """The boxes of each column, one below the other, with arrows between them, as SVG."""
  parts, x, bottom = [], PAD, 0
  for title, boxes, width in columns:
    y = 2 * LINE + PAD
    parts.append(f'<text x="{x}" y="{LINE + 4}" class="t">{escape(title)}</text>')
    for i, (name, lines) in enumerate(boxes):
      height = (len(lines) + 1) * LINE + PAD
      if i:
        at = x + 24
        parts.append(f'<path d="M{at} {y - 14} V{y - 3}" marker-end="url(#a)"/>')
      parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4"/>')
      parts.append(f'<text x="{x + 8}" y="{y + LINE}" class="f">{escape(name)}</text>')
      for k, line in enumerate(lines):
        parts.append(f'<text x="{x + 8}" y="{y + (k + 2) * LINE}">{escape(line)}</text>')
      y += height + 16
    bottom, x = max(bottom, y), x + width + 3 * PAD
  style = (
    "text{font:12px ui-monospace,monospace;fill:#222}.t{font:bold 15px sans-serif}"
    ".f{font-weight:bold;fill:#0b4f8a}rect{fill:#f4f7fb;stroke:#8aa4c0}path{stroke:#555}"
  )
  arrow = (
    '<marker id="a" markerWidth="8" markerHeight="8" refX="4" refY="3" orient="auto">'
    '<path d="M0 0 L6 3 L0 6 z" fill="#555"/></marker>'
  )
  size = f'width="{x}" height="{bottom}" viewBox="0 0 {x} {bottom}"'
  ground = f'<path d="M0 0 H{x} V{bottom} H0 z" fill="#fff" style="stroke:none"/>'
  head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>'
  return "\n".join([head, f"<defs>{arrow}</defs>", ground, *parts, "</svg>"]) + "\n"


def main() -> int:
  """Writes the picture; returns an exit status."""
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
  from infini_jax.cli import main as command
  from infini_jax.config import load_config

  path = str(ROOT / "configs" / "demo.py")
  sets = {f"mesh.{axis}": size for axis, size in MESH.items()}
  sets |= {"train.steps": 1, "data.path": str(ROOT / "docs"), "data.tokenizer": "bytes"}
  sets |= {"model.heads": 8, "model.kv_heads": 4, "model.head_dim": 24}
  flags = [f"--config.{name}={value}" for name, value in sets.items()]
  with tempfile.TemporaryDirectory() as workdir:
    arguments = ["train", f"--config={path}", f"--workdir={workdir}", *flags]
    calls = record(lambda: command(arguments))
  files = listed()
  if message := wrong(calls, files):
    print(message)
    return 1
  columns = [
    ("One batch", batch_boxes(calls, files), 720),
    (f"One parameter: {WEIGHT}", parameter_boxes(load_config([f"--config={path}", *flags])), 400),
  ]
  out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "paths.svg"
  out.write_text(picture(columns))
  print(out)
  return 0


if __name__ == "__main__":
  sys.exit(main())
