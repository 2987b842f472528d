"""The notebook docs/tour.ipynb: kept without outputs, and its cells work one after the other."""

import json
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOUR = ROOT / "docs" / "tour.ipynb"


def cells(kind):
  return [
    "".join(cell["source"])
    for cell in json.loads(TOUR.read_text("utf-8"))["cells"]
    if cell["cell_type"] == kind
  ]


def test_the_notebook_is_kept_without_outputs_and_names_only_what_exists():
  content = json.loads(TOUR.read_text("utf-8"))
  for cell in content["cells"]:
    assert not cell.get("outputs") and cell.get("execution_count") is None
  for source in cells("code"):
    compile(source, "tour", "exec")
  named = re.findall(r"`((?:docs|configs)/[\w./]+)`", "".join(cells("markdown")))
  assert named and all((ROOT / name).exists() for name in named)


@pytest.mark.slow
def test_the_notebook_trains_a_memory_that_recalls(tmp_path, monkeypatch):
  """All cells, in a kernel; minutes. The extra `notebook` has what it needs."""
  nbclient = pytest.importorskip("nbclient", reason="pip install 'infini-jax[notebook]'")
  nbformat = pytest.importorskip("nbformat")
  pytest.importorskip("ipykernel")
  monkeypatch.delenv("XLA_FLAGS")  # one device, with all optimizations
  (tmp_path / "docs").mkdir()
  shutil.copytree(ROOT / "configs", tmp_path / "configs")  # so that all is written there
  notebook = nbformat.read(TOUR, as_version=4)
  where = {"metadata": {"path": str(tmp_path / "docs")}}
  nbclient.NotebookClient(notebook, timeout=3000, kernel_name="python3", resources=where).execute()
  outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
  said = "".join(out.get("text", "") for out in outputs)
  recalled, empty = map(float, re.search(r"right: ([\d.]+) with .*, ([\d.]+) with", said).groups())
  assert recalled > empty + 0.3, said[-3000:]
  sizes = re.findall(r"the state has ([\d,]+) bytes", said)
  assert len(sizes) == 2 and sizes[0] == sizes[1], "after a short and after a long text"
  assert any("image/png" in out.get("data", {}) for out in outputs), "the gates"
