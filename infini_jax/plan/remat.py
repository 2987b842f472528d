"""`config.run.remat='auto'`: what a layer keeps for its gradient, chosen by the chip's memory."""

from collections.abc import Callable

from infini_jax.config import Config
from infini_jax.parallel import check_divisible, make_mesh
from infini_jax.parallel.chips import Chip, chip_of
from infini_jax.plan.estimate import estimate

FASTEST_FIRST = "dots", "full"
SHARE = 0.9  # of the memory that may be planned, for the estimate is not exact


def settled_here(config: Config, say: Callable[[str], None]) -> Config:
  """`settled` on the devices of this process."""
  mesh = make_mesh(config.mesh)
  check_divisible(config, mesh)
  chip = chip_of(mesh.devices.flat[0].device_kind)
  return settled(config, dict(mesh.shape), chip, say)


def settled(
  config: Config, sizes: dict[str, int], chip: Chip | None, say: Callable[[str], None]
) -> Config:
  """The config with the fastest policy that fits, instead of 'auto'; else as it is.

  On a CPU it is 'full': memory that is written and read again costs more there than its products.

  Args:
    config: the config.
    sizes: of the mesh, by axis.
    chip: what runs it; None: a CPU, or a chip that is not known.
    say: prints a line.
  """
  if config.model.run.remat != "auto":
    return config
  plans = [config.with_fields(run={"remat": policy}) for policy in FASTEST_FIRST]
  if chip is None:
    return plans[-1]
  for plan in plans:
    needed = estimate(plan, sizes, chip).total
    if needed <= SHARE * chip.memory:
      break
  policy = plan.model.run.remat
  have = chip.memory / 2**30
  say(f"config.run.remat='auto' is {policy!r}: {needed / 2**30:.2f} GiB of {have:.0f}, estimated")
  return plan
