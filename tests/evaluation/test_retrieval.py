"""Counts depend only on the examples: they equal those of reading each example in one call."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from infini_jax.config import InputError
from infini_jax.data import prepare
from infini_jax.evaluation import retrieval
from infini_jax.evaluation.kept import Kept
from infini_jax.evaluation.knock_out import INTACT, Variant
from infini_jax.evaluation.reading import Reader
from infini_jax.evaluation.retrieval import Cell, Recalled, Retrieval, independent, wilson
from infini_jax.evaluation.retrieval_tables import show
from infini_jax.models import bind
from infini_jax.parallel import make_mesh
from infini_jax.tasks import Examples, make_task
from tests.tiny import SYSTEMS, array, changed, config, fake_params, quiet, systems

N, SAMPLES = 16, 12
EMPTY = Variant("empty", empty=True)
VARIANTS = [INTACT, EMPTY, Variant("reads cut", cut=(0, 1)), Variant("layer 2 cut", cut=(1,))]
LENGTHS = (70, 145)  # not multiples of a segment; the shortest example has 61
LONGER = (400, 467)  # for needles in bytes; the shortest example has about 370


class Case:
  """A task, a model that answers at random, and the answers to each example by one call."""

  def __init__(self, name="passkey", filler=None, **model):
    size = 264 if filler else 64
    pairs = {"pairs": 3, "distinct_keys": 6, "distinct_values": 4}
    needles = {"family": "multiquery", "needles": 2}
    self.config = config(
      model={
        **{"rule": "delta", "segment_length": N, "tied_embeddings": False, "vocab_size": size},
        **model,
      },
      data={"tokenizer": "bytes" if filler else "task", "carry_state": False},
      task={"name": name, "digits": 3 if filler else 2, **pairs, **needles},
      evaluation={
        "lengths": LONGER if filler else LENGTHS,
        "depths": (0.0, 0.6),
        "samples": SAMPLES,
      },
    )
    self.task = make_task(self.config, name, filler=filler)
    params = fake_params(self.config.model)
    # The model writes only possible answers, so it is often right by chance.
    text = " v0 v1 v2 v3" if name == "recall" else "0123456789"
    answers = np.isin(np.arange(size), self.task.tokenizer.encode(text))
    heads = {"head_VD": jnp.where(answers[:, None], params["head_VD"], 0)}
    self.params = {**params, **heads}
    self._plain, self._evaluators = {}, {}
    self._read = jax.jit(self._whole)

  def _whole(self, params, inputs, reset, cut_L):
    """The logits of whole examples."""
    model = bind(self.config.model, params)
    hidden, _ = model(inputs, model.state(len(inputs)), reset_BS=reset, cut_L=cut_L)
    return model.logits(hidden)

  def evaluate(self, variant=INTACT, **evaluation):
    c = changed(self.config, evaluation=changed(self.config.evaluation, **evaluation))
    mesh = make_mesh(changed(c.mesh, data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
      if c.evaluation not in self._evaluators:
        self._evaluators[c.evaluation] = Retrieval(c, mesh, self.task)
      evaluator, done = self._evaluators[c.evaluation], []
      found = evaluator.run(self.params, variant, advance=lambda i, text: done.append(i))
    assert done == list(range(1, evaluator.chunks + 1)), "every chunk is counted once"
    return found

  def plainly(self, variant):
    """The cells, from one call per example: argmax at every token that is asked for."""
    if variant in self._plain:
      return self._plain[variant]
    e, cells = self.config.evaluation, []
    for length in e.lengths:
      depths = e.depths if self.task.facts.depth_of else (0.0,)
      examples = Examples(self.task, length, depths, SAMPLES, self.config.train.seed)
      count = len(examples.tokens)
      ids = np.stack([examples.read(d, 0, length) for d in range(count)])
      asked = np.stack([examples.asked(d, 0, length) for d in range(count)])
      inputs = np.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=self.task.tokenizer.bos)
      reset = jnp.full((count, -(-length // N)), variant.empty)
      cut_L = array(variant.cut_L(2))
      logits = self._read(self.params, inputs, reset, cut_L)
      right = (np.asarray(logits).argmax(-1) == ids) & asked
      for i, depth in enumerate(depths):
        at = slice(i * SAMPLES, (i + 1) * SAMPLES)
        exact = int((right[at].sum(1) == asked[at].sum(1)).sum())
        tokens, hits = int(asked[at].sum()), int(right[at].sum())
        cells.append(Cell(length, depth, SAMPLES, exact, tokens, hits))
    self._plain[variant] = tuple(cells)
    return self._plain[variant]


@pytest.fixture(scope="module")
def cases(texts, tmp_path_factory):
  store = prepare(str(texts), tmp_path_factory.mktemp("filler") / "store", "bytes", console=quiet())
  return {
    "passkey": Case("passkey"),
    "recall": Case("recall"),
    "needle": Case("needle", filler=store),
  }


@pytest.mark.parametrize(
  "name,variant,lanes,segments",
  [
    ("passkey", VARIANTS[2], 4, 2),
    ("recall", INTACT, 5, 2),
    ("needle", EMPTY, 7, 3),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in [
        *(("passkey", VARIANTS[i], 4, 2) for i in (0, 1, 3)),
        *(("passkey", variant, 3, 1) for variant in (INTACT, EMPTY)),
        ("passkey", INTACT, 40, 64),
        ("recall", EMPTY, 5, 2),
        ("needle", INTACT, 7, 3),
      ]
    ),
  ],
  ids=lambda x: getattr(x, "name", str(x)),
)
def test_counts_are_those_of_reading_every_example_whole(cases, name, variant, lanes, segments):
  case = cases[name]
  found = case.evaluate(variant, lanes=lanes, segments=segments)
  want = case.plainly(variant)
  assert found.cells == want, f"{variant.name}, {lanes} lanes of {segments} segments"
  right, tokens = sum(c.right for c in want), sum(c.tokens for c in want)
  assert 0 < right < tokens, "all or nothing is right: a weak test"
  assert found.token_accuracy == right / tokens
  assert found.exact_match == sum(c.exact for c in want) / sum(c.samples for c in want)
  count = SAMPLES * (2 if case.task.facts.depth_of else 1)
  assert found.tokens == count * sum(case.config.evaluation.lengths)
  figures = found.to_dict()
  assert figures["token_accuracy"] == found.token_accuracy
  assert [c["right"] for c in figures["cells"]] == [c.right for c in want]


def test_ablations_change_the_counts(cases):
  counts = [[c.right for c in cases["passkey"].plainly(variant)] for variant in VARIANTS]
  assert len({tuple(c) for c in counts}) > 2, "the variants count the same: weak tests"


def test_with_the_memory_held_empty_chunks_without_influence_are_not_run(cases, monkeypatch):
  """The counts are the same, and only chunks with questions are run."""
  ran = []
  case = cases["passkey"]
  programs = Reader(case.config, None)._programs
  for name in ("score", "read"):
    run = getattr(programs, name)
    monkeypatch.setattr(programs, name, lambda *a, n=name, run=run: (ran.append(n), run(*a))[1])
  assert case.evaluate(EMPTY, lanes=6, segments=2).cells == case.plainly(EMPTY)
  assert set(ran) == {"score"}
  case.evaluate(INTACT, lanes=6, segments=2)
  assert set(ran) == {"score", "read"}


@pytest.mark.parametrize("name", systems("full"))
def test_every_system_counts_like_whole_calls(name):
  case = Case(**SYSTEMS[name])
  for variant in (INTACT, EMPTY) if name not in ("local", "full") else (INTACT,):
    assert case.evaluate(variant, lanes=24, segments=5).cells == case.plainly(variant)


@pytest.mark.parametrize("name", ["infini", *systems()])
def test_the_common_beginning_of_examples_is_read_once(name, monkeypatch):
  """The counts equal those of whole calls, with fewer tokens read."""
  monkeypatch.setattr(retrieval, "FORKS_FROM", 1)
  case = Case(**SYSTEMS.get(name, {}))
  for variant in VARIANTS[:2] if name not in ("local", "full") else (INTACT,):
    found = case.evaluate(variant, lanes=5, segments=2)
    assert found.cells == case.plainly(variant)
  saved = 0
  for length in LENGTHS:
    examples = Examples(case.task, length, (0.0, 0.6), SAMPLES, case.config.train.seed)
    _, shared_X = examples.trunk(2 * N)
    saved += shared_X.sum() - shared_X.max()
  if name == "full":
    saved = 0  # its state grows as it reads
  assert found.tokens == 2 * SAMPLES * sum(LENGTHS) - saved
  assert name == "full" or saved >= 11 * 96, "32 and 64 tokens of 12 examples are the same"


def test_examples_share_no_more_than_they_have_in_common(cases):
  for name in ("passkey", "recall", "needle"):
    case = cases[name]
    depths = (0.0, 0.5, 1.0) if case.task.facts.depth_of else (0.0,)
    examples = Examples(case.task, 800, depths, 4, 0)
    trunk, shared_X = examples.trunk(8)
    for d, shared in enumerate(shared_X.tolist()):
      assert shared % 8 == 0 and shared <= examples.first_asked
      assert np.array_equal(examples.read(d, 0, shared), examples.read(trunk, 0, shared))
    if name == "passkey":
      assert shared_X[4] > 300 and shared_X[8] > 600, f"{shared_X}: the filler is not shared"


class Stopped(Exception):
  """Stops the evaluation."""


@pytest.mark.parametrize(
  "variant",
  [INTACT, pytest.param(Variant("swap", swap=True), marks=pytest.mark.slow)],
  ids=lambda v: v.name,
)
def test_a_stopped_evaluation_continues_where_it_was(variant, tmp_path, monkeypatch):
  """After any chunk: in a common beginning, between lengths, or inside an example."""
  monkeypatch.setattr(retrieval, "FORKS_FROM", 1)
  case = Case()
  c = changed(case.config, evaluation=changed(case.config.evaluation, lanes=5, segments=2))
  mesh = make_mesh(changed(c.mesh, data=1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    evaluator = Retrieval(c, mesh, case.task)
    want = evaluator.run(case.params, variant)
    for stop in range(1, evaluator.chunks, 3):

      def advance(done, text, stop=stop):
        if done > stop:
          raise Stopped

      kept = Kept(tmp_path / "kept.safetensors", "this", seconds=0)
      with pytest.raises(Stopped):
        evaluator.run(case.params, variant, advance, kept)
      assert Kept(tmp_path / "kept.safetensors", "another").done == 0
      kept = Kept(tmp_path / "kept.safetensors", "this", seconds=0)
      assert kept.done == stop
      done = []
      found = evaluator.run(case.params, variant, lambda i, text, done=done: done.append(i), kept)
      assert done == list(range(stop + 1, evaluator.chunks + 1)), "no chunk is read twice"
      assert found.cells == want.cells and found.tokens == want.tokens
      again = evaluator.run(case.params, variant, pytest.fail, kept)
      assert again.cells == want.cells, "a variant that is done is not read again"
      kept.clear()


def test_a_damaged_partial_evaluation_is_not_continued(tmp_path):
  file = tmp_path / "kept.safetensors"
  Kept(file, "this").save({"x": np.arange(5)}, {"done": 3})
  assert Kept(file, "this").done == 3
  data = bytearray(file.read_bytes())
  data[-3] ^= 1
  file.write_bytes(data)
  assert Kept(file, "this").load() is None


@pytest.mark.slow
def test_eight_devices_count_the_same():
  case = Case()
  mesh = make_mesh(case.config.mesh)
  c = changed(case.config, evaluation=changed(case.config.evaluation, lanes=8))
  with jax.set_mesh(mesh):
    assert Retrieval(c, mesh, case.task).run(case.params).cells == case.plainly(INTACT)


def test_lengths_and_samples_can_be_given_and_too_short_ones_are_refused(cases):
  case = cases["passkey"]
  mesh = make_mesh(changed(case.config.mesh, data=1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    few = Retrieval(case.config, mesh, case.task, (100,), 2)
    cells = few.run(case.params).cells
    assert [(c.length, c.depth, c.samples) for c in cells] == [(100, 0.0, 2), (100, 0.6, 2)]
    for name in cases:
      task = cases[name].task
      shortest = task.shortest
      with pytest.raises(InputError) as error:
        Retrieval(cases[name].config, mesh, task, (shortest, shortest - 1))
      message = str(error.value)
      assert f"config.evaluation.lengths: {shortest - 1} tokens are too short" in message
      assert f"make it {shortest} tokens or more" in message and "\n" not in message


@pytest.mark.parametrize("family,deep", [("multikey", True), ("common_words", False)])
def test_the_table_names_the_family_and_has_depths_where_there_are_some(family, deep):
  found = {"memory": Recalled((Cell(512, 0.25, 8, 3, 32, 20),), 4096, 1.0)}
  out = Console(file=io.StringIO(), width=200)
  results = {"task": "needle", "step": 7, "settings": {"task": {"family": family}}}
  show(found, results, config(task={"family": family}), out)
  text = out.file.getvalue()
  assert f"needle, {family}: 100 new examples a line, step 7" in text
  assert "whole answer right" in text and "0.375" in text and "0.625" in text
  assert ("depth" in text) == ("0.25 " in text) == deep


@pytest.mark.parametrize(
  "right,total,low,high",
  [
    # Brown, Cai, DasGupta (2001) and R's prop.test(correct=FALSE).
    (0, 10, 0.0, 0.2775),
    (10, 10, 0.7225, 1.0),
    (5, 10, 0.2366, 0.7634),
    (1, 100, 0.0018, 0.0545),
    (95, 100, 0.8882, 0.9785),
    (480, 1000, 0.4492, 0.5110),
  ],
)
def test_wilsons_interval(right, total, low, high):
  np.testing.assert_allclose(wilson(right, total), (low, high), atol=6e-5)


@pytest.mark.parametrize("together", [0.0, 0.7, 1.0])
def test_the_interval_of_tokens_allows_for_correlation_within_an_answer(rng, together):
  """Answers of 5 tokens, 80% right: in some answers all or none, in others independently."""
  inside, counts, asked = 0, [], np.full(30, 5)
  for _ in range(400):
    joint = rng.random(30) < together
    right = np.where(joint, 5 * (rng.random(30) < 0.8), rng.binomial(5, 0.8, 30))
    counts.append(independent(asked, right))
    low, high = Cell(9, 0.0, 30, 0, 150, int(right.sum()), counts[-1]).token_interval
    inside += low < 0.8 < high
  assert 0.89 < inside / 400, "95 in 100 are to hold what many examples would give"
  assert 30 <= min(counts) <= max(counts) <= 150
  # Kish's design effect is 1 + (5 - 1) * together. The cap of 150 lowers the mean by up to 7%.
  assert np.mean(counts) == pytest.approx(150 / (1 + 4 * together), rel=0.1)
  for none_or_all in (0, 5):
    assert independent(asked, np.full(30, none_or_all)) == 30
