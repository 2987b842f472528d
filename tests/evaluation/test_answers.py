"""Answers of any documents: their intervals, and what is written after several prompts at once."""

import jax
import numpy as np
import pytest

from infini_jax.data.tokenizers import ByteTokenizer
from infini_jax.evaluation.answers import Answer, Answered, bootstrap, seed_of, write
from infini_jax.evaluation.answers_tables import cell, write_predictions
from infini_jax.evaluation.knock_out import EMPTY, INTACT
from infini_jax.inference.engine import Engine
from infini_jax.inference.saved import OpenedRun
from infini_jax.parallel import make_mesh
from tests.tiny import config, fake_params

N = 16


def test_intervals_hold_the_mean_and_shrink_with_more_conversations(rng):
  values = rng.random(400)
  few, many = (bootstrap(values[:n], lambda some: some.mean(1))[1] for n in (25, 400))
  assert few[0] < values[:25].mean() < few[1] and many[0] < values.mean() < many[1]
  assert many[1] - many[0] < few[1] - few[0]
  # That of a normal distribution, within the noise of resampling.
  assert many[1] - many[0] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.2)
  ratio = lambda two: two[..., 0].sum(1) / two[..., 1].sum(1)
  assert bootstrap(np.full((9, 2), (2.0, 4.0)), ratio) == (0.5, (0.5, 0.5))


def test_figures_are_means_over_documents_and_the_likelihood_is_of_tokens(rng):
  scores, tokens, nats = rng.random(5), rng.integers(1, 9, 5), rng.random(5)
  rows = zip(scores.tolist(), tokens.tolist(), nats.tolist(), strict=True)
  answers = tuple(Answer("a", 3, "x", "y", {"f1": s}, t, n) for s, t, n in rows)
  found = Answered(answers, {"cut": 2}, 0.5).to_dict()
  assert found["f1"] == pytest.approx(scores.mean())
  assert found["log_likelihood"] == pytest.approx(-nats.sum() / tokens.sum())
  assert found["answer_perplexity"] == pytest.approx(np.exp(nats.sum() / tokens.sum()))
  for name in ("f1", "log_likelihood"):
    low, high = found[f"{name}_interval"]
    assert low <= found[name] <= high
  assert (found["cut"], found["tokens"], found["tokens_per_second"]) == (2, 15, 30)


def test_draws_depend_on_the_run_and_the_document():
  ids = np.arange(5, dtype=np.int32)
  assert len({seed_of(0, ids), seed_of(1, ids), seed_of(0, ids[:4]), seed_of(0, ids[::-1])}) == 4


@pytest.fixture(scope="module")
def model():
  c = config(model={"rule": "delta", "segment_length": N}, mesh={"data": 1})
  with jax.set_mesh(make_mesh(c.mesh, jax.devices()[:1])):
    yield OpenedRun(Engine(c, fake_params(c.model)), ByteTokenizer())


LANES = 4


def test_texts_after_prompts_do_not_depend_on_the_prompts_beside_them(model, rng):
  prompts = [rng.integers(0, 256, n).astype(np.int32) for n in (40, 3, 33)]
  how = {"tokens": 3, "temperature": 1.5}
  tokens = lambda texts: [[piece.token for piece in pieces] for pieces in texts]
  for variant in (INTACT, EMPTY):
    alone = [write(model, LANES, [p], variant, seed=[i], **how)[0] for i, p in enumerate(prompts)]
    together = write(model, LANES, prompts, variant, seed=[0, 1, 2], **how)
    assert tokens(together) == tokens(alone)
    assert all(pieces[-1].end for pieces in together)


def test_with_an_empty_memory_only_the_open_segment_is_read(model, rng):
  ids = rng.integers(0, 256, 40).astype(np.int32)
  read = lambda ids, variant: [
    piece.token for piece in write(model, LANES, [ids], variant, tokens=4, temperature=0.0)[0]
  ]
  assert read(ids, EMPTY) == read(ids[32:], INTACT)


@pytest.mark.parametrize(
  "figure, shown",
  [
    ((0.25, (0.1251, 0.5)), "0.250 (0.125 to 0.500)"),
    ((45.25, (9.0, 50.0)), "45.2 (9.0 to 50.0)"),
    ((-6.5, (-7.0, -6.0)), "-6.500 (-7.000 to -6.000)"),
  ],
)
def test_figures_are_shown_with_their_intervals(figure, shown):
  assert cell(*figure) == shown


def test_predictions_hold_the_texts_of_all_variants(tmp_path):
  one = lambda text: (Answer("a", 3, text, "y", {"f1": 0.5}, 2, 1.5),)
  write_predictions(tmp_path, {"memory": one("x"), "empty": one("z")})
  (line,) = (tmp_path / "predictions.jsonl").read_text().splitlines()
  assert line == (
    '{"name": "a", "tokens": 3, "written": "x", "reference": "y", "answer_tokens": 2, '
    '"nats": 1.5, "f1": 0.5, "knocked_out": {"empty": "z"}}'
  )
