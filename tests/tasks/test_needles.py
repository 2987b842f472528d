"""Needles: exact lengths, well-posed questions, text of the user's own corpus.

`needle_solver` proves that a question is well posed: it reads only the text.
"""

import functools
import io
import itertools
import re
import tracemalloc

import numpy as np
import pytest
import tokenizers as huggingface
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from infini_jax.config import InputError
from infini_jax.config.schema import FAMILIES
from infini_jax.data import prepare
from infini_jax.data.tokenizers import ByteTokenizer, WordTokenizer
from infini_jax.tasks import TaskLanes, make_task, needle_filler, open_dataset
from infini_jax.tasks.draw import Draw
from infini_jax.tasks.needle_families import IN_FILLER
from infini_jax.tasks.needle_filler import Filler
from infini_jax.tasks.words import ADJECTIVES, NOUNS, PEOPLE, ROOMS, THINGS
from tests.tasks.needle_solver import solve
from tests.tiny import config

KINDS = ("bytes", "sentencepiece", "huggingface")
# Every family, some in more than one size.
VARIANTS = [
  *({"family": family} for family in FAMILIES),
  {"family": "facts", "facts": 2, "needles": 7},
  {"family": "variables", "hops": 1, "needles": 1},
  {"family": "multikey", "needles": 12, "digits": 7},
  {"family": "multivalue", "needles": 1},
  {"family": "common_words", "needles": 1},
]
NAMES = ["-".join(map(str, variant.values())) for variant in VARIANTS]
# Fast tests have each of them with one tokenizer, and each tokenizer with a third of them.
OF_EACH = [
  pytest.param(i, kind, id=f"{name}-{kind}", marks=[pytest.mark.slow] * ((i - j) % len(KINDS) > 0))
  for i, name in enumerate(NAMES)
  for j, kind in enumerate(KINDS)
]
VALUES = {
  "variables": r"\b(\d{3,}|[A-Z]{3})\b",
  "facts": rf"\b[a-z]+ (?:{'|'.join(ROOMS)})\b",
  "common_words": r"\b[a-z]+-[a-z]+\b",
  "frequent_words": r"\b(?:[a-z][aeiou]){3}\b",
}


def write_corpus(folder):
  """Sentences of invented words, in three splits with different endings of words."""
  rng = np.random.default_rng(0)
  for split, ending, count in (("train", "uk", 9), ("validation", "ix", 3), ("test", "ul", 3)):
    (folder / split).mkdir(parents=True)
    for i in range(count):
      words = ["".join(rng.choice(list("aeioulmnrst"), 4)) + ending for _ in range(900)]
      text = "".join(f" {w}{'. Naïve' if rng.random() < 0.25 else ''}" for w in words)
      (folder / split / f"{i}.txt").write_text(text.strip() + ".\n", "utf-8")
  return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return write_corpus(tmp_path_factory.mktemp("needles") / "corpus")


@pytest.fixture(scope="module")
def stores(corpus, tmp_path_factory):
  """The corpus as a store, for every kind of tokenizer."""
  out = tmp_path_factory.mktemp("stores")
  bpe = huggingface.Tokenizer(huggingface.models.BPE())
  bpe.pre_tokenizer = huggingface.pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.decoder = huggingface.decoders.ByteLevel()
  trainer = huggingface.trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=["<|endoftext|>"],
    initial_alphabet=huggingface.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  bpe.train_from_iterator(["The number of the old door is 123. What is it? They are 123, 45"] * 3)
  bpe.train_from_iterator([f.read_text() for f in corpus.glob("train/*.txt")], trainer)
  bpe.save(str(out / "tokenizer.json"))
  specs = ("bytes", "train:420", f"huggingface:{out / 'tokenizer.json'}")
  quiet = Console(file=io.StringIO())
  return {
    kind: prepare(str(corpus), out / kind, spec, console=quiet)
    for kind, spec in zip(KINDS, specs, strict=True)
  }


def make(store, *, seed=0, context_weight=0.5, **needle):
  c = config(
    model={"vocab_size": 1024},
    data={"tokenizer": store.spec, "carry_state": False},
    task={"name": "needle", "context_weight": context_weight},
    needle=needle,
    train={"seed": seed},
  )
  family = needle.get("family", "single")
  return make_task(c, "needle", store.tokenizer, store if family in IN_FILLER else None)


