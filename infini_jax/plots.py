"""Pictures by matplotlib: lines, points and heat maps, as PNG files and as SVG inside of a page.

In a page, ink and colours are variables of its style (`html.STYLE`), so a picture follows the
reader's light or dark setting. The colour-blind can tell the eight colours apart (they are close to
those of Okabe and Ito); further lines are dashed. The scale of heat maps is one of brightness too.
"""

import contextlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from infini_jax.files import atomic

SIZE = (4.6, 2.9)  # inches; about 440 pixels wide in a page
POINTS = 72 * 3.9  # the width of the axes, in points
LETTER = 5.2  # the width of a digit, in points
INK, GRID = "#1b1f24", "#d5dbe1"
COLORS = ("#0a6fb0", "#d0540a", "#0f8f6a", "#b4568f", "#b07a00", "#2f93c4", "#6b4fa0", "#6b7480")
DASHES = ("", "5 2", "1.5 2", "7 2 1.5 2")
FLAT = 5.0  # if one value is so many times the median, the axis is logarithmic
NUMBERED = 14  # the most columns of a heat map whose cells have room for numbers
STEPS = (1, 2, 5, 10)  # between ticks
MAP = "cividis"


class Line(NamedTuple):
  """A line of a chart.

  Attributes:
    name: what the legend calls it.
    x, y: its points; a y that is not finite is left out.
    style: a number for colour and dashes: the same one for the same thing in every chart.
    faint: whether it is drawn thin, in the background, and left out of the legend.
  """

  name: str
  x: Sequence[float]
  y: Sequence[float]
  style: int
  faint: bool = False


def line_chart(
  lines: Sequence[Line],
  x: str,
  y: str,
  *,
  ticks: Sequence[str] = (),
  limits: tuple[float, float | None] | None = None,
  legend: bool = True,
) -> Figure:
  """A chart of lines.

  Args:
    lines: at least one.
    x, y: the names of the axes.
    ticks: names of 0, 1, 2 ... on the x-axis; none: x is a number.
    limits: of the y-axis, the upper one None for that of the values; None: from the values, and
      logarithmic where one would flatten the rest.
    legend: whether the names of the lines are above the chart.
  """
  with _style():
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for line in lines:
      color, dashes = COLORS[line.style % len(COLORS)], DASHES[line.style // len(COLORS) % 4]
      style: tuple[float, Sequence[float] | None]
      style = (0, [float(part) for part in dashes.split()] or None)
      some = len(line.x) < 17 and not line.faint
      axes.plot(
        line.x,
        line.y,
        color=color,
        linestyle=style,
        marker="o" if some else "",
        markersize=3,
        linewidth=0.7 if line.faint else 1.5,
        alpha=0.35 if line.faint else 1.0,
        label="_" if line.faint else line.name,
        zorder=1 if line.faint else 2,
      )
    axes.set(xlabel=x, ylabel=y)
    if ticks:
      _name(axes.xaxis, ticks)
    else:
      longest = [max(line.x, default=0) for line in lines if not line.faint]
      if logarithmic(longest):
        axes.set_xscale("log")
        _logarithmic(axes.xaxis)
      else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=STEPS, min_n_ticks=1))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    values = [value for line in lines for value in line.y]
    if limits:
      axes.set_ylim(*limits)
      axes.yaxis.set_major_formatter(FuncFormatter(_said))
    elif logarithmic(values):
      axes.set_yscale("log")
      _logarithmic(axes.yaxis)
    else:
      axes.yaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
      axes.yaxis.set_major_formatter(FuncFormatter(_said))
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    if legend:
      _legend(figure, axes)
  return figure


