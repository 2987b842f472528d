"""The cost of the surgery: perplexity of the original, of step 0, and of the trained model."""

from pathlib import Path

import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.evaluation.evaluate import evaluate
from infini_jax.evaluation.filing import newest
from infini_jax.evaluation.surgery import Cost, originals, show, verdict
from infini_jax.report.page import report
from infini_jax.runs.workdir import Workdir
from tests.tiny import changed, quiet


@pytest.mark.slow
def test_three_perplexities_of_the_same_tokens(adapted, tmp_path):
  c, workdir, _ = adapted
  console = quiet()
  evaluate(c, str(workdir), console, tasks=("surgery", "perplexity"), command="typed")
  found = newest(workdir, "surgery")
  before, after = found["before"], found["memory"]
  assert before["original"]["tokens"] == before["step 0"]["tokens"] == after["tokens"] > 0
  ratio = before["step 0"]["perplexity"] / before["original"]["perplexity"]
  assert ratio != 1 and abs(ratio - 1) < 0.01, "gates at -5 must change next to nothing"
  trained = newest(workdir, "perplexity")
  np.testing.assert_allclose(after["perplexity"], trained["memory"]["perplexity"], rtol=1e-6)
  assert after["perplexity"] != before["step 0"]["perplexity"], "nothing was trained"
  start = c.train.start_from
  evaluate(Workdir(start).config(), start, quiet(), tasks=("perplexity",))
  wide = newest(Path(start), "perplexity")
  np.testing.assert_allclose(
    before["original, its window"]["perplexity"], wide["memory"]["perplexity"], rtol=1e-6
  )
  text = console.file.getvalue()
  assert "the original, windows of 16" in text and "adapted, step 0, gates at -5" in text
  page = report([str(workdir)], str(tmp_path / "page.html"), quiet()).read_text()
  assert "Figures of surgery" in page and "step 0" in page


def test_the_original_reads_by_its_own_settings(adapted):
  c, _, _ = adapted
  there = Workdir(c.train.start_from).config().model
  other = changed(c, model=changed(c.model, rope_theta=7.0, embed_scale=2.0))
  for found in originals(other).values():
    assert changed(found.model, segment_length=there.segment_length) == there


def test_runs_without_an_original_are_refused(adapted, trained):
  c, workdir, _ = adapted
  with pytest.raises(InputError, match="start_from is empty: there is no original to compare with"):
    evaluate(trained[0], str(trained[1]), quiet(), tasks=("surgery",))
  chained = changed(c, train=changed(c.train, start_from=str(workdir)))
  with pytest.raises(InputError, match="mixer is 'infini' .* evaluate the run that started from"):
    originals(chained)
  divided = changed(
    c, mesh=changed(c.mesh, data=4, seq=2), train=changed(c.train, distill_weight=0.0)
  )
  with pytest.raises(InputError, match="mesh.seq=2 with config.model.mixer='full'"):
    originals(divided)


def test_each_model_has_a_row_with_its_change(adapted):
  figures = {"original": 20.0, "original, its window": 18.0, "step 0": 20.5, "memory": 19.0}
  costs = {name: Cost(p, 1.0, 3, 1, 1234, 10.0) for name, p in figures.items()}
  console = quiet()
  show(costs, {"step": 4}, adapted[0], console)
  lines = [line for line in console.file.getvalue().splitlines() if "│" in line]
  texts = ["windows of 16", "as long as its training's", "gates at -5", "adapted, step 4"]
  for line, text, (name, p) in zip(lines, texts, figures.items(), strict=True):
    assert text in line and f"{p:.3f}" in line, line
    assert name == "original" or f"{100 * (p / 20 - 1):+.2f}%" in line, line
  assert "1,234 tokens" in console.file.getvalue()


def test_a_step_0_that_is_another_model_is_reported():
  costs = {name: Cost(p, 1.0, 3, 0, 99, 10.0) for name, p in (("original", 20.0), ("step 0", 20.5))}
  console = quiet()
  verdict(costs, console)
  assert "+2.50% of the original's: the adapted model is another" in console.file.getvalue()
  console = quiet()
  verdict(costs | {"step 0": costs["original"]}, console)
  assert not console.file.getvalue()