@pytest.fixture(scope="module")
def tasks(stores):
  return functools.cache(lambda kind, i: make(stores[kind], **VARIANTS[i]))


def text_of(task, example):
  return task.tokenizer.decode(example.read(0, len(example)))


def values_in(text, family):
  """The values of a text that may not occur in both training and evaluation."""
  return re.findall(VALUES.get(family, r"\b\d{3,}\b"), text)


def answers_of(task, ids, asked):
  """The text of each group of consecutive tokens that are asked for."""
  edges = np.flatnonzero(np.diff(np.concatenate([[0], asked.astype(int), [0]])))
  return [task.tokenizer.decode(ids[a:b]).strip() for a, b in edges.reshape(-1, 2)]


def check(task, ids, asked):
  """Checks that the question has one answer, which is written and asked for."""
  text = task.tokenizer.decode(ids)
  solved, written = solve(text)
  assert written == solved, f"{written} is written, {solved} follows from {text!r}"
  assert answers_of(task, ids, asked) == solved, "what is asked for is not the answer"
  return solved


def test_every_family_has_a_maker():
  assert (*IN_FILLER, "common_words", "frequent_words") == FAMILIES


@pytest.mark.parametrize("i,kind", OF_EACH)
def test_every_text_is_exact_and_its_answer_follows_from_it(rng, tasks, kind, i):
  task, variant = tasks(kind, i), VARIANTS[i]
  answers = {"multivalue": 4, "multiquery": 4, "variables": 5, "common_words": 4}
  answers["frequent_words"] = 3
  lengths = [task.shortest, task.shortest + 1, *rng.integers(task.shortest, 5000, 2).tolist()]
  for length in lengths:
    for depth, held_out in ((0, True), (rng.random(), True), (1, True), (None, False)):
      example = task.example(rng, length, depth, held_out=held_out)
      ids, asked = example.read(0, length), example.asked(0, length)
      assert len(example) == len(ids) == length
      assert example.first_asked == asked.argmax()
      solved = check(task, ids, asked)
      if len(variant) == 1:
        assert len(solved) == answers.get(variant["family"], 1)


@pytest.mark.parametrize("i,kind", OF_EACH)
def test_the_question_and_answers_are_the_tokens_of_their_text(rng, tasks, kind, i):
  """So greedy decoding has to write exactly the tokens of the whole text."""
  task = tasks(kind, i)
  example = task.example(rng, task.shortest + 50, 0.5, held_out=True)
  front = sum(span.size for span in example.spans[: min(example.answers) - 1])
  tail = example.read(front, len(example))
  text = task.tokenizer.decode(tail)
  whole = task.tokenizer.encode(f"That is all. {text.strip()}")
  np.testing.assert_array_equal(whole[-len(tail) :], tail)


@pytest.mark.parametrize("i", range(len(IN_FILLER)), ids=list(IN_FILLER))
def test_the_first_needle_that_is_asked_for_stands_at_its_depth_all_of_them_behind_a_full_stop(
  rng, tasks, stores, i
):
  task, decode = tasks("sentencepiece", i), stores["sentencepiece"].tokenizer.decode
  for depth in (0.0, rng.random(), rng.random(), 1.0):
    example = task.example(rng, int(rng.integers(6000, 12_000)), depth, held_out=True)
    answers, _ = solve(text_of(task, example))
    front = example.spans[: min(example.answers) - 1]
    filler = np.array([part.size if len(part.ids) > 1000 else 0 for part in front])
    room, before = filler.sum(), np.cumsum(filler)
    says = [decode(part.ids) if not size else "" for part, size in zip(front, filler, strict=True)]
    asked = next(j for j, text in enumerate(says) if any(answer in text for answer in answers))
    assert abs(before[asked] - depth * room) <= room / 20 + 1, f"not at {depth}: {says}"
    if depth in (0, 1):
      assert before[asked] == depth * room
    for j in range(1, len(front)):
      if says[j] and 0 < before[j] < room and filler[j - 1]:
        behind = decode(front[j - 1].read(filler[j - 1] - 9, filler[j - 1])[-9:])
        assert behind.endswith("."), f"{says[j]!r} stands in the middle of {behind!r}"


