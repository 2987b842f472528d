"""Pictures of a page are rendered only where a test looks at them: each takes a tenth of a second.

Charts are made from all figures in any case. Without the mark `rendered`, an empty picture stands
for each.
"""

import pytest

from infini_jax import plots


@pytest.fixture(autouse=True)
def pictures(request, monkeypatch):
  """Renders the pictures of a test only if it, or the case of a parameter, has the mark."""
  if not request.node.get_closest_marker("rendered"):
    monkeypatch.setattr(plots, "svg", lambda figure: '<svg viewBox="0 0 1 1"></svg>')
