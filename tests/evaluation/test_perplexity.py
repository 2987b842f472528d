"""Totals depend only on the documents, not on their division into lanes and chunks."""

import dataclasses
import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from infini_jax.config import InputError
from infini_jax.data import prepare
from infini_jax.data.store.mixture import open_mixture
from infini_jax.evaluation.kept import Kept
from infini_jax.evaluation.knock_out import EMPTY, INTACT, Variant
from infini_jax.evaluation.perplexity import Perplexity, Scores, _floor_power, interval
from infini_jax.evaluation.perplexity_tables import show
from infini_jax.evaluation.reading import documents_read
from infini_jax.models import bind
from infini_jax.parallel import make_mesh
from tests.tiny import SYSTEMS, changed, config, fake_params, quiet, systems

N = 16


@pytest.fixture(scope="module")
def store(texts, tmp_path_factory):
  return prepare(str(texts), tmp_path_factory.mktemp("store") / "s", "bytes", console=quiet())


@pytest.fixture(scope="module")
def documents(store):
  return store.split("test")


class Case:
  """A model, and the figures of reading each document in one call."""

  def __init__(self, store, documents, **model):
    self.store, self.documents = store, documents
    carry = "full" not in (model.get("mixer"), *model.get("pattern", ()))
    model = {"rule": "delta", "logit_softcap": 2.0, **model}
    self.config = config(model=model, data={"carry_state": carry})
    self.params = fake_params(self.config.model)
    self._read = jax.jit(self._whole)

  def _whole(self, params, tokens_T, empty, cut_L, empty_L):
    """The log-probabilities after each token of a document."""
    model = bind(self.config.model, params)
    flags = {"reset_BS": jnp.full((1, len(tokens_T) // N), empty), "cut_L": cut_L}
    if empty_L is not None:  # only layers with their own state have it
      flags["empty_L"] = empty_L
    hidden, _ = model(tokens_T[None], model.state(1), **flags)
    return jax.nn.log_softmax(model.logits(hidden))[0]

  def evaluate(self, variant=INTACT, *, params=None, documents=None, **evaluation):
    c = changed(self.config, evaluation=changed(self.config.evaluation, **evaluation))
    mesh = make_mesh(changed(c.mesh, data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
      evaluator = Perplexity(
        c, mesh, self.documents if documents is None else documents, self.store.tokenizer
      )
      done = []
      advance = lambda *so_far: done.append(so_far)
      scores = evaluator.run(params or self.params, variant, advance=advance)
    assert [i for i, _ in done] == list(range(1, evaluator.chunks + 1))
    assert done[-1][1] == f"perplexity {scores.perplexity:.3f}", "the last says what is found"
    return scores

  def plainly(self, empty=False, max_tokens=None, cut=(), layers=None):
    """Nats of every token of each document, each read by one call."""
    longest = int(-(-self.documents.tokens.max() // N) * N)
    cut_L = np.isin(np.arange(2), cut) if cut else None
    empty_L = None if layers is None else np.array(layers)
    nats = []
    for d in range(len(self.documents)):
      ids = self.documents.read(d, 0, int(self.documents.tokens[d]))[:max_tokens]
      inputs = np.zeros(longest, np.int32)
      inputs[: len(ids)] = [self.store.tokenizer.bos, *ids[:-1]]
      log_p = np.asarray(self._read(self.params, inputs, empty, cut_L, empty_L), np.float64)
      nats.append(-log_p[np.arange(len(ids)), ids])
    return nats


@pytest.fixture(scope="module")
def case(store, documents):
  return Case(store, documents)


@pytest.fixture(scope="module")
def scores(case):
  return case.evaluate(lanes=2, segments=2)


def test_equals_reading_document_by_document(case, scores):
  nats = case.plainly()
  assert scores.documents == len(nats) and scores.tokens == sum(map(len, nats))
  np.testing.assert_allclose(scores.nats, sum(x.sum() for x in nats), rtol=1e-5)
  for (name, tokens, total), expected, d in zip(
    scores.per_document, nats, range(len(nats)), strict=True
  ):
    assert (name, tokens) == (case.documents.names[d], len(expected))
    np.testing.assert_allclose(total, expected.sum(), rtol=1e-5)


@pytest.mark.parametrize("lanes,segments", [(1, 1), (3, 5), (4, 2), (8, 64)])
def test_totals_do_not_depend_on_chunks_and_lanes(case, scores, lanes, segments):
  got = case.evaluate(lanes=lanes, segments=segments)
  assert (got.tokens, got.words, got.bytes) == (scores.tokens, scores.words, scores.bytes)
  np.testing.assert_allclose(got.nats, scores.nats, rtol=1e-5)
  for field in ("by_position", "by_compressions"):
    a, b = getattr(got, field), getattr(scores, field)
    assert {k: n for k, (n, _) in a.items()} == {k: n for k, (n, _) in b.items()}
    np.testing.assert_allclose([x for _, x in a.values()], [x for _, x in b.values()], rtol=1e-5)


def test_buckets_hold_every_token_once_and_in_its_place(case, scores):
  nats = case.plainly()
  for field, bucket in (
    ("by_position", lambda p: 0 if p < 128 else 128 * 2 ** int(math.log2(p // 128))),
    ("by_compressions", lambda p: 0 if p < N else 2 ** int(math.log2(p // N))),
  ):
    got = getattr(scores, field)
    assert sum(n for n, _ in got.values()) == scores.tokens
    np.testing.assert_allclose(sum(x for _, x in got.values()), scores.nats, rtol=1e-9)
    expected = {}
    for document in nats:
      for position, x in enumerate(document):
        n, total = expected.get(bucket(position), (0, 0.0))
        expected[bucket(position)] = (n + 1, total + x)
    assert list(got) == sorted(expected)
    for start, (n, total) in expected.items():
      assert got[start][0] == n, f"{field}: tokens from {start} on"
      np.testing.assert_allclose(got[start][1], total, rtol=1e-4)


def test_bucket_starts():
  np.testing.assert_array_equal(
    _floor_power(np.array([0, 127, 128, 255, 256, 1023, 1024]), 128),
    [0, 0, 128, 128, 256, 512, 1024],
  )
  np.testing.assert_array_equal(_floor_power(np.array([0, 1, 2, 3, 4, 9]), 1), [0, 1, 2, 2, 4, 8])


def test_figures_follow_from_the_totals(case, scores):
  texts = [case.documents.read(d, 0, int(n)) for d, n in enumerate(case.documents.tokens)]
  texts = [case.store.tokenizer.decode(ids) for ids in texts]
  size, words = sum(len(t.encode()) for t in texts), sum(len(t.split()) for t in texts)
  assert (scores.bytes, scores.words) == (size, words)
  assert scores.bits_per_byte == pytest.approx(scores.nats / math.log(2) / size)
  assert scores.perplexity == pytest.approx(math.exp(scores.nats / scores.tokens))
  assert scores.word_perplexity == pytest.approx(math.exp(scores.nats / words))
  figures = scores.to_dict()
  assert figures["bits_per_byte"] == scores.bits_per_byte and figures["tokens"] == scores.tokens


@pytest.mark.parametrize("documents", [3, 12])
def test_the_interval_holds_what_many_documents_would_give(rng, documents):
  """Documents of very different lengths with a mean of 3 nats a token: 95% of intervals hold 3."""
  inside = 0
  for _ in range(400):
    tokens = rng.integers(100, 10_000, documents)
    nats = tokens * (3 + 0.2 * rng.standard_normal(documents))
    drawn = Scores(
      documents=documents, tokens=int(tokens.sum()), words=1, bytes=1, nats=nats.sum(), seconds=1.0,
      by_position={}, by_compressions={},
      per_document=[("", *x) for x in zip(tokens, nats, strict=True)],
    )  # fmt: skip
    low, high = drawn.interval
    assert low < drawn.perplexity < high
    inside += low < math.exp(3) < high
  assert 0.85 < inside / 400 < 0.99
  assert dataclasses.replace(drawn, per_document=drawn.per_document[:1]).interval is None


def test_no_interval_goes_below_a_perplexity_of_1(rng):
  for _ in range(200):
    k = int(rng.integers(2, 6))
    documents = [("", int(rng.integers(1, 900)), float(n)) for n in 50 * rng.exponential(size=k)]
    total = math.exp(sum(n for *_, n in documents) / sum(n for _, n, _ in documents))
    low, high = interval(documents)
    assert 1 <= low <= total * (1 + 1e-9) and total <= high * (1 + 1e-9)
  assert interval([("", 5, 0.0), ("", 9, 0.0)]) == (1, 1)
  assert all(map(math.isnan, interval([("", 5, math.nan), ("", 9, 1.0)])))


def test_documents_that_are_cut_are_counted(case, scores):
  assert scores.cut == 0
  most = int(sorted(case.documents.tokens)[1])  # the first two are read to their ends
  cut = case.evaluate(max_tokens=most).cut
  assert cut == (case.documents.tokens > most).sum() > 0 and type(cut) is int
  assert documents_read(3, 0, 0) == "3 whole documents"
  assert documents_read(3, 2, 1000) == "3 documents, 2 of them cut at 1,000 tokens"
  assert documents_read(1, 0, 0) == "1 whole document"


def test_memory_held_empty_is_the_local_model(case, scores):
  out = case.evaluate(Variant("empty", empty=True), lanes=2, segments=2)
  np.testing.assert_allclose(out.nats, sum(x.sum() for x in case.plainly(empty=True)), rtol=1e-5)
  local = Case(case.store, case.documents, mixer="local")
  attention = {k: v for k, v in case.params["blocks"]["attention"].items() if k != "mixer"}
  blocks = {**case.params["blocks"], "attention": attention}
  expected = local.evaluate(params={**case.params, "blocks": blocks}, lanes=2, segments=2)
  np.testing.assert_allclose(out.nats, expected.nats, rtol=1e-5)
  assert abs(out.nats - scores.nats) > 1e-3 * scores.nats, "the memory does nothing: a weak test"
  assert out.by_compressions[0] == pytest.approx(scores.by_compressions[0], rel=1e-5)


@pytest.mark.parametrize("cut", [(0,), (1,), (0, 1)])
def test_cut_reads_are_those_of_the_layers_that_are_named(case, scores, cut):
  out = case.evaluate(Variant("cut", cut=cut), lanes=2, segments=2)
  np.testing.assert_allclose(out.nats, sum(x.sum() for x in case.plainly(cut=cut)), rtol=1e-5)
  assert abs(out.nats - scores.nats) > 1e-4 * scores.nats, f"cutting layers {cut} does nothing"
  assert out.by_compressions[0] == pytest.approx(scores.by_compressions[0], rel=1e-5)


@pytest.mark.parametrize("name", systems("local"))
def test_every_system_reads_a_document_as_one_call_does(store, documents, name):
  """Chunks of two segments, with carried states (`full`: growing), and the memory held empty."""
  case = Case(store, documents, **SYSTEMS[name])
  got = case.evaluate(lanes=2, segments=2)
  np.testing.assert_allclose(got.nats, sum(x.sum() for x in case.plainly()), rtol=1e-5)
  if name not in ("local", "full"):
    out = case.evaluate(Variant("empty", empty=True), lanes=2, segments=2)
    np.testing.assert_allclose(out.nats, sum(x.sum() for x in case.plainly(empty=True)), rtol=1e-5)
    assert abs(out.nats - got.nats) > 1e-4 * got.nats, "the memory does nothing: a weak test"


@pytest.mark.slow
def test_beside_full_attention_only_the_memory_is_held_empty(store, documents):
  case = Case(store, documents, pattern=("infini", "full"))
  got = case.evaluate(lanes=2, segments=2)
  np.testing.assert_allclose(got.nats, sum(x.sum() for x in case.plainly()), rtol=1e-5)
  out = case.evaluate(Variant("empty", empty=True), lanes=2, segments=2)
  want = sum(x.sum() for x in case.plainly(layers=(True, False)))
  np.testing.assert_allclose(out.nats, want, rtol=1e-5)
  everywhere = sum(x.sum() for x in case.plainly(empty=True))
  for other, what in ((got.nats, "nothing"), (everywhere, "full attention too")):
    assert abs(out.nats - other) > 1e-5 * other, f"it takes away {what}"


@pytest.mark.slow
def test_beside_local_attention_the_memory_held_empty_is_the_local_model(store, documents):
  case = Case(store, documents, pattern=("infini", "local"))
  out = case.evaluate(Variant("empty", empty=True), lanes=2, segments=2)
  np.testing.assert_allclose(out.nats, sum(x.sum() for x in case.plainly(empty=True)), rtol=1e-5)


def test_limits_on_documents_and_tokens(case, scores):
  one = case.evaluate(max_documents=1)
  assert one.documents == 1 and one.per_document[0][:2] == scores.per_document[0][:2]
  np.testing.assert_allclose(one.nats, scores.per_document[0][2], rtol=1e-5)
  part = case.evaluate(max_tokens=50)
  nats = case.plainly(max_tokens=50)
  assert part.tokens == sum(map(len, nats)) == 50 * len(case.documents)
  np.testing.assert_allclose(part.nats, sum(x.sum() for x in nats), rtol=1e-5)
  texts = [case.store.tokenizer.decode(case.documents.read(d, 0, 50)) for d in range(3)]
  assert part.bytes == sum(len(t.encode()) for t in texts), "bytes of what was read, no more"


class Cut:
  """Documents that are read up to a place inside a character, and a tokenizer for them."""

  stores = ("",)

  def __init__(self, tokenizer, texts, drops=""):
    self.texts = texts
    self.ids = [tokenizer.encode("".join(c for c in text if c not in drops)) for text in texts]
    self.tokens = np.array([len(ids) for ids in self.ids])
    self.bytes = np.array([len(text.encode()) for text in texts])
    self.words = np.array([len(text.split()) for text in texts])
    self.names = [str(i) for i in range(len(texts))]

  def __len__(self):
    return len(self.tokens)

  def read(self, document, start, stop):
    return self.ids[document][start:stop]


def test_bytes_of_a_document_that_is_cut_are_those_of_its_text(case):
  texts = ["né 日本 🙂 " * 9, "🙂" * 40, "\ufffd" * 40]
  documents = Cut(case.store.tokenizer, texts)
  scores = case.evaluate(documents=documents, max_tokens=13)
  assert scores.bytes == scores.tokens == 39, "a byte for each token, also inside of a character"
  drops = Cut(case.store.tokenizer, ["aab" * 40], drops="b")
  scores = case.evaluate(documents=drops, max_tokens=20)
  assert (scores.tokens, scores.bytes) == (20, 30), "the source's own bytes, as for whole documents"


SWAP = Variant("memory of another", swap=True)


def test_swapped_every_segment_is_read_with_the_memory_of_the_other_document(case, rng):
  texts = ["".join(rng.choice(list("abcdefgh "), 5 * N - 3)) for _ in range(2)]
  documents = Cut(case.store.tokenizer, texts)
  got = case.evaluate(SWAP, documents=documents, lanes=2, segments=2)
  model = bind(case.config.model, case.params)
  read = jax.jit(lambda x, state: model(x, state))
  inputs = np.zeros((2, 5 * N), np.int32)
  for d in range(2):
    ids = documents.read(d, 0, 5 * N - 3)
    inputs[d, : len(ids)] = [case.store.tokenizer.bos, *ids[:-1]]
  states, nats = [model.state(1)] * 2, np.zeros(2)
  for s in range(5):
    part = inputs[:, s * N : (s + 1) * N]
    for d in range(2):
      log_p = jax.nn.log_softmax(model.logits(read(part[d : d + 1], states[1 - d])[0]))[0]
      targets = documents.read(d, s * N, (s + 1) * N)
      nats[d] -= np.asarray(log_p, np.float64)[np.arange(len(targets)), targets].sum()
    states = [read(part[d : d + 1], states[d])[1] for d in range(2)]
  np.testing.assert_allclose([total for *_, total in got.per_document], nats, rtol=1e-5)
  intact = case.evaluate(documents=documents, lanes=2, segments=2)
  for swapped, (name, *_, own) in zip(nats, intact.per_document, strict=True):
    assert abs(swapped - own) > 1e-5 * own, f"a swap changes nothing in document {name}"


@pytest.mark.slow
def test_a_swap_leaves_each_document_its_own_full_attention(store, documents):
  case = Case(store, documents, pattern=("infini", "full"))
  text = "the same text, word for word. " * 4
  same = Cut(case.store.tokenizer, [text] * 2)
  got, own = (
    case.evaluate(variant, documents=same, lanes=2, segments=2) for variant in (SWAP, INTACT)
  )
  np.testing.assert_allclose(got.nats, own.nats, rtol=1e-5)
  others = Cut(case.store.tokenizer, [text, text[::-1]])
  got, own = (
    case.evaluate(variant, documents=others, lanes=2, segments=2) for variant in (SWAP, INTACT)
  )
  for (name, *_, swapped), (*_, intact) in zip(got.per_document, own.per_document, strict=True):
    assert abs(swapped - intact) > 1e-6 * intact, f"a swap changes nothing in document {name}"


@pytest.mark.slow
def test_the_memory_of_a_document_of_the_same_text_is_as_good_as_its_own(case):
  documents = Cut(case.store.tokenizer, ["the same text, word for word. " * 4] * 3)
  got = case.evaluate(SWAP, documents=documents, lanes=3, segments=2)
  own = case.evaluate(documents=documents, lanes=3, segments=2)
  assert got.tokens == own.tokens
  np.testing.assert_allclose(got.nats, own.nats, rtol=1e-5)


@pytest.mark.parametrize("segments", [1, 3])
def test_inputs_of_a_given_length_are_each_read_with_an_empty_memory(case, scores, segments):
  """The paper's protocols: inputs of 32K or 100K, or no state. Every token is counted once."""
  size = segments * N
  got = case.evaluate(lanes=2, segments=2, input_tokens=size)
  assert got.tokens == scores.tokens and got.by_position.keys() == scores.by_position.keys()
  assert (
    max(got.by_compressions) == segments - 1
    and sum(n for n, _ in got.by_compressions.values()) == got.tokens
  )
  if segments == 1:
    expected = case.evaluate(Variant("empty", empty=True), lanes=2, segments=2)
    np.testing.assert_allclose(got.nats, expected.nats, rtol=1e-6)
    return
  # Each input is read by its own call, with the token before it as its first input.
  model, total = bind(case.config.model, case.params), 0.0
  read = jax.jit(lambda x: jax.nn.log_softmax(model.logits(model(x, model.state(1))[0]))[0])
  for d in range(len(case.documents)):
    ids = case.documents.read(d, 0, int(case.documents.tokens[d]))
    inputs = np.array([case.store.tokenizer.bos, *ids[:-1]], np.int32)
    for start in range(0, len(ids), size):
      part, target = inputs[start : start + size], ids[start : start + size]
      whole = np.zeros((1, size), np.int32)
      whole[0, : len(part)] = part
      total -= np.asarray(read(whole), np.float64)[np.arange(len(part)), target].sum()
  np.testing.assert_allclose(got.nats, total, rtol=1e-5)
  assert abs(got.nats - scores.nats) > 1e-4 * scores.nats, "the inputs' borders change nothing"


def test_an_empty_split_is_refused(case):
  class Nothing:
    tokens = np.zeros(0, np.int64)

    def __len__(self):
      return 0

  with pytest.raises(InputError, match="this split is empty"):
    case.evaluate(documents=Nothing())


def test_a_mixture_is_read_whole_and_each_store_has_its_own_figures(case, texts, tmp_path):
  """One text in two stores: the first documents are from both, and have equal figures."""
  made = (prepare(str(texts), tmp_path / name, "bytes", console=quiet()) for name in "ab")
  stores = [str(store.folder) for store in made]
  mixture = open_mixture(f"mix:{stores[0]}=1,{stores[1]}=5")
  found = case.evaluate(documents=mixture.split("test"), max_documents=4)
  alone = case.evaluate(max_documents=2)
  assert list(found.by_source) == stores and not alone.by_source
  for documents, tokens, nats in found.by_source.values():
    assert (documents, tokens) == (2, alone.tokens)
    np.testing.assert_allclose(nats, alone.nats, rtol=1e-5)
  assert found.tokens == 2 * alone.tokens and len({name for name, _, _ in found.per_document}) == 4
  out = Console(file=io.StringIO(), width=200)
  show({"memory": found, "empty": found}, {"step": 3}, case.config, out)
  assert f"{stores[1]}: per token" in out.file.getvalue()


class Stopped(Exception):
  """Stops the evaluation."""


@pytest.mark.parametrize(
  "variant",
  [
    INTACT,
    pytest.param(Variant("swap", swap=True), marks=pytest.mark.slow),
    pytest.param(EMPTY, marks=pytest.mark.slow),
  ],
  ids=lambda v: v.name,
)
def test_a_stopped_evaluation_continues_where_it_was(store, documents, tmp_path, variant):
  """After any chunk, and after the last one: then nothing is read."""
  case = Case(store, documents)
  c = changed(case.config, evaluation=changed(case.config.evaluation, lanes=3, segments=2))
  mesh = make_mesh(changed(c.mesh, data=1), jax.devices()[:1])
  file = tmp_path / "kept.safetensors"
  with jax.set_mesh(mesh):
    evaluator = Perplexity(c, mesh, documents, store.tokenizer)
    want = evaluator.run(case.params, variant)
    for stop in range(1, evaluator.chunks, 5):

      def advance(done, text, stop=stop):
        if done > stop:
          raise Stopped

      with pytest.raises(Stopped):
        evaluator.run(case.params, variant, advance=advance, kept=Kept(file, "this", seconds=0))
      kept, done = Kept(file, "this", seconds=0), []
      assert kept.done == stop
      count = lambda i, text, done=done: done.append(i)
      found = evaluator.run(case.params, variant, advance=count, kept=kept)
      assert done == list(range(stop + 1, evaluator.chunks + 1)), "no chunk is read twice"
      again = evaluator.run(case.params, variant, advance=pytest.fail, kept=kept)
      for scores in (found, again):
        assert dataclasses.replace(scores, seconds=want.seconds) == want
        assert scores.losses.nats.keys() == want.losses.nats.keys()
        for d, nats in want.losses.nats.items():
          np.testing.assert_array_equal(scores.losses.nats[d], nats)
      kept.clear()
