"""Summaries are written from whole documents, scored by the library, and saved with references."""

import io
import json
import math

import jax
import numpy as np
import pytest
from rich.console import Console
from rouge_score.rouge_scorer import RougeScorer

from infini_jax.config import InputError
from infini_jax.data import prepare
from infini_jax.evaluation import summarization_tables
from infini_jax.evaluation.evaluate import evaluate
from infini_jax.evaluation.filing import newest_file
from infini_jax.evaluation.knock_out import INTACT, Variant
from infini_jax.evaluation.summarization import summarization
from infini_jax.evaluation.validation import Validation
from infini_jax.models import bind
from infini_jax.parallel import make_mesh
from infini_jax.tasks import Pairs
from infini_jax.tasks.summarization import MARK
from infini_jax.training import loop
from tests.tiny import changed, config, fake_params, quiet

N, LENGTH = 16, 20


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
  text = lambda n: " ".join(rng.choice(list("abcdefgh"), n))
  for split, count in (("train", 8), ("validation", 1), ("test", 3)):
    lines = [{"text": text(rng.integers(20, 60)), "summary": text(6)} for _ in range(count)]
    lines.append({"text": "without", "summary": ""})  # must not be scored
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  spec = f"jsonl:{folder}/*.jsonl?summary=summary"
  return Pairs(prepare(spec, folder / "store", "bytes", console=quiet()))


def settings(pairs, **evaluation):
  return config(
    path=pairs.store.folder,
    model={"rule": "delta", "segment_length": N, "tied_embeddings": False},
    data={"carry_state": False, "segments": 16, "lanes": 2},
    task={"name": "summarization"},
    train={"steps": 1},
    mesh={"data": 1},
    evaluation={"lanes": 2, "summary_length": LENGTH, "temperature": 0.0, **evaluation},
  )


def run(pairs, variant=INTACT, **evaluation):
  c = settings(pairs, **evaluation)
  params = fake_params(c.model)
  mesh = make_mesh(c.mesh, jax.devices()[:1])
  with jax.set_mesh(mesh):
    evaluator, seen = summarization(c, mesh, pairs), []
    found = evaluator.run(params, variant, advance=lambda i, text: seen.append(i))
  assert seen[-1] == evaluator.chunks
  return c, params, found


@pytest.fixture(scope="module")
def greedy(pairs):
  return run(pairs)


def reads(c, params):
  """The logits of all tokens by one call, (tokens, V)."""
  model = bind(c.model, params)
  read = jax.jit(lambda x: model.logits(model(x, model.state(1))[0])[0])

  def of(ids):
    whole = np.zeros((1, 12 * N), np.int32)
    whole[0, : len(ids)] = ids
    return np.asarray(read(whole), np.float64)[: len(ids)]

  return of


def plainly(read, pairs, prompt):
  """Greedy decoding: each token by one call over everything before it."""
  tokens, written = prompt.tolist(), []
  for _ in range(LENGTH):
    token = int(read(tokens)[-1].argmax())
    if token == pairs.tokenizer.eos:
      break
    tokens.append(token)
    written.append(token)
  return pairs.tokenizer.decode(written).strip()


def nats_of(read, prompt, answer):
  """Minus the log-likelihood of an answer after a prompt."""
  log_p = jax.nn.log_softmax(read([*prompt, *answer[:-1]]))
  asked = np.arange(len(prompt) - 1, len(prompt) + len(answer) - 1)
  return -np.asarray(log_p, np.float64)[asked, answer].sum()


def test_summaries_and_likelihoods_are_those_of_calls_over_the_whole_text(pairs, greedy):
  c, params, found = greedy
  told, read = pairs.split("test"), reads(c, params)
  assert [s.name for s in found.answers] == told.names and len(told) == 3
  for i, summary in enumerate(found.answers):
    prompt, answer = told.last(i)
    text = pairs.tokenizer.decode(prompt[1:])
    assert text.endswith(MARK) and summary.tokens == len(text) - len(MARK) > 2 * N
    assert summary.written == plainly(read, pairs, prompt), f"document {i}"
    assert summary.reference == pairs.tokenizer.decode(answer[:-1])
    assert summary.answer_tokens == len(answer)
    np.testing.assert_allclose(summary.nats, nats_of(read, prompt, answer), rtol=1e-4)


def test_scores_are_the_librarys_and_overall_is_their_geometric_mean(greedy):
  found = greedy[2]
  scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
  for s in found.answers:
    for name, score in scorer.score(s.reference, s.written).items():
      assert s.scores[name] == score.fmeasure
  means = [100 * np.mean([s.scores[r] for s in found.answers]) for r in ("rouge1", "rougeL")]
  figures = found.to_dict()
  assert [figures["rouge1"], figures["rougeL"]] == pytest.approx(means)
  product = figures["rouge1"] * figures["rouge2"] * figures["rougeL"]
  assert figures["overall"] == pytest.approx(math.cbrt(product))
  for name in ("rouge1", "overall", "log_likelihood"):
    low, high = figures[f"{name}_interval"]
    assert low <= figures[name] <= high


