"""The pictures of training: losses, validations, rates, gradient norms, speed and gates by step."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from infini_jax import plots
from infini_jax.html import columns, legend, paragraph, picture
from infini_jax.plots import Line
from infini_jax.report.groups import trained
from infini_jax.report.headline import COSTS
from infini_jax.report.runs import RunFiles
from infini_jax.report.tables import plain, scalars

POINTS = 160  # the most points of a line: a longer one is drawn as so many means
EACH = 32  # the most heads of a run whose gates have a line each
PERPLEXITIES = ("perplexity", "answer_perplexity", "summary_perplexity")  # the last: older runs


class Curve(NamedTuple):
  """A figure that is drawn by step.

  Attributes:
    title: above the picture.
    unit: shown next to the axis.
    read: the figure of a line of the metrics; None if it has none.
    limits: of the axis (`plots.line_chart`).
  """

  title: str
  unit: str
  read: Callable[[dict[str, Any]], float | None]
  limits: tuple[float, float | None] | None = None


def _field(name: str) -> Callable[[dict[str, Any]], float | None]:
  return lambda line: line.get(name)


CURVES = (
  Curve("Learning rate", "learning rate", _field("learning_rate"), (0, None)),
  Curve("Gradient norm", "gradient norm", _field("grad_norm")),
  Curve("Dead heads", "share of the heads", _field("dead_heads"), (0, 1.02)),
)


def training(runs: Sequence[RunFiles]) -> str:
  """The pictures as HTML, side by side. A picture has lines only of runs that may be compared."""
  logged = [run for run in runs if run.logged]
  if not logged:
    return paragraph("No step was logged yet.")
  style = {run.name: i for i, run in enumerate(runs)}
  groups = trained(logged)
  parts = []
  for apart, some in groups.items():
    loss = Curve("Training loss", "nats per token", lambda line: line["loss"])
    parts.append(_chart(some, style, loss, apart))
  for apart, some in trained([run for run in runs if run.validated], validated=True).items():
    parts.append(_chart(some, style, _validation(some), apart, validated=True))
  parts += [_chart(logged, style, curve) for curve in (*CURVES, _speed(logged))]
  parts.append(_gates(logged, style))
  text = "Losses are in one picture only if they are of the same text, tokenizer and task."
  made = names_of(logged, style) + paragraph(text) * (len(groups) > 1)
  return made + columns([part for part in parts if part])


def names_of(runs: Sequence[RunFiles], style: dict[str, int]) -> str:
  """The legend of pictures with a line for each run; empty for a single one."""
  entries = [(plots.swatch(style[run.name]), run.name) for run in runs]
  return legend(entries) if len(style) > 1 else ""


def _chart(
  runs: Sequence[RunFiles],
  style: dict[str, int],
  curve: Curve,
  apart: str = "",
  validated: bool = False,
) -> str:
  """A picture of one figure of some runs by step; empty if no run has it, or all have only 0."""
  caption = f"{curve.title} ({apart})" if apart else curve.title
  lines, told = [], []
  for run in runs:
    found = run.validated if validated else run.logged
    points = [(line["step"], value) for line in found if _is_number(value := curve.read(line))]
    if not points:
      continue
    steps, values = zip(*points, strict=True)
    lines.append(Line(run.name, *_thinned(steps, values), style[run.name]))
    first, last = (f"{values[i]:.3g} at step {steps[i]:,}" for i in (0, -1))
    told.append(f"{run.name} from {first} to {last}")
  if not any(any(line.y) for line in lines):
    return ""
  chart = plots.line_chart(lines, "step", curve.unit, limits=curve.limits, legend=False)
  return picture(plots.svg(chart), f"Line chart, {caption}: {'; '.join(told)}", caption)


def _gates(runs: Sequence[RunFiles], style: dict[str, int]) -> str:
  """A picture of the gates by step: every head of a single run, else the mean of each run."""
  gated = [run for run in runs if any(line.get("gates_LH") for line in run.logged)]
  if not gated:
    return ""
  lines, told = [], []
  for run in gated:
    found = [(line["step"], line["gates_LH"]) for line in run.logged if line.get("gates_LH")]
    steps = [step for step, _ in found]
    gates = np.array([one for _, one in found])  # (steps, L, H)
    layers, heads = gates.shape[1:]
    told.append(f"{run.name} at the end from {gates[-1].min():.2f} to {gates[-1].max():.2f}")
    if len(runs) == 1 and layers * heads <= EACH:
      for layer in range(layers):
        for head in range(heads):
          name = f"layer {layer + 1}" if head == 0 else "_"
          x, y = _thinned(steps, gates[:, layer, head].tolist())
          lines.append(Line(name, x, y, layer))
      continue
    flat = gates.reshape(len(steps), -1)
    for values, faint in ((flat.mean(1), False), (flat.max(1), True), (flat.min(1), True)):
      lines.append(Line(run.name, *_thinned(steps, values.tolist()), style[run.name], faint))
  each = not any(line.faint for line in lines)
  caption = "Gates: " + ("every head" if each else "mean of all heads; thin: least and greatest")
  chart = plots.line_chart(lines, "step", "gate", limits=(-0.02, 1.02), legend=each)
  return picture(plots.svg(chart), f"Line chart of gates: {'; '.join(told)}", caption)


def _validation(runs: Sequence[RunFiles]) -> Curve:
  """The figure of validations that is drawn: a loss, or the first figure that there is."""
  names = [name for name, _ in scalars(runs[0].validated[-1]) if name not in (*COSTS, "step")]
  if set(PERPLEXITIES) & set(names):
    first = lambda line: next((line[name] for name in PERPLEXITIES if name in line), None)
    return Curve("Validation loss", "nats per token", lambda line: _log(first(line)))
  name = names[0] if names else ""
  return Curve("Validation", plain(name), lambda line: line.get(name))


def _speed(runs: Sequence[RunFiles]) -> Curve:
  if any(line.get("mfu") is not None for run in runs for line in run.logged):
    return Curve("MFU", "share of the peak FLOP/s", _field("mfu"), (0, None))
  title = "Speed (no MFU: the peak of this device is not known)"
  return Curve(title, "FLOP/s of the model", _field("model_flops_per_second"), (0, None))


def _log(value: Any) -> float | None:
  return math.log(value) if _is_number(value) and value > 0 else None


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and math.isfinite(value)


def _thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
  """At most `POINTS` points: means of neighbours."""
  if len(steps) <= POINTS:
    return list(steps), list(values)
  means = lambda x: [float(part.mean()) for part in np.array_split(np.array(x, float), POINTS)]
  return means(steps), means(values)