@pytest.mark.parametrize("i", range(len(FAMILIES)), ids=FAMILIES)
def test_numbers_names_places_and_words_are_held_out_and_never_trained_on(rng, tasks, i):
  task = tasks("bytes", i)

  def values(held_out):
    size = task.shortest + 100
    examples = (task.example(rng, size, held_out=held_out) for _ in range(40))
    return {v for e in examples for v in values_in(text_of(task, e), FAMILIES[i])}

  held_out, trained = values(True), values(False)
  assert len(held_out) > 20 and len(trained) > 20, "a weak test: hardly any values"
  assert not held_out & trained, "trained on what is held out"


def test_a_tenth_is_held_out_by_the_seed(rng):
  found = []
  for seed in (0, 1):  # 900 numbers; the seed fixes how many are held out, and 2000 draws find all
    drawn = lambda held_out, seed=seed: set(Draw(rng, seed, held_out).numbers(50, 3))
    held_out = set().union(*(drawn(True) for _ in range(40)))
    assert not held_out & set().union(*(drawn(False) for _ in range(20)))
    assert 60 < len(held_out) < 130, f"{len(held_out)} of 900 numbers are held out: want a tenth"
    found.append(held_out)
  assert found[0] != found[1]


def test_no_word_is_the_beginning_of_another():
  for words in (ADJECTIVES, NOUNS, ROOMS, THINGS, PEOPLE):
    assert len(words) == len(set(words)) > 32
    assert not [(a, b) for a in words for b in words if a != b and b.startswith(a)]


@pytest.mark.parametrize("i", range(len(VARIANTS)), ids=NAMES)
def test_the_same_generator_draws_the_same_text(rng, stores, tasks, i):
  seed = int(rng.integers(2**32))
  task, again = tasks("sentencepiece", i), make(stores["sentencepiece"], **VARIANTS[i])
  length = max(500, task.shortest)
  read = lambda t, s: t.example(np.random.default_rng(s), length, held_out=True).read(0, length)
  np.testing.assert_array_equal(read(task, seed), read(again, seed))
  assert task.shortest == again.shortest
  assert len({read(task, seed + j).tobytes() for j in range(9)}) == 9


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), i=st.integers(0, len(VARIANTS) - 1), data=st.data())
def test_any_cut_is_a_slice_of_the_whole(tasks, seed, i, data):
  task = tasks("bytes", i)
  length = data.draw(st.integers(task.shortest, task.shortest + 900))
  example = task.example(np.random.default_rng(seed), length, held_out=False)
  start = data.draw(st.integers(0, length))
  stop = data.draw(st.integers(start, length))
  for read in (example.read, example.weights, example.asked):
    np.testing.assert_array_equal(read(start, stop), read(0, length)[start:stop])


def test_a_million_tokens_are_never_held_at_once(rng, tasks):
  for i in range(len(IN_FILLER)):
    task = tasks("sentencepiece", i)
    task.example(rng, task.shortest, held_out=True)  # reads the filler
    tracemalloc.start()
    example = task.example(rng, 1_000_000, 0.5, held_out=True)
    example.read(0, 500)
    assert example.asked(999_000, 1_000_000).any() and len(example) == 1_000_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300_000, f"{FAMILIES[i]}: {peak:,} bytes for a window of 500 tokens"


@pytest.mark.parametrize("i", range(len(VARIANTS)), ids=NAMES)
def test_answers_weigh_1_together_and_the_rest_what_the_config_says(rng, stores, i):
  task = make(stores["bytes"], context_weight=0.125, **VARIANTS[i])
  length = task.shortest + int(rng.integers(900))
  example = task.example(rng, length, held_out=False)
  weights, asked = example.weights(0, length).astype(float), example.asked(0, length)
  np.testing.assert_allclose(weights[asked].sum(), 1, rtol=1e-4)
  np.testing.assert_allclose(weights[~asked].sum(), 0.125, rtol=1e-4)
  assert np.ptp(weights[~asked]) == 0
  count = len(answers_of(task, example.read(0, length), asked))
  each = np.split(weights, np.flatnonzero(np.diff(asked.astype(int))) + 1)[1::2]
  np.testing.assert_allclose([w.sum() for w in each], 1 / count, rtol=1e-4)