def test_limits(pairs, greedy):
  _, _, short = run(pairs, summary_length=4, max_tokens=10, max_documents=2)
  assert len(short.answers) == 2 and all(s.tokens == 10 for s in short.answers)
  assert short.about["cut"] == 2 and greedy[2].about["cut"] == 0
  assert all(len(s.written.encode()) <= 4 * 3 for s in short.answers)  # a byte out of place: 3


@pytest.mark.slow
def test_texts_are_sampled_as_the_config_says(pairs, greedy):
  of = lambda found: [s.written for s in found.answers]
  assert of(run(pairs, temperature=2.0, top_p=1.0)[2]) != of(greedy[2])
  narrow = of(run(pairs, temperature=2.0, top_p=1e-6)[2])
  assert narrow == of(greedy[2]), "top_p of nearly 0 is greedy"


@pytest.mark.slow
def test_draws_for_a_document_do_not_depend_on_other_documents(pairs):
  """They depend on the seed of the run, not on the number of lanes or documents."""
  how = {"temperature": 1.5, "top_p": 1.0, "summary_length": 8}
  for variant in (INTACT, Variant("empty", empty=True)):
    two, one, fewer = (
      run(pairs, variant, **how, **more)[2].answers
      for more in ({"lanes": 2}, {"lanes": 1}, {"lanes": 2, "max_documents": 2})
    )
    assert [s.written for s in one] == [s.written for s in two], variant.name
    assert [s.written for s in fewer] == [s.written for s in two][:2], variant.name


def test_with_the_memory_held_empty_only_the_open_segment_is_read(pairs, greedy):
  c, params, found = run(pairs, Variant("empty", empty=True))
  assert [s.written for s in found.answers] != [s.written for s in greedy[2].answers]
  assert [s.tokens for s in found.answers] == [s.tokens for s in greedy[2].answers]


def test_validation_is_the_perplexity_of_references_after_their_documents(pairs):
  c = settings(pairs, segments=2)
  params = fake_params(c.model)
  mesh = make_mesh(c.mesh, jax.devices()[:1])
  with jax.set_mesh(mesh):
    line, figures = Validation(c, mesh, pairs).run(params)
  prompt, answer = pairs.split("validation").last(0)
  nats = nats_of(reads(c, params), prompt, answer)
  np.testing.assert_allclose(figures["nats"], nats, rtol=1e-4)
  assert figures["tokens"] == len(answer)
  assert f"{figures['answer_perplexity']:.3f}" in line


@pytest.mark.slow
@pytest.mark.parametrize("carry", [False, True])
def test_trained_and_evaluated_from_files_on_eight_devices(pairs, tmp_path, carry):
  """Also of an older run, which read one pair a chunk: only its training does not go on."""
  c = settings(pairs, lanes=8)
  data = changed(c.data, lanes=8, segments=2 if carry else 16, carry_state=carry)
  c = changed(c, mesh=changed(c.mesh, data=8), data=data)
  run = tmp_path / "run"
  loop.train(c, str(run), quiet())
  written = json.loads((run / "run.json").read_text())
  written["corpus"] = f"{pairs.store.fingerprint} summaries"
  del written["sha256"]
  (run / "run.json").write_text(json.dumps(written))
  (results,) = evaluate(c, str(run), quiet(), tasks=("summarization",)).values()
  folder = newest_file(run, "summarization").parent
  lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
  assert len(lines) == 3 and all({"written", "reference", "knocked_out"} <= set(x) for x in lines)
  assert (folder / "summaries.png").read_bytes().startswith(b"\x89PNG")
  assert results["memory"]["documents"] == 3 and 0 <= results["memory"]["rouge1"] <= 100
  with pytest.raises(InputError, match="start a new run with --config.train.start_from"):
    loop.train(c, str(run), quiet())


def test_other_ablations_are_refused(pairs):
  with pytest.raises(InputError, match="leave 'empty'"):
    run(pairs, knock_out=("reads",))


def test_the_scores_are_printed_and_drawn_for_every_ablation(greedy, tmp_path):
  c, _, found = greedy
  both, console = {"memory": found, "empty": found}, Console(file=io.StringIO(), width=200)
  summarization_tables.show(both, {"step": 3}, c, console)
  said = console.file.getvalue()
  for figure in ("ROUGE-1", "overall", "step 3", "memory held empty", "reference:"):
    assert figure in said, f"the table lacks {figure!r}"
  drawn = summarization_tables.draw(both, {}, tmp_path)
  assert drawn["summaries"].read_bytes().startswith(b"\x89PNG")
  assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == len(found.answers)
  console, none = quiet(), dict.fromkeys(found.answers[0].scores, 0.0)
  silent = changed(found, answers=tuple(s._replace(scores=none) for s in found.answers))
  summarization_tables.verdict({"memory": silent, "empty": silent}, console)
  assert "No summary has a word" in " ".join(console.file.getvalue().split())


def test_the_verdict_says_so_when_the_rest_of_the_document_does_not_help(greedy):
  console = quiet()
  half = dict.fromkeys(greedy[2].answers[0].scores, 0.5)
  right = changed(greedy[2], answers=tuple(s._replace(scores=half) for s in greedy[2].answers))
  summarization_tables.verdict({"memory": right, "empty": right}, console)
  assert "does not help" in console.file.getvalue()