def point_chart(groups: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> Figure:
  """A chart of points in groups, with a logarithmic x-axis."""
  with _style():
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for i, (name, points) in enumerate(groups.items()):
      marker, color = "os^D"[i % 4], COLORS[i % len(COLORS)]
      xs, ys = zip(*points, strict=True)
      axes.scatter(xs, ys, label=name, s=16, marker=marker, color=color)
    axes.set(xlabel=x, ylabel=y, xscale="log")
    _logarithmic(axes.xaxis)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    _legend(figure, axes)
  return figure


def heat_map(
  panels: Mapping[str, Sequence[Sequence[float]]],
  columns: Sequence[str],
  rows: Sequence[str],
  *,
  x: str,
  y: str,
  scale: str,
) -> Figure:
  """Panels of shares, 0 to 1, with the number in each cell if there is room.

  Args:
    panels: by title, the rows of a grid.
    columns, rows: the names of the columns and of the rows.
    x, y: what columns and rows are.
    scale: what the colour says.
  """
  with _style():
    height = max(1.5, 0.28 * len(rows) + 0.95)
    figure = Figure(figsize=(SIZE[0], height * len(panels)), layout="constrained")
    every = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    colors = matplotlib.colormaps[MAP]
    for axes, (title, grid) in zip(every, panels.items(), strict=True):
      image = axes.imshow(grid, vmin=0, vmax=1, cmap=colors, aspect="auto", interpolation="none")
      axes.set(xlabel=x, ylabel=y)
      axes.set_title(title, fontsize=9.5)
      _name(axes.xaxis, columns)
      axes.set_yticks(range(len(rows)), labels=rows)
      if not any(rows):
        axes.set_yticks([])
      if len(columns) > NUMBERED:
        continue
      for row, values in enumerate(grid):
        for column, value in enumerate(values):
          if math.isfinite(value):
            red, green, blue = to_rgb(colors(value))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            color = "#ffffff" if dark else "#000000"
            at = {"ha": "center", "va": "center", "fontsize": 8, "color": color}
            axes.text(column, row, f"{value:.2f}", **at)
    slim = 20 * len(panels)
    figure.colorbar(image, ax=every.tolist(), label=scale, ticks=(0, 0.5, 1), pad=0.02, aspect=slim)
  return figure


def logarithmic(values: Sequence[float]) -> bool:
  """Whether one of the values is so far from the others that it would flatten them."""
  some = np.array([value for value in values if math.isfinite(value)], np.float64)
  if len(some) < 2 or some.min() <= 0:
    return False
  middle = float(np.median(some))
  return bool(some.max() > FLAT * middle or some.min() < middle / FLAT)


def png(figure: Figure, file: Path) -> None:
  """Writes the picture as a PNG file, on white."""
  with atomic(file) as temporary:
    figure.savefig(temporary, format="png", dpi=150)


def svg(figure: Figure) -> str:
  """The picture as an SVG element for a page: its text is text, its colours are variables."""
  buffer = io.StringIO()
  with matplotlib.rc_context({"svg.fonttype": "none"}):
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
  text = buffer.getvalue()
  text = text[text.index("<svg") :].strip()
  for pattern, by in (
    (r"<metadata>.*?</metadata>|<clipPath.*?</clipPath>|<style.*?</style>|<!--.*?-->", ""),
    (r' (?:xmlns(?::\w+)?|version|clip-path)="[^"]*"', ""),
    (r'<g id="[^"]*"', "<g"),  # names that all pictures have
    (r"font: (?:[a-z]+ )?([\d.]+px)[^;\"]*", r"font-size: \1"),
    (r' width="[\d.]+pt" height="[\d.]+pt"', ""),
    (r"<defs>\s*</defs>|\n\s*(?=<)", ""),
  ):
    text = re.sub(pattern, by, text, flags=re.DOTALL)
  for name, color in {"ink": INK, "line": GRID, **_names()}.items():
    text = text.replace(color, f"var(--{name})")
  return text


def swatch(style: int) -> str:
  """A short line with the colour and dashes of a style, as SVG for the legend of a page."""
  dashes = DASHES[style // len(COLORS) % len(DASHES)]
  return (
    f'<svg class="swatch" viewBox="0 0 26 8" aria-hidden="true"><path d="M1 4H25" fill="none" '
    f'stroke="var(--c{style % len(COLORS) + 1})" stroke-width="2.5" stroke-dasharray="{dashes}"/>'
    f"</svg>"
  )


def _names() -> dict[str, str]:
  return {f"c{i}": color for i, color in enumerate(COLORS, 1)}


def _style() -> contextlib.AbstractContextManager[None]:
  return matplotlib.rc_context(
    {
      "text.color": INK,
      "axes.labelcolor": INK,
      "axes.edgecolor": INK,
      "xtick.color": INK,
      "ytick.color": INK,
      "font.size": 9,
      "text.parse_math": False,  # a dollar sign in a name is shown as it is
      "axes.spines.top": False,
      "axes.spines.right": False,
      "axes.linewidth": 0.7,
      "axes.facecolor": "none",
    }
  )


def _legend(figure: Figure, axes: Axes) -> None:
  handles, names = axes.get_legend_handles_labels()
  if len(names) > 1:
    fits = max(1, int(POINTS // (max(map(len, names)) * LETTER + 30)))
    figure.legend(handles, names, loc="outside upper left", ncols=fits, frameon=False, fontsize=8.5)


def _name(axis: Axis, names: Sequence[str]) -> None:
  """Names the ticks of an x-axis: all, or as many as have room next to each other."""
  room = (max(map(len, names), default=1) + 2) * LETTER
  step = max(1, math.ceil(room * len(names) / POINTS))
  axis.set_ticks(range(0, len(names), step), labels=list(names)[::step])


def _logarithmic(axis: Axis) -> None:
  axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=9))
  axis.set_major_formatter(FuncFormatter(_said))
  axis.set_minor_formatter(NullFormatter())


def _said(value: float, _: object = None) -> str:
  """A number at a tick: short, and never in another form than its neighbours without need."""
  for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
    if abs(value) >= size:
      return f"{value / size:g}{letter}"
  return f"{value:,.6g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"