@pytest.mark.parametrize("i,kind", OF_EACH)
def test_continuations_make_one_text_whatever_was_read_before(rng, tasks, kind, i):
  task, decode = tasks(kind, i), tasks(kind, i).tokenizer.decode
  told = 0
  for turn in range(60):
    if turn >= 6 and (told > 3 or not task.facts.depth_of):
      break  # six are enough, unless the needles of all of them came late
    planned = task.shortest + int(rng.integers(200))
    before = task.beginning(rng, planned)
    assert len(before) >= planned and not before.asked(0, planned).any()
    for read in (*rng.integers(1, planned + 1, 5).tolist(), planned):
      n = task.shortest_training + int(rng.integers(60))
      example = task.continuation(rng, before, read, n)
      ids, asked = example.read(0, n), example.asked(0, n)
      assert len(example) == len(ids) == n
      joined = np.concatenate([before.read(0, read), ids])
      check(task, joined, np.concatenate([np.zeros(read, bool), asked]))
      np.testing.assert_allclose(example.weights(0, n)[asked].sum(), 1, rtol=1e-4)
      told += bool(values_in(decode(before.read(0, read)), VARIANTS[i]["family"]))
  if task.facts.depth_of:
    assert told > 3, "a weak test: hardly anything was told before"
    whole = task.continuation(rng, before, planned, 4000)
    seen, more = before.read(planned - 50, planned), whole.read(0, 3000)
    assert decode(np.concatenate([seen, more])), "the filler goes on"


def test_training_packs_whole_texts_and_starts_some_warm(rng, stores):
  c = config(
    model={"vocab_size": 264, "segment_length": 256},
    data={"carry_state": False, "lanes": 3, "segments": 4},
    task={"name": "needle"},
    needle={"family": "facts", "needles": 2},
    warm={"share": 0.5, "segments": 2, "min_tokens": 512, "max_tokens": 2048},
    train={"seed": int(rng.integers(2**31))},
  )
  task = make_task(c, "needle", filler=stores["bytes"])
  lanes, warm = TaskLanes(task, c), 0
  for k in range(14):
    batch = lanes.batch(k)
    warm += batch["warm_B"].sum()
    for lane in range(3):
      starts = np.flatnonzero(batch["reset_BS"][lane]).tolist()
      for start, stop in itertools.pairwise([*starts, 4]):
        at = slice(256 * start, 256 * stop)
        targets, asked, mask = (
          batch[name][lane, at] for name in ("targets_BT", "asked_BT", "mask_BT")
        )
        if mask.any():  # else no other example had room
          check(task, targets[mask], asked[mask])
  assert warm > 3, "a weak test: hardly anything started warm"


def test_filler_is_held_out_text_where_there_is_enough(stores, monkeypatch):
  endings = lambda filler: set(re.findall(r"(uk|ix|ul)\b", ByteTokenizer().decode(filler.ids)))
  store = stores["bytes"]
  assert endings(Filler(store, held_out=False)) == {"uk"}
  assert endings(Filler(store, held_out=True)) == {"ix", "ul", "uk"}, "in all too little"
  validation = store.splits["validation"]["tokens"]
  for enough, want in ((validation, {"ix"}), (validation + 1, {"ix", "ul"})):
    monkeypatch.setattr(needle_filler, "ENOUGH", enough)
    assert endings(Filler(store, held_out=True)) == want
  monkeypatch.setattr(needle_filler, "MOST", 777)
  assert len(Filler(store, held_out=True).ids) == 777


def test_where_no_sentence_ends_a_needle_stands_at_its_token(rng, stores):
  class Silent:
    tokenizer = stores["bytes"].tokenizer

    def split(self, name):
      class Documents:
        tokens = np.array([70_000])

        def read(self, document, start, stop):
          return np.full(stop - start, ord("a"), np.int32)

      return Documents()

  filler = Filler(Silent(), held_out=True)
  assert 0 <= filler.beginning(rng) < 70_000
  for share in (0.0, 1.0, *rng.random(9)):
    wanted = round(share * 500)
    nearest = 0 if wanted <= 25 else 500 if wanted >= 475 else wanted
    assert filler.place(123, 500, share) == nearest


