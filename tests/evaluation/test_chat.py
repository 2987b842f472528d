"""Answers are scored one by one, written greedily, and compared as SQuAD compares them."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from infini_jax.config import InputError
from infini_jax.evaluation import chat_tables
from infini_jax.evaluation.answers import Answer, Answered
from infini_jax.evaluation.chat import answering, normalised, shared_words
from infini_jax.evaluation.knock_out import EMPTY, INTACT
from infini_jax.models import bind
from infini_jax.parallel import make_mesh
from infini_jax.tasks import open_dataset
from tests.data.chat.vocabulary import assistant, user
from tests.tiny import config, fake_params, quiet

N, LENGTH = 16, 6


@pytest.fixture(scope="module")
def case(tmp_path_factory):
  """The config, the conversations, and random parameters."""
  folder, rng = tmp_path_factory.mktemp("chat"), np.random.default_rng(0)
  text = lambda n: "".join(rng.choice(list("abcd "), n)) + "."
  rows = [{"messages": [user(text(n)), assistant(text(5))]} for n in (5, 40, 70)]
  rows.append({"messages": [user("a"), assistant("b"), user(text(9)), assistant("c d")]})
  (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  c = config(
    f"jsonl:{folder}/test.jsonl",
    model={"rule": "delta", "segment_length": N, "tied_embeddings": False},
    task={"name": "chat"},
    chat={"template": "plain"},
    mesh={"data": 1},
    evaluation={"lanes": 2, "summary_length": LENGTH, "temperature": 0.0},
  )
  source = open_dataset(c, None, quiet(), others=folder)
  return c, source, fake_params(c.model)


@pytest.fixture(scope="module")
def found(case):
  c, source, params = case
  mesh = make_mesh(c.mesh, jax.devices()[:1])
  with jax.set_mesh(mesh):
    evaluator, seen = answering(c, mesh, source), []
    answered = evaluator.run(params, INTACT, advance=lambda i, text: seen.append(i))
    empty = evaluator.run(params, EMPTY)
  assert seen[-1] == evaluator.chunks
  return answered, empty


def test_likelihoods_and_answers_are_those_of_one_call_over_all_tokens(case, found):
  c, source, params = case
  model, talks = bind(c.model, params), source.split("test")
  read = jax.jit(lambda x: model.logits(model(x, model.state(1))[0])[0])

  def logits(tokens):
    whole = np.zeros((1, 10 * N), np.int32)
    whole[0, : len(tokens)] = tokens
    return np.asarray(read(whole), np.float64)

  for document, answer in enumerate(found[0].answers):
    n = int(talks.tokens[document])
    ids = np.append(talks.first_X[document], talks.read(document, 0, n))
    log_p = jax.nn.log_softmax(logits(ids))[:n][np.arange(n), ids[1:]]
    said = talks.said(document, 0, n)
    np.testing.assert_allclose(answer.nats, -np.asarray(log_p)[said].sum(), rtol=1e-4)
    assert answer.answer_tokens == said.sum()
    tokens, written = talks.last(document)[0].tolist(), []
    for _ in range(LENGTH):
      token = int(logits(tokens)[len(tokens) - 1].argmax())
      if token in (source.chat.end, source.tokenizer.eos):
        break
      tokens, written = [*tokens, token], [*written, token]
    assert answer.written == source.tokenizer.decode(written).strip()


def test_the_memory_changes_what_is_likely(found):
  with_memory, empty = found
  assert with_memory.answers[2].nats != pytest.approx(empty.answers[2].nats, rel=1e-6)


@pytest.mark.parametrize(
  "written, reference, exact, f1",
  [
    ("The  Cat!", "a cat", 1, 1),
    ("the black cat", "cat", 0, 2 / 3),
    ("dog", "cat", 0, 0),
    ("", "", 1, 1),
    ("the", "cat", 0, 0),
    ("cat cat", "cat", 0, 2 / 3),
  ],
)
def test_answers_are_compared_as_in_squad(written, reference, exact, f1):
  assert (normalised(written) == normalised(reference)) == bool(exact)
  assert shared_words(written, reference) == pytest.approx(f1)


def test_results_are_written_and_shown(found, tmp_path, case):
  memory, empty = found
  both = {"memory": memory, "empty": empty}
  told = memory.to_dict()
  assert told["conversations"] == told["asked"] == 4 and told["log_likelihood"] < 0
  low, high = told["f1_interval"]
  assert low <= told["f1"] <= high
  assert chat_tables.draw(both, {}, tmp_path) == {}
  lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
  assert [line["name"] for line in lines] == [f"test.jsonl, line {i}" for i in (1, 2, 3, 4)]
  assert lines[0]["knocked_out"]["empty"] == empty.answers[0].written
  assert {"exact_match", "f1", "rougeL", "answer_tokens"} <= set(lines[0])
  console = Console(file=io.StringIO(), width=160)
  chat_tables.show(both, {"step": 3}, case[0], console)
  assert "log-likelihood a token" in console.file.getvalue()


def test_the_verdict_compares_likelihoods():
  one = lambda nats: Answered((Answer("a", 9, "x", "y", {}, 4, nats),), {}, 1.0)
  for with_memory, empty, said in ((3.0, 4.0, ""), (4.0, 4.0, "does not help")):
    console = Console(file=io.StringIO(), width=160)
    chat_tables.verdict({"memory": one(with_memory), "empty": one(empty)}, console)
    assert said in console.file.getvalue() and bool(said) == bool(console.file.getvalue())


@pytest.mark.parametrize(
  "fields, said",
  [({"knock_out": ("reads",)}, "knock_out='reads'"), ({"max_tokens": 8}, "max_tokens=8")],
)
def test_fields_that_do_not_fit_are_refused(case, fields, said):
  c, source, _ = case
  e = dataclasses.replace(c.evaluation, **fields)
  with pytest.raises(InputError, match=said):
    answering(dataclasses.replace(c, evaluation=e), None, source)
