"""Decides whether a step fits, and estimates which changes would make it fit."""

import dataclasses
import math
from collections.abc import Callable, Iterator

from infini_jax.config import Config, InputError, check
from infini_jax.parallel import check_divisible
from infini_jax.parallel.chips import Chip
from infini_jax.parallel.slices import is_size, together
from infini_jax.plan.estimate import Estimate, estimate
from infini_jax.plan.per_chip import abstract_mesh

LEAST_CHUNK = 128  # tokens; smaller blocks of logits save no memory that matters

Plan = tuple[Config, dict[str, int], Chip]


@dataclasses.dataclass(frozen=True)
class Change:
  """Changed settings, the bytes per chip with them, and whether that fits."""

  settings: str
  bytes: float
  fits: bool


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Whether a step fits a chip's memory.

  Attributes:
    fits: whether it does.
    needed: bytes per chip: XLA's peak if the step was compiled, else the estimate.
    have: bytes of the chip's memory.
    biggest: the consumer that needs most.
    changes: if it does not fit: each change that is enough alone; if none is, one that combines
      several. More chips come last.
  """

  fits: bool
  needed: float
  have: float
  biggest: str
  changes: tuple[Change, ...] = ()


def judge(made: Estimate, measured: float | None = None, *, refused: bool = False) -> Verdict:
  """Compares a step with the chip's memory, and searches for changes if it does not fit.

  Args:
    made: the estimate.
    measured: XLA's peak in bytes if the step was compiled; it scales the estimates of changes.
    refused: whether XLA could not allocate it, regardless of the figures.
  """
  needed = made.total if measured is None else measured
  have = float(made.chip.memory)
  if refused:  # XLA reserves some memory, and reports only a part of what it needs
    needed = max(needed, made.total)
    have = min(have, 0.98 * needed)
  biggest = max(made.bytes, key=lambda name: made.bytes[name])
  if needed <= have:
    return Verdict(True, needed, have, biggest)
  return Verdict(False, needed, have, biggest, _changes(made, have, needed / made.total))


def _changes(made: Estimate, have: float, scale: float) -> tuple[Change, ...]:
  start = (made.config, made.sizes, made.chip)

  def change(plan: Plan, held: float) -> Change:
    return Change(_difference(start, plan), held, held <= have)

  def follow(move: Callable[[Plan], Plan | None], plan: Plan, held: float) -> tuple[Plan, float]:
    """Repeats a move until the step fits or the move saves less than 0.5%."""
    while held > have and (after := move(plan)):
      less = scale * estimate(*after).total
      if less > 0.995 * held:
        break
      plan, held = after, less
    return plan, held

  enough, plan, held = [], start, scale * made.total
  for move in MOVES:
    alone = change(*follow(move, start, scale * made.total))
    if alone.fits:
      enough.append(alone)
    plan, held = follow(move, plan, held)
  together = change(plan, held)
  return tuple(enough) or ((together,) if together.settings else ())


def _fewer_logits(plan: Plan) -> Plan | None:
  chunk = plan[0].train.loss_chunk
  return _set(plan, train={"loss_chunk": chunk // 2}) if chunk // 2 >= LEAST_CHUNK else None


def _rematerialize(plan: Plan) -> Plan | None:
  return _set(plan, run={"remat": "full"}) if plan[0].model.run.remat != "full" else None


def _accumulate(plan: Plan) -> Plan | None:
  return _set(plan, train={"accumulate": 2 * plan[0].train.accumulate})


def _data_to_fsdp(plan: Plan) -> Plan | None:
  sizes = plan[1]
  even = sizes["data"] % 2 == 0
  return _mesh(plan, data=sizes["data"] // 2, fsdp=2 * sizes["fsdp"]) if even else None


def _fewer_lanes(plan: Plan) -> Plan | None:
  lanes = plan[0].data.lanes
  return _set(plan, data={"lanes": lanes // 2}) if lanes % 2 == 0 else None


def _more_fsdp(plan: Plan) -> Plan | None:
  return _more(plan, "fsdp")


def _more_seq(plan: Plan) -> Plan | None:
  return _more(plan, "seq")


# In the order of their cost; more chips come last.
MOVES = (
  _fewer_logits,
  _rematerialize,
  _data_to_fsdp,
  _accumulate,
  _fewer_lanes,
  _more_fsdp,
  _more_seq,
)


def _more(plan: Plan, axis: str) -> Plan | None:
  """The plan with twice or four times the chips along an axis, if slices or hosts of them exist."""
  for factor in (2, 4):
    larger = {**plan[1], axis: factor * plan[1][axis]}
    if is_size(plan[2], together(plan[2], larger)):
      return _mesh(plan, **larger)
  return None


def _set(plan: Plan, **sections: dict) -> Plan | None:
  config, sizes, chip = plan
  return _valid((config.with_fields(**sections), sizes, chip))


def _mesh(plan: Plan, **sizes: int) -> Plan | None:
  return _valid((plan[0], {**plan[1], **sizes}, plan[2]))


def _valid(plan: Plan) -> Plan | None:
  """The plan, or None if its config or mesh is not valid."""
  try:
    check(plan[0])
    check_divisible(plan[0], abstract_mesh(plan[1]))  # type: ignore[arg-type]
  except InputError:
    return None
  return plan


def _difference(old: Plan, new: Plan) -> str:
  """The settings that differ, as flags of the command line."""

  def fields() -> Iterator[str]:
    for section in ("run", "train", "data"):
      before, after = (plan[0].sections()[section] for plan in (old, new))
      for field in dataclasses.fields(before):
        if (value := getattr(after, field.name)) != (was := getattr(before, field.name)):
          yield f"config.{section}.{field.name}={value} (now {was})"
    for axis, size in new[1].items():
      if size != old[1][axis]:
        yield f"{axis}={size} (now {old[1][axis]})"
    before, after = (math.prod(sizes.values()) for sizes in (old[1], new[1]))
    if before != after:
      yield f"{after} chips (now {before})"

  return ", ".join(fields())
