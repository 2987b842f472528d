"""Golden files with the shardings of every config's parameters, and their bytes per chip.

`python -m tests.golden` writes the files again after an intended change; review the diff.
"""

import json
from pathlib import Path

from infini_jax.cli import load_config
from infini_jax.parallel.mesh import AXES
from infini_jax.plan.per_chip import chip_bytes, laid_out, spec_text
from tests.test_configs import CONFIGS, MESHES

FOLDER = Path(__file__).parent


def golden(config_file: Path) -> dict:
  """Shardings of all parameters, and the bytes per chip between steps."""
  import jax

  sizes = dict(zip(AXES, MESHES[config_file.stem], strict=True))
  state = laid_out(load_config([f"--config={config_file}"]), sizes)
  leaves = jax.tree_util.tree_leaves_with_path(state.params)
  return {
    "mesh": sizes,
    "bytes_a_chip": {
      "parameters": chip_bytes(state.params),
      "optimizer": chip_bytes(state.opt_state),
      "memory_state": chip_bytes((state.memory, state.warm)),
    },
    "parameters": {
      ".".join(key.key for key in path): f"{'x'.join(map(str, leaf.shape))} "
      f"{spec_text(leaf.sharding.spec)}"
      for path, leaf in leaves
    },
  }


def path_of(config_file: Path) -> Path:
  return FOLDER / f"{config_file.stem}.json"


def write() -> None:
  for file in CONFIGS:
    path_of(file).write_text(json.dumps(golden(file), indent=2) + "\n")
    print(path_of(file))
