"""The command `infini-jax plan`: what a run needs, and whether it fits, before it is started."""

import dataclasses
import math
import re
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import jax
from rich.console import Console

from infini_jax.config import Config, InputError, MeshConfig
from infini_jax.files import write_json
from infini_jax.parallel import check_divisible
from infini_jax.parallel.chips import CHIPS, Chip
from infini_jax.parallel.mesh import AXES, mesh_sizes
from infini_jax.parallel.slices import is_size, nearest, nearest_hosts, slices, together
from infini_jax.paths import file_to_write
from infini_jax.plan import report
from infini_jax.plan.compiled import compile_step
from infini_jax.plan.estimate import estimate
from infini_jax.plan.gpus import gpu_devices
from infini_jax.plan.memories import memories, of_pattern, show
from infini_jax.plan.per_chip import abstract_mesh
from infini_jax.plan.remat import settled
from infini_jax.plan.tpus import tpu_devices
from infini_jax.plan.verdict import judge
from infini_jax.progress import track

DEFAULT_CHIP = "v5p"
BEGINS = rb"""\{\s*"chip"|\[\s*\{\s*"mixer\""""  # how a file of --json begins


def plan(
  config: Config, args: Namespace, console: Console, config_of: Callable[[str], Config]
) -> bool:
  """Estimates a training step, compiles it if requested and possible, and prints the verdict.

  Args:
    config: the experiment.
    args: `table`, `topology`, `mesh`, `chip`, `compile` and `json` of the command line.
    console: where tables and progress are printed.
    config_of: returns the same experiment with the memory system of the given name.

  Returns:
    False if it does not fit.

  Raises:
    InputError: the mesh does not fit the devices or the model, the chip is unknown, the slice does
      not exist, the compiler is missing or has another version, or a file cannot be written.
  """
  jax.config.update("jax_platforms", "cpu")  # leaves the devices to other programs
  file = None if args.json is None else file_to_write(args.json, "--json", begins=BEGINS)

  def write(content: Any) -> None:
    if file is not None:
      write_json(file, content)

  if args.table == "memory":
    systems = memories(config_of) + of_pattern(config.model)
    show(systems, console)
    write([system._asdict() for system in systems])
    return True
  chip, count = _where(args)
  given = _axes(args.mesh) if args.mesh else None
  if given is not None:
    mesh = MeshConfig(**{"data": -1 if count else 1, **given})
  else:
    mesh = config.mesh
  if count and chip.platform == "tpu":
    count *= mesh.dcn  # a topology is one slice, and dcn is the number of slices
  needs = math.prod(getattr(mesh, axis) for axis in AXES)
  sizes = dict(zip(AXES, mesh_sizes(mesh, count or needs), strict=True))
  if not count:
    _check_together(chip, sizes, args.mesh)
  config = dataclasses.replace(config, mesh=mesh)
  check_divisible(config, abstract_mesh(sizes))  # type: ignore[arg-type]
  devices = None
  if count and args.compile:
    tpus = chip.platform == "tpu"
    devices = tpu_devices(args.topology, mesh.dcn) if tpus else gpu_devices(args.topology)

  config = settled(config, sizes, chip, lambda line: console.print(line, highlight=False))
  made = estimate(config, sizes, chip)
  report.show(made, console)
  found = None
  if devices is not None:
    with track(console, f"compile for {args.topology}"):
      found = compile_step(config, devices)
    report.show_compiled(found, made, console)
  refused = found is not None and not found.fits
  verdict = judge(made, None if found is None else found.peak, refused=refused)
  by = "estimated" if found is None else "XLA's own peak"
  report.show_verdict(verdict, by, console)
  write(report.as_json(made, found, verdict))
  return verdict.fits


def _where(args: Namespace) -> tuple[Chip, int]:
  """The chip, and the number of chips of the topology; 0: there is none, the mesh gives it."""
  if not args.topology:
    if not args.mesh:
      raise InputError("give --topology=v5p:4x4x4 (or h200:8), or --mesh=fsdp=16,seq=4")
    return _chip(args.chip or DEFAULT_CHIP, "--chip"), 0
  if args.chip:
    raise InputError(f"--chip={args.chip}: --topology={args.topology} names its chip; leave it out")
  form = re.fullmatch(r"(\w+):([1-9]\d*(?:x[1-9]\d*)*)", args.topology, re.ASCII)
  if form is None:
    raise InputError(
      f"--topology={args.topology!r}: give a TPU's, such as v5e:4x4 or v5p:4x4x4, or GPUs of one "
      f"host or more, such as h200:8 or h100:4x8"
    )
  chip = _chip(form[1], "--topology")
  shape = tuple(map(int, form[2].split("x")))
  if chip.platform == "gpu" and (others := nearest_hosts(chip, shape)):
    raise InputError(
      f"--topology={args.topology}: a host has {chip.island} of them, and several hosts are used "
      f"whole; give {others}"
    )
  if chip.platform == "tpu" and shape not in slices(chip.name):
    others = ", ".join(f"{chip.name}:{size}" for size in nearest(chip, shape))
    raise InputError(
      f"--topology={args.topology}: {chip.name} has no such slice; nearest: {others} "
      f"(several slices: --config.mesh.dcn=COUNT)"
    )
  return chip, math.prod(shape)


def _check_together(chip: Chip, sizes: dict[str, int], mesh: str) -> None:
  """Raises InputError if no slice or host has as many chips as the mesh needs in one slice."""
  count = together(chip, sizes)
  if is_size(chip, count):
    return
  others = nearest(chip, (count,))
  if chip.platform == "tpu":
    raise InputError(
      f"--mesh={mesh}: {chip.name} has no slice of {count} chips; nearest: "
      f"{', '.join(others)} (several slices: dcn=COUNT)"
    )
  raise InputError(
    f"--mesh={mesh}: a host has {chip.island} {chip.name}, and several hosts are used whole; make "
    f"the product {' or '.join(others)}, not {count}"
  )


def _chip(name: str, flag: str) -> Chip:
  if name not in CHIPS:
    raise InputError(f"{flag}: no chip {name!r}; there are {', '.join(CHIPS)}")
  return CHIPS[name]


def _axes(text: str) -> dict[str, int]:
  """Parses 'fsdp=16,seq=4' to sizes by axis."""
  sizes = {}
  for part in text.split(","):
    axis, _, size = part.partition("=")
    if axis not in AXES or not re.fullmatch(r"[1-9]\d*", size):
      raise InputError(
        f"--mesh={text}: {part!r} is no AXIS=SIZE, such as --mesh=fsdp=16,seq=4; the axes are "
        f"{', '.join(AXES)}"
      )
    if axis in sizes:
      raise InputError(f"--mesh={text}: {axis} is given twice; name each axis once")
    sizes[axis] = int(size)
  return sizes
