"""The table of many runs: differences alone, the best first."""

import io
import json
import math

import pytest
from rich.console import Console

from infini_jax.config import InputError
from infini_jax.report.comparison import TRAINING, comparison
from infini_jax.report.runs import read_runs
from tests.report.test_page import recalled, scores, write_run


def rows(folders, *by):
  """The header and the rows of the table, as text."""
  table = comparison(read_runs([str(folder) for folder in folders]), by)
  out = io.StringIO()
  Console(file=out, width=300).print(table)
  cells = [list(column.cells) for column in table.columns]
  return [str(c.header) for c in table.columns], list(zip(*cells, strict=True)), out.getvalue()


def test_only_differences_are_shown_and_the_best_run_is_first(tmp_path, rng):
  losses = {f"run{i}": loss for i, loss in enumerate(rng.permutation([1.5, 2.0, 2.5, math.nan]))}
  folders = [
    write_run(tmp_path / name, losses=(9.0, loss), model={"layers": 2 + i, "rule": "delta"},
              needle={"digits": 3}, task={"digits": 5 + i})
    for i, (name, loss) in enumerate(losses.items())
  ]  # fmt: skip
  header, found, text = rows(folders)
  assert header == ["run", "layers", "digits", "step", TRAINING]
  order = sorted(losses, key=lambda name: (math.isnan(losses[name]), losses[name]))
  assert [row[0] for row in found] == order, "what is no number comes last"
  best = order[0]
  i = int(best.removeprefix("run"))
  assert found[0] == (best, str(2 + i), str(5 + i), "20 of 6", f"{losses[best]:.4f}")
  assert f"4 runs, the best {TRAINING} first" in text


def test_a_mean_over_the_last_steps_is_the_training_loss(tmp_path, rng):
  losses = tuple(rng.uniform(1, 5, 30))
  header, found, _ = rows([write_run(tmp_path / "run", losses=losses)])
  assert header[-1] == TRAINING
  assert float(found[0][-1]) == pytest.approx(sum(losses[-3:]) / 3, abs=1e-4)


def test_a_figure_of_another_text_is_marked(tmp_path):
  folders = [
    write_run(tmp_path / name, losses=(loss,), data={"path": path})
    for name, loss, path in (("a", 2.0, "books"), ("b", 1.0, "books"), ("c", 0.5, "code"))
  ]
  _, found, text = rows(folders)
  assert [(row[0], row[-1]) for row in found] == [
    ("c", "0.5000"), ("b", "1.0000 ≠"), ("a", "2.0000 ≠")
  ]  # fmt: skip
  assert "≠ of another text, tokenizer or protocol than the first" in " ".join(text.split())
  assert "≠" not in rows(folders[:2])[2]


def test_evaluations_sort_by_their_figures_in_their_own_direction(tmp_path, rng):
  good, bad = scores(rng), scores(rng, 2.0)
  keys, none = recalled(rng, 20), recalled(rng, 0)
  a = write_run(tmp_path / "a", {"perplexity": ("perplexity", bad, {}),
                                 "passkey": ("passkey", keys, {})}, losses=(1.0,))  # fmt: skip
  b = write_run(tmp_path / "b", {"perplexity": ("perplexity", good, {}),
                                 "passkey": ("passkey", none, {})}, losses=(2.0,))  # fmt: skip
  header, found, _ = rows([a, b])
  assert [row[0] for row in found] == ["b", "a"] and header[-2:] == ["perplexity", TRAINING]
  assert found[0][-2] == f"{good.perplexity:,.4f}"
  header, found, _ = rows([a, b], "recalled", "bits per byte")
  assert [row[0] for row in found] == ["a", "b"] and found[0][-3] == "1.0000"
  assert header[-3:] == ["passkey: recalled", "bits per byte", TRAINING]


def test_a_validation_is_a_figure(tmp_path):
  folder = write_run(tmp_path / "a")
  lines = [{"step": s, "kind": "validation", "perplexity": p} for s, p in ((3, 9.0), (6, 7.0))]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  header, found, _ = rows([folder, write_run(tmp_path / "b")])
  assert "validation perplexity" in header and found[0][0] == "a" and "7.0000" in found[0]


def test_a_figure_that_no_run_has_is_refused_with_those_that_are_there(tmp_path, rng):
  folder = write_run(tmp_path / "a", {"perplexity": ("perplexity", scores(rng), {})})
  with pytest.raises(InputError, match="--by=beauty: no run has it; choose one of perplexity, "):
    rows([folder], "beauty")
  with pytest.raises(InputError, match="--by=e: several figures have it"):
    rows([folder], "e")
