"""Pictures: text as text, colours that follow the page, axes that one value does not flatten."""

import re

import numpy as np
import pytest

from infini_jax import plots
from infini_jax.html import STYLE
from infini_jax.plots import Line


def words(svg):
  return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_a_chart_in_a_page_loads_nothing_and_follows_its_style(rng):
  lines = [Line(f"run {i} <&$x$>", range(1, 50), rng.uniform(1, 2, 49), i) for i in range(10)]
  svg = plots.svg(plots.line_chart(lines, "step", "loss"))
  assert svg.startswith("<svg") and svg.endswith("</svg>")
  for outside in ("http", "xmlns", "url(", "<metadata", "<?xml", "<!"):
    assert outside not in svg
  for i in range(1, 9):
    assert f"var(--c{i})" in svg and STYLE.count(f"--c{i}:") == 2, "in light and in dark"
  assert "var(--ink)" in svg and plots.INK not in svg
  assert svg.count("stroke-dasharray") >= 2, "the ninth line has a colour of the first, dashed"
  assert "run 3 &lt;&amp;$x$&gt;" in words(svg), "the legend, as it is written"


def test_one_value_does_not_flatten_the_others(rng):
  flat = list(rng.uniform(50, 100, 9))
  assert not plots.logarithmic(flat)
  assert plots.logarithmic([5000, *flat]) and plots.logarithmic([0.5, *flat])
  assert not plots.logarithmic([0.0, 5000, *flat]), "no logarithm of 0"
  assert not plots.logarithmic([5000]) and plots.logarithmic([np.nan, np.inf, 5000, *flat])
  ticks = words(plots.svg(plots.line_chart([Line("", range(10), [5000, *flat], 0)], "x", "y")))
  assert {"50", "100", "5,000"} & set(ticks) and not any("10^" in tick for tick in ticks)


def test_a_single_step_has_one_tick():
  svg = plots.svg(plots.line_chart([Line("", [2], [0.5], 0)], "step", "loss", limits=(0, 1)))
  assert words(svg).count("2") == 1


@pytest.mark.parametrize("count", [2, 12, 40])
def test_names_of_places_do_not_overlap(count):
  names = [f"{2**i:,}" for i in range(count)]
  figure = plots.line_chart([Line("", range(count), range(count), 0)], "x", "y", ticks=names)
  figure.canvas.draw()
  boxes = [t.get_window_extent() for t in figure.axes[0].get_xticklabels() if t.get_text()]
  assert len(boxes) >= 2
  assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))


def test_a_cell_of_a_heat_map_has_its_number_where_there_is_room(rng):
  def drawn(rows, columns):
    grid = rng.uniform(0, 1, (rows, columns)).tolist()
    names = [str(i) for i in range(columns)], [str(i) for i in range(rows)]
    chart = plots.heat_map({"a": grid, "b": grid}, *names, x="x", y="y", scale="share")
    return grid, words(plots.svg(chart))

  grid, text = drawn(2, 3)
  assert all(text.count(f"{value:.2f}") >= 2 for row in grid for value in row)
  grid, text = drawn(3, 40)
  assert f"{grid[0][0]:.2f}" not in text and "share" in text


def test_a_png_file_is_written_with_its_folder(tmp_path):
  chart = plots.point_chart({"a": [(10, 1), (1000, 3)], "b": [(20, 2)]}, "tokens", "ROUGE-1")
  plots.png(chart, tmp_path / "new" / "a.png")
  assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
