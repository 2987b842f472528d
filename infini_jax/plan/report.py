"""Prints the plan as tables, and converts it to JSON."""

import dataclasses
import json
import math
from typing import Any

from rich.console import Console
from rich.table import Table

from infini_jax.parallel.chips import GIB
from infini_jax.plan.compiled import Compiled
from infini_jax.plan.estimate import Estimate, Parameter
from infini_jax.plan.verdict import Verdict


def show(made: Estimate, console: Console) -> None:
  """Prints the estimate: parameters, bytes, collectives, roofline."""
  c, chips = made.config, made.chips
  axes = " x ".join(f"{axis} {size}" for axis, size in made.sizes.items() if size > 1) or "1 device"
  console.print(f"{chips:,} x {made.chip.name} ({axes}); {made.tokens:,} tokens a step")

  table = _table("parameters", "divided", "shape", "millions", "MiB/chip", left=2)
  for p in made.parameters:
    shape, mib = "x".join(map(str, p.shape)), p.chip_bytes / 2**20
    name = p.name.removeprefix("blocks.")
    table.add_row(name, _divided(p, made.sizes), shape, f"{p.numbers / 1e6:,.2f}", f"{mib:,.1f}")
  total = sum(p.numbers for p in made.parameters) / 1e6
  mib = sum(p.chip_bytes for p in made.parameters) / 2**20
  table.add_row("all", "", "", f"{total:,.2f}", f"{mib:,.1f}", style="bold")
  console.print(table)

  table = _table(f"memory at its peak: {made.phase}", "GiB a chip", "")
  for name, size in made.resting.items():
    table.add_row(name, f"{size / GIB:,.2f}", "exact")
  for name, size in made.working.items():
    table.add_row(name, f"{size / GIB:,.2f}", "estimated")
  have = made.chip.memory / GIB
  table.add_row("all", f"{made.total / GIB:,.2f}", f"of {have:,.1f}", style="bold")
  console.print(table)

  table = _table("a chip sends", "how", "over", "times a step", "MB a step", left=3)
  for s in made.collectives:
    over = f"{s.axes} ({s.devices})" + (", network" if s.network else "")
    table.add_row(s.what, s.kind, over, f"{s.times:,}", f"{s.bytes / 1e6:,.1f}")
  if made.collectives:
    console.print(table)

  table = _table("a step at peak rates", "ms", "share of the longest")
  longest = max(made.seconds.values())
  for name, seconds in made.seconds.items():
    table.add_row(name, f"{seconds * 1e3:,.2f}", f"{seconds / longest:.0%}")
  console.print(table)
  f = made.flops
  T = c.data.segments * c.model.segment_length
  console.print(
    f"{f['model'] / 1e6:,.1f} MFLOP a token (strict); {f['executed'] / 1e6:,.1f} executed with "
    f"rematerialization; {f['full attention'] / 1e6:,.1f} with full attention over T={T:,}"
  )
  console.print(
    f"MFU: at most {made.bound:.1%} (everything overlapped), {made.unoverlapped:.1%} if "
    f"nothing is; {made.tokens / longest / chips:,.0f} tokens/s a chip at most"
  )


def show_compiled(found: Compiled, made: Estimate, console: Console) -> None:
  """Prints the figures of the compiled step next to those of the estimate."""
  table = _table(f"compiled in {found.seconds:,.0f} s", "GiB a chip", "estimated")
  resting = sum(made.resting.values())
  if found.fits:
    table.add_row("state and batch", f"{found.arguments / GIB:,.2f}", f"{resting / GIB:,.2f}")
    table.add_row("allocated for the step", f"{found.temporary / GIB:,.2f}", "")
    table.add_row("program", f"{found.code / GIB:,.2f}", "")
  table.add_row("peak", f"{found.peak / GIB:,.2f}", f"{made.total / GIB:,.2f}", style="bold")
  console.print(table)
  if not found.fits:
    return
  table = _table("the compiled chip sends", "devices", "times a step", "MB a step")
  for s in found.communication.parts:
    name = f"{s.kind} {s.dtype}"
    table.add_row(name, str(s.devices), f"{s.times:,}", f"{s.bytes / 1e6:,.1f}")
  guessed = sum(s.bytes for s in made.collectives) / 1e6
  sent = f"{found.communication.bytes / 1e6:,.1f}"
  table.add_row("all", "", f"estimated {guessed:,.1f}", sent, style="bold")
  console.print(table)
  if found.communication.unknown_loops:
    console.print(f"{found.communication.unknown_loops} loops of unknown length, counted once")


def show_verdict(verdict: Verdict, by: str, console: Console) -> None:
  """Prints whether it fits; if not, also changes that would make it fit."""
  needed, have = verdict.needed / GIB, verdict.have / GIB
  if verdict.fits:
    console.print(f"fits: {needed:,.2f} of {have:,.1f} GiB a chip ({by})", style="bold green")
    return
  console.print(
    f"does not fit: {needed:,.2f} GiB a chip, and a chip has {have:,.1f} ({by}); most of it: "
    f"{verdict.biggest}",
    style="bold red",
  )
  for change in verdict.changes:
    would = "would fit" if change.fits else "would still not fit"
    console.print(f"  {change.settings}: {change.bytes / GIB:,.2f} GiB, {would}")
  if not verdict.changes:
    console.print("  no change of lanes, chunks, rematerialization or mesh makes it fit")


def as_json(made: Estimate, found: Compiled | None, verdict: Verdict) -> dict[str, Any]:
  """The whole plan for JSON, in bytes, seconds and FLOPs."""
  return {
    "chip": dataclasses.asdict(made.chip),
    "chips": made.chips,
    "mesh": made.sizes,
    "tokens_per_step": made.tokens,
    "parameters": [dataclasses.asdict(p) for p in made.parameters],
    "parameter_count": sum(p.numbers for p in made.parameters),
    "bytes_a_chip": {**made.bytes, "total": made.total},
    "peak_phase": made.phase,
    "collectives": [dataclasses.asdict(s) for s in made.collectives],
    "flops_per_token": made.flops,
    "seconds_at_peak": made.seconds,
    "share_of_peak": {"bound": made.bound, "without_overlap": made.unoverlapped},
    "compiled": None if found is None else dataclasses.asdict(found),
    "verdict": dataclasses.asdict(verdict),
    "config": json.loads(made.config.to_json()),
  }


def _divided(parameter: Parameter, sizes: dict[str, int]) -> str:
  """The divided dimensions and their divisors, such as 'D/64'."""
  entries = parameter.sharding.split(",")
  letters = parameter.name.rsplit("_", 1)[-1].rjust(len(entries), "L")
  parts = {
    letter: math.prod(sizes.get(axis, 1) for axis in entry.split("+"))
    for letter, entry in zip(letters, entries, strict=True)
  }
  return " ".join(f"{letter}/{n}" for letter, n in parts.items() if n > 1)


def _table(title: str, *columns: str, left: int = 1) -> Table:
  table = Table(title_justify="left")
  for i, column in enumerate((title, *columns)):
    table.add_column(column, justify="left" if i < left else "right", overflow="fold")
  return table