def open_needle(store, tmp_path, *, tokenizer=None, path="", vocabulary=1024, **needle):
  c = config(
    model={"vocab_size": vocabulary},
    data={"tokenizer": store.spec, "carry_state": False, "path": str(path)},
    needle={"family": "multikey", **needle},
  )
  quiet = Console(file=io.StringIO())
  return open_dataset(c, tmp_path / "run" / "store", quiet, "needle", tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_asked_in_its_own_tokens_in_any_text(rng, corpus, stores, tmp_path, kind):
  store, other = stores[kind], write_corpus(tmp_path / "other")
  for file in other.rglob("*.txt"):
    file.write_text(file.read_text("utf-8").replace("uk", "ob"), "utf-8")
  saved, quiet = store.tokenizer, Console(file=io.StringIO())
  specs = {"sentencepiece": f"sentencepiece:{store.folder / 'tokenizer.model'}"}
  alike = prepare(str(other), tmp_path / "alike", specs.get(kind, store.spec), console=quiet)
  for fields, ending in (
    ({"path": store.folder, "filler": str(alike.folder)}, "ob"),
    ({"path": store.folder}, "uk"),
    ({"path": store.folder, "filler": str(other)}, "ob"),
    ({"filler": str(store.folder)}, "uk"),
    ({"filler": str(other)}, "ob"),
    ({"path": corpus, "family": "frequent_words"}, None),
  ):
    task = open_needle(store, tmp_path, tokenizer=saved, **fields)
    assert task.tokenizer.fingerprint == saved.fingerprint
    example = task.example(rng, 3000, held_out=False)
    check(task, example.read(0, 3000), example.asked(0, 3000))
    words = re.findall(r"\b[a-z]{4}(uk|ob)\b", text_of(task, example))
    assert set(words) == ({ending} if ending else set())


def test_the_fingerprint_tells_tasks_corpora_and_vocabularies_apart(stores):
  tasks = [make(stores["bytes"], **variant) for variant in VARIANTS]
  tasks += [make(stores[kind]) for kind in KINDS[1:]]
  assert len({task.fingerprint for task in tasks}) == len(tasks)
  assert make(stores["bytes"]).fingerprint == make(stores["bytes"]).fingerprint
  pass_keys = [
    make_task(config(needle={"family": family}), "passkey", ByteTokenizer()).fingerprint
    for family in FAMILIES
  ]
  assert len(set(pass_keys)) == 1, "what needles are says nothing of a run on pass keys"


def test_bad_input_is_named_with_its_remedy(rng, stores, tasks, corpus, tmp_path):
  trained = stores["sentencepiece"]
  empty = WordTokenizer([" a"])
  pieces = config(data={"tokenizer": "task", "carry_state": False}, task={"name": "passkey"})
  short = lambda i: tasks("bytes", i).example(rng, 150, held_out=True)
  for wrong, match in (
    (lambda: open_needle(stores["bytes"], tmp_path), "filler and config.data.path are empty:.*set"),
    (
      lambda: open_needle(stores["bytes"], tmp_path, path=stores["bytes"].folder, vocabulary=99),
      "config.model.vocab_size=99 is smaller",
    ),
    (
      lambda: open_needle(trained, tmp_path, filler=str(trained.folder), tokenizer=ByteTokenizer()),
      "has other tokens than the run; prepare it with the vocabulary in the folder tokeniz",
    ),
    (
      lambda: open_needle(trained, tmp_path, filler="nowhere", tokenizer=trained.tokenizer),
      "corpus 'nowhere': no such folder",
    ),
    (lambda: make_task(config(), "needle", empty, stores["bytes"]), "cannot write the needles"),
    (
      lambda: make(stores["bytes"], digits=2),
      "config.needle.digits=2: numbers in needles have",
    ),
    (
      lambda: open_dataset(pieces, tmp_path, Console(file=io.StringIO()), "needle", empty),
      "config.data.tokenizer='task' cannot write needles: use a run",
    ),
    (lambda: short(1), "family='multikey': an example of 150 tokens is too short.*make it"),
    (lambda: short(6), "family='common_words': a list of 150 tokens is too short.*make it"),
    (lambda: short(7), "family='frequent_words': a list of 150 tokens is too short.*make it"),
  ):
    with pytest.raises(InputError, match=match) as error:
      wrong()
    assert "\n" not in str(error.value)
