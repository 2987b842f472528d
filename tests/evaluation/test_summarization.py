"""Summaries are written from whole documents, scored by the library, and saved with references."""

import json
import math

import jax
import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from infini_jax.config import InputError
from infini_jax.data import prepare
from infini_jax.evaluation import summarization_tables
from infini_jax.evaluation.evaluate import evaluate
from infini_jax.evaluation.filing import newest_file
from infini_jax.evaluation.knock_out import INTACT, Variant
from infini_jax.evaluation.summarization import Summarization, seed_of
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
  with jax.set_mesh(make_mesh(c.mesh, jax.devices()[:1])) as mesh:
    evaluator, seen = Summarization(c, mesh, pairs), []
    found = evaluator.run(params, variant, advance=lambda i, text: seen.append(i))
  assert seen[-1] == evaluator.chunks == len(found.summaries)
  return c, params, found


@pytest.fixture(scope="module")
def greedy(pairs):
  return run(pairs)


def plainly(c, params, pairs, ids):
  """Greedy decoding: each token by one call over everything before it."""
  model, tokens = bind(c.model, params), [pairs.tokenizer.bos, *ids]
  tokens += pairs.tokenizer.encode(MARK).tolist()
  size = -(-(len(tokens) + LENGTH) // N) * N
  read = jax.jit(lambda x: model.logits(model(x, model.state(1))[0])[0])
  written = []
  for _ in range(LENGTH):
    whole = np.zeros((1, size), np.int32)
    whole[0, : len(tokens)] = tokens
    token = int(np.asarray(read(whole))[len(tokens) - 1].argmax())
    if token == pairs.tokenizer.eos:
      break
    tokens.append(token)
    written.append(token)
  return pairs.tokenizer.decode(written).strip()


def test_a_summary_equals_greedy_decoding_by_calls_over_the_whole_text(pairs, greedy):
  c, params, found = greedy
  documents, _ = pairs.split("test")
  assert [s.name for s in found.summaries] == documents.names[:3]
  for i, summary in enumerate(found.summaries):
    ids = documents.read(i, 0, int(documents.tokens[i]))
    assert summary.tokens == len(ids) > 2 * N
    assert summary.written == plainly(c, params, pairs, ids), f"document {i}"


def test_scores_are_the_librarys_and_overall_is_their_geometric_mean(greedy):
  found = greedy[2]
  scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
  for s in found.summaries:
    for name, score in scorer.score(s.reference, s.written).items():
      assert getattr(s, name) == score.fmeasure
  means = [100 * np.mean([getattr(s, r) for s in found.summaries]) for r in ("rouge1", "rougeL")]
  figures = found.to_dict()
  assert [figures["rouge1"], figures["rougeL"]] == pytest.approx(means)
  product = figures["rouge1"] * figures["rouge2"] * figures["rougeL"]
  assert figures["overall"] == pytest.approx(math.cbrt(product))


def test_limits_and_sampling(pairs, greedy):
  _, _, short = run(pairs, summary_length=4, max_tokens=10, max_documents=2)
  assert len(short.summaries) == 2 and all(s.tokens == 10 for s in short.summaries)
  assert short.cut == 2 and greedy[2].cut == 0
  assert all(len(s.written.encode()) <= 4 * 3 for s in short.summaries)  # a byte out of place: 3
  hot = {"temperature": 2.0, "top_p": 1.0}
  texts = [[s.written for s in run(pairs, **how)[2].summaries] for how in (hot, hot)]
  assert texts[0] == texts[1] != [s.written for s in greedy[2].summaries]
  narrow = [s.written for s in run(pairs, temperature=2.0, top_p=1e-6)[2].summaries]
  assert narrow == [s.written for s in greedy[2].summaries], "top_p of nearly 0 is greedy"


@pytest.mark.slow
def test_draws_for_a_document_do_not_depend_on_other_documents(pairs):
  """They depend on the seed of the run, not on the number of lanes or documents."""
  how = {"temperature": 1.5, "top_p": 1.0, "summary_length": 8}
  for variant in (INTACT, Variant("empty", empty=True)):
    two, one, fewer = (
      run(pairs, variant, **how, **more)[2].summaries
      for more in ({"lanes": 2}, {"lanes": 1}, {"lanes": 2, "max_documents": 2})
    )
    assert [s.written for s in one] == [s.written for s in two], variant.name
    assert [s.written for s in fewer] == [s.written for s in two][:2], variant.name
  ids = np.arange(5, dtype=np.int32)
  assert len({seed_of(0, ids), seed_of(1, ids), seed_of(0, ids[:4]), seed_of(0, ids[::-1])}) == 4


def test_with_the_memory_held_empty_only_the_open_segment_is_read(pairs, greedy):
  c, params, found = run(pairs, Variant("empty", empty=True))
  assert [s.written for s in found.summaries] != [s.written for s in greedy[2].summaries]
  assert found.tokens == greedy[2].tokens


def test_validation_is_the_perplexity_of_references_after_their_documents(pairs):
  c = settings(pairs, segments=2)
  params = fake_params(c.model)
  mesh = make_mesh(c.mesh, jax.devices()[:1])
  with jax.set_mesh(mesh):
    line, figures = Validation(c, mesh, pairs).run(params)
  parts = pairs.split("validation")
  document, summary = (part.read(0, 0, int(part.tokens[0])) for part in parts)
  ids = np.concatenate([pairs.prompt(document), summary])
  whole = np.zeros((1, -(-len(ids) // N) * N), np.int32)
  whole[0, : len(ids)] = ids
  model = bind(c.model, params)
  log_p = jax.nn.log_softmax(model.logits(model(whole, model.state(1))[0])[0])
  asked = np.arange(len(ids) - len(summary), len(ids))
  nats = -np.asarray(log_p, np.float64)[asked - 1, ids[asked]].sum()
  np.testing.assert_allclose(figures["nats"], nats, rtol=1e-4)
  assert figures["tokens"] == len(summary)
  assert f"{figures['summary_perplexity']:.3f}" in line


@pytest.mark.slow
def test_trained_and_evaluated_from_files_on_eight_devices(pairs, tmp_path):
  c = settings(pairs, lanes=8)
  c = changed(c, mesh=changed(c.mesh, data=8), data=changed(c.data, lanes=8))
  loop.train(c, str(tmp_path / "run"), quiet())
  (results,) = evaluate(c, str(tmp_path / "run"), quiet(), tasks=("summarization",)).values()
  folder = newest_file(tmp_path / "run", "summarization").parent
  lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
  assert len(lines) == 3 and all({"written", "reference", "knocked_out"} <= set(x) for x in lines)
  assert (folder / "summaries.png").read_bytes().startswith(b"\x89PNG")
  assert results["memory"]["documents"] == 3 and 0 <= results["memory"]["rouge1"] <= 100


def test_other_ablations_are_refused(pairs):
  with pytest.raises(InputError, match="leave 'empty'"):
    run(pairs, knock_out=("reads",))


def test_the_verdict_says_so_when_the_rest_of_the_document_does_not_help(greedy):
  console = quiet()
  right = changed(greedy[2], summaries=tuple(s._replace(rouge1=0.5) for s in greedy[2].summaries))
  summarization_tables.verdict({"memory": right, "empty": right}, console)
  assert "carries nothing" in console.file.getvalue()
  assert changed(greedy[2], tokens=1).summary.startswith("ROUGE-1, -2, -L ")
