"""A session in pieces equals one call over all tokens; sessions can be copied and saved."""

import functools
import itertools
import signal

import jax
import numpy as np
import pytest

from infini_jax.config import InputError, MeshConfig
from infini_jax.data.tokenizers import ByteTokenizer
from infini_jax.inference import OpenedRun, Session
from infini_jax.inference.engine import Engine
from infini_jax.models import bind
from infini_jax.parallel import make_mesh, param_shardings
from tests.tiny import array, config, fake_params

N, CHUNK, GREEDY = 8, 16, {"temperature": 0.0}
slow = pytest.mark.slow
CASES = {
  "infini-delta": {"rule": "delta", "kv_heads": 1},
  "rmt": {"mixer": "rmt", "summary_tokens": 3},
  "transformer_xl": {"mixer": "transformer_xl"},
  "infini-linear": {"gate": "hard_sigmoid", "decay": 0.9},
  "windowed": {"window": N, "global_every": 2, "window_theta": 100.0},
  "local": {"mixer": "local"},
  "full": {"mixer": "full"},
  "pattern": {"pattern": ("infini", "full"), "rule": "delta"},
  "local-pattern": {"pattern": ("local", "infini"), "layers": 4},
  "compressive": {"mixer": "compressive", "compression_rate": 2, "compressed_memory": 8},
  "autocompressor": {"mixer": "autocompressor", "summary_tokens": 2, "summary_steps": 2},
  "memorizing": {"mixer": "memorizing", "knn_layers": (1,), "knn_memory": 24, "knn_top": 4},
}
FAST = ("infini-delta", "rmt")
CLOSE = dict(rtol=1e-4, atol=1e-5)


class Unending(ByteTokenizer):
  """A tokenizer without an end token, so random weights never end a text."""

  eos = -1


class Case:
  """One memory system: a model with random parameters, and its logits by one call."""

  def __init__(self, **model):
    self.config = config(
      model={"segment_length": N, **model},
      data={"carry_state": "full" not in (model.get("mixer"), *model.get("pattern", ()))},
      evaluation={"segments": CHUNK // N},
    )
    self.params = fake_params(self.config.model)
    self.run = OpenedRun(Engine(self.config, self.params), Unending())
    self._whole = jax.jit(self._whole_)

  def _whole_(self, tokens):
    model = bind(self.config.model, self.params)
    return model.logits(model(tokens, model.state(1))[0])[0]

  def whole(self, tokens):
    """Logits after every token (padded at the end to one length, which changes nothing)."""
    padded = np.zeros((1, 96), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(self._whole(array(padded)))[: len(tokens)]


@functools.cache
def case_of(name):
  """The case of a system. Tests in one process share its programs."""
  return Case(**CASES[name])


def cases(names):
  return [pytest.param(n, marks=() if n in FAST else slow) for n in names]


@pytest.fixture(scope="module", params=cases(CASES))
def case(request):
  return case_of(request.param)


@pytest.fixture(scope="module")
def infini():
  return case_of("infini-delta")


def draw(rng, *lengths):
  return [rng.integers(0, 256, n).astype(np.int32) for n in lengths]


def written(session, tokens, **how):
  """The tokens that each lane writes."""
  lanes = [[] for _ in range(session.lanes)]
  for piece in session.generate(tokens, **how):
    lanes[piece.lane].append(piece.token)
  return lanes


def text(session, tokens, **how):
  return "".join(piece.text for piece in session.generate(tokens, **how))


def kept(session, folder, name="kept"):
  """The bytes of the saved session."""
  session.save(folder / name)
  return (folder / name).read_bytes()


@pytest.mark.parametrize("lengths", [(37, 22)], ids=str)
def test_a_session_equals_one_call_over_all_tokens(rng, case, lengths):
  prompts, session = draw(rng, *lengths), Session(case.run, lanes=2)
  assert session.read([p[:15] for p in prompts]) == 30
  told = []
  session.read([p[15:] for p in prompts], advance=told.append)
  assert told == sorted(told) and told[-1] == sum(lengths) - 30
  assert session.positions == [1 + n for n in lengths], "the mark is read first"
  tokens = written(session, N + 5, **GREEDY)
  for prompt, own in zip(prompts, tokens, strict=True):
    logits = case.whole(np.concatenate([[256], prompt, own]))[len(prompt) : -1]
    chosen = np.take_along_axis(logits, np.array(own)[:, None], 1)[:, 0]
    np.testing.assert_allclose(
      chosen, logits.max(1), err_msg="a token was written that is not the likeliest", **CLOSE
    )


def test_a_state_saved_anywhere_continues_bit_by_bit(rng, case, tmp_path):
  goes_on_to_the_same_bits(rng, case, tmp_path)


@slow
def test_a_state_in_bfloat16_is_saved_too(rng, tmp_path):
  model = {"compute_dtype": "bfloat16", "param_dtype": "bfloat16"}
  goes_on_to_the_same_bits(rng, Case(**model), tmp_path)


def goes_on_to_the_same_bits(rng, case, tmp_path):
  for _ in range(3):
    session = Session(case.run, lanes=2)
    session.read(draw(rng, *rng.integers(1, 45, 2)))
    stop = int(rng.integers(0, N + 3))
    written(session, stop, seed=5)
    session.save(tmp_path / "state")
    again = Session.load(tmp_path / "state", model=session)
    assert again.positions == session.positions and again.recent == session.recent
    more = draw(rng, *rng.integers(0, 40, 2))
    for one in (session, again):
      one.read(more)
    tokens = [written(one, 6, seed=7) for one in (session, again)]
    assert tokens[0] == tokens[1], f"kept at {session.positions}, it went on otherwise"
    assert kept(session, tmp_path, "a") == kept(again, tmp_path, "b"), "the states differ in bits"


def test_a_fork_does_not_change_the_original(rng, infini, tmp_path):
  session = Session(infini.run, lanes=2)
  session.read(draw(rng, 30, 9))
  written(session, 3)
  before, fork = kept(session, tmp_path), session.fork()
  assert kept(fork, tmp_path) == before
  fork.read(draw(rng, 5, 40))
  written(fork, 9)
  assert kept(session, tmp_path) == before, "what a fork reads has reached the original"
  assert fork.positions != session.positions


def test_however_a_text_is_cut_the_state_is_the_same(rng, infini, tmp_path):
  """At once, in pieces, from a file, or as single tokens: bit by bit."""
  words = rng.choice(list("abcé \n"), 90)
  whole = "".join(words)
  (tmp_path / "text").write_text(whole, "utf-8")
  ids = ByteTokenizer().encode(whole)

  def after(*sources):
    session = Session(infini.run)
    assert sum(session.read(source) for source in sources) == len(ids)
    written(session, 5, seed=1)
    return kept(session, tmp_path)

  expected = after(whole)
  assert after(tmp_path / "text") == expected
  with (tmp_path / "text").open("rb") as file:
    assert after(file) == expected
  assert after(iter(ids.tolist())) == expected
  assert after(np.split(ids, [5, 6, 40])) == expected, "arrays, one after the other"
  cuts = np.sort(rng.integers(0, 90, 3))
  parts = ["".join(words[a:b]) for a, b in zip([0, *cuts], [*cuts, 90], strict=True)]
  assert after(*parts) == expected, f"cut at {cuts}"


def test_an_endless_stream_is_read_as_it_comes(infini):
  session, most = Session(infini.run), []
  endless = itertools.islice(itertools.cycle(range(256)), 1000)
  session.read(endless, advance=lambda n: most.append(session.waiting[0]))
  assert max(most) <= CHUNK + 1, "more than a chunk is held back"
  assert session.positions == [1001]


def test_the_state_does_not_grow(rng, infini, tmp_path):
  sizes, files = set(), []
  for length in (1, N, 20, 61):
    session = Session(infini.run)
    session.read(draw(rng, length)[0])
    sizes.add(session.state_bytes)
    files.append(len(kept(session, tmp_path)))
  m = infini.config.model
  memory = 4 * m.kv_heads * (m.head_dim**2 + m.head_dim)
  delta = 4 * m.kv_heads * (2 * m.head_dim**2 + m.head_dim)
  cache = 4 * 2 * N * m.kv_heads * m.head_dim + 4
  assert sizes == {m.layers * (memory + delta + cache)}
  most = m.layers * (memory + delta + 4) + 4 * (CHUNK + 256) + 8000  # 8000: the header
  assert max(files) < most, f"{files} bytes: slots that hold nothing were kept"


def test_the_text_is_read_to_its_first_token(rng, infini):
  (prompt,) = draw(rng, 60)
  other = prompt.copy()
  other[0] = (other[0] + 1) % 256
  logits = []
  for tokens in (prompt, other):
    session = Session(infini.run)
    session.read(tokens)
    while session._lanes[0].unread:
      last = session._feed([0])
    logits.append(np.asarray(last))
  assert np.abs(logits[0] - logits[1]).max() > 1e-6, "the first token leaves no trace"


def test_a_batch_writes_what_its_lanes_write_alone(rng, infini):
  prompts = draw(rng, 30, 3)
  for how in (GREEDY, {"temperature": 1.3, "top_k": 50, "repetition_penalty": 1.2}):
    batch = Session(infini.run, lanes=2)
    batch.read(prompts)
    together = written(batch, 12, seed=4, **how)
    for i, prompt in enumerate(prompts):
      alone = Session(infini.run)
      alone.read(prompt)
      assert written(alone, 12, seed=4 + i, **how) == [together[i]], f"lane {i} of {how}"


def test_seeds_repeat_and_differ(rng, infini):
  session = Session(infini.run)
  session.read(draw(rng, 20)[0])
  texts = [text(session.fork(), 12, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
  assert texts[0] == texts[1] != texts[2]
  left = session.fork()
  first = list(itertools.islice(left.generate(12, temperature=1.0), 5))  # iterator not used further
  assert "".join(p.text for p in first) + text(left, 7, temperature=1.0) == texts[0]
  (chance,) = written(session.fork(), 12, temperature=1e6)
  assert len(set(chance)) > 6, "every position draws alike"


def test_the_penalty_looks_at_what_was_read_and_written(rng, infini):
  session, old = Session(infini.run), rng.permutation(200)
  session.read(old)
  (new,) = written(session, 12, repetition_penalty=1e6, **GREEDY)
  assert len(set(new)) == 12 and not set(new) & set(old.tolist()), new


def test_a_ctrl_c_leaves_a_consistent_session(rng, infini, tmp_path, monkeypatch):
  """At any place in a call of the model: `positions` is right, and the session can continue."""
  (prompt,) = draw(rng, 60)
  usual = signal.signal(signal.SIGINT, signal.default_int_handler)

  def interrupted(name, call):
    real = getattr(infini.run.engine, name)

    def once(*arguments):
      monkeypatch.undo()
      result = real(*arguments)
      signal.raise_signal(signal.SIGINT)
      return result

    monkeypatch.setattr(infini.run.engine, name, once)
    with pytest.raises(KeyboardInterrupt):
      call()

  session, other = Session(infini.run), Session(infini.run)
  try:
    interrupted("read", lambda: session.read(prompt))
    session.read(prompt[session.positions[0] - 1 :])
    for name in ("extend", "draw"):
      interrupted(name, lambda: written(session, 1, seed=1))
  finally:
    signal.signal(signal.SIGINT, usual)
  other.read(prompt)
  assert written(other, 6, seed=1)[0][2:] == written(session, 4, seed=1)[0]
  assert kept(session, tmp_path, "a") == kept(other, tmp_path, "b")


def test_lanes_stop_by_themselves(rng, infini):
  batch = Session(infini.run, lanes=2)
  batch.read(draw(rng, 4, 20))
  free = batch.fork()
  shown = ["", ""]
  for piece in free.generate(30, temperature=1.5, seed=3):
    shown[piece.lane] += piece.text
  stop = next(shown[0][i : i + 2] for i in range(6, 28) if shown[0][i : i + 2] not in shown[1])
  pieces = list(batch.generate(30, temperature=1.5, seed=3, stop=stop))
  texts = ["".join(p.text for p in pieces if p.lane == i) for i in (0, 1)]
  assert texts == [shown[0].partition(stop)[0], shown[1]]
  ends = [next(p.end for p in pieces if p.lane == i and p.end) for i in (0, 1)]
  assert ends[0] == "stop" and ends[1] in ("length", "document")
  assert batch.positions[0] < batch.positions[1] or ends[1] == "document"


@slow
@pytest.mark.parametrize("name", ["infini-delta", "transformer_xl", "memorizing", "local-pattern"])
def test_separate_layers_equal_the_stacked_ones_slowly(rng, name):
  one_by_one_is_stacked(rng, Case(**CASES[name]))


def test_separate_layers_equal_the_stacked_ones(rng):
  """Also if layers differ: some have a window with its own rotation, others attend to all."""
  one_by_one_is_stacked(rng, Case(**CASES["windowed"]))


def one_by_one_is_stacked(rng, case):
  tokens = [[t] for t in draw(rng, 2 * N + 3)[0].tolist()]
  logits, finals = [], []
  for apart in (True, False):
    engine = Engine(case.config, case.params, apart=apart)
    stream, each = engine.start(1), []
    for token in tokens:
      last, stream = engine.extend(stream, [token])
      each.append(np.asarray(last))
    assert isinstance(stream, list) is apart
    logits.append(np.stack(each))
    finals.append(engine.together(stream))
  np.testing.assert_allclose(logits[0], logits[1], **CLOSE)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), *finals)


def test_one_lane_begins_anew_and_another_continues(rng, case):
  """The first is as if it had read nothing; the other is not affected."""
  first, second, new, more = draw(rng, 21, 30, 19, 4)
  session, beside, alone = Session(case.run, lanes=2), Session(case.run), Session(case.run)
  session.read([first, second])
  beside.read(second)
  assert written(session, 3, **GREEDY)[1:] == written(beside, 3, **GREEDY)
  session.reset(0)
  assert session.positions == [1, 34]
  session.read([new, more])
  beside.read(more)
  alone.read(new)
  assert written(session, 6, **GREEDY) == written(alone, 6, **GREEDY) + written(beside, 6, **GREEDY)


@pytest.fixture
def ends(rng, infini):
  """A prompt, and a run in which the third token after this prompt is the end mark."""
  (prompt,), session = draw(rng, 30), Session(infini.run)
  session.read(prompt)
  tokenizer = Unending()
  tokenizer.eos = written(session, 3, **NEW)[0][2]
  return infini.run._replace(tokenizer=tokenizer), prompt


NEW = {"temperature": 0.0, "repetition_penalty": 1e6}  # no token is repeated, so nothing ends early


def test_nothing_follows_a_document_that_the_model_has_ended(ends, tmp_path):
  run, prompt = ends
  session = Session(run)
  session.read(prompt)
  before = session.fork()
  pieces = list(session.generate(9, **NEW))
  assert [piece.end for piece in pieces] == ["", "", "document"] and session.ended == [True]
  session.save(tmp_path / "ended")
  for one in (session, session.fork(), Session.load(tmp_path / "ended", model=session)):
    for wrong in (lambda: one.read([1]), lambda: one.generate(1), lambda: one.generate(0)):  # noqa: B023
      with pytest.raises(InputError, match=r"has ended the document, .*reset\(\) begins another"):
        wrong()
    assert one.read("") == 0
    one.reset()
    assert one.ended == [False] and kept(one, tmp_path) == kept(Session(run), tmp_path)
    one.read(prompt)
    assert kept(one, tmp_path) == kept(before, tmp_path), "it does not begin afresh"
  left, other = before.generate(9, **NEW), before.generate(9, **NEW)
  assert [piece.end for piece in left] == ["", "", "document"]
  assert not list(other), "an iterator of before writes on behind the end"


def test_lanes_that_have_ended_wait_for_a_reset(ends):
  run, prompt = ends
  other = np.setdiff1d(np.arange(99), run.tokenizer.eos)[:20]
  batch, alone = Session(run, lanes=2), Session(run)
  batch.read([prompt, other])
  alone.read(other)
  tokens = written(batch, 4, **NEW)
  assert [len(tokens[0]), *tokens[1:]] == [3, *written(alone, 4, **NEW)]
  if not alone.ended[0]:
    assert batch.ended == [True, False]
    assert written(batch, 3, **NEW) == [[], *written(alone, 3, **NEW)], "only the other goes on"
    with pytest.raises(InputError, match="document of lane 0"):
      batch.read([[1], []])
    assert batch.positions == [34, *alone.positions], "what was refused has been taken"
  batch.reset([0])
  alone.reset()
  batch.read([other, []])
  alone.read(other)
  assert written(batch, 2, **NEW)[0] == written(alone, 2, **NEW)[0]


def test_marks_among_tokens_are_refused(infini):
  session, bare = Session(infini.run), Session(infini.run, begin=False)
  for session_, tokens in ((session, [256, 7]), (session, [7] * 40 + [256]), (bare, [7, 256])):
    with pytest.raises(InputError, match="a document's mark among tokens .256 begins one"):
      session_.read(tokens)
  bare = Session(infini.run, begin=False)
  assert bare.read([256, 7]) == 2, "without a mark of its own, a session may begin with one"


def test_each_lane_may_have_a_seed_of_its_own(rng, infini):
  (prompt,) = draw(rng, 12)
  batch = Session(infini.run, lanes=2)
  batch.read([prompt, prompt])
  tokens = written(batch.fork(), 8, temperature=1.0, seed=(5, 5))
  assert tokens[0] == tokens[1] == written(batch.fork(), 8, temperature=1.0, seed=5)[0]
  assert written(batch, 8, temperature=1.0, seed=np.array([7, 5]))[1] == tokens[1]


def test_the_same_on_a_mesh(rng, infini):
  first, second, new = draw(rng, 21, 30, 9)

  def all_of_it(run):
    session, how = Session(run, lanes=2), {"temperature": 1.0, "repetition_penalty": 1.1, "seed": 2}
    session.read([first, second])
    before = written(session, 4, **how)
    session.reset(0)
    session.read([new, []])
    return before + written(session, 3, **how)

  here = all_of_it(infini.run)
  mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
  with jax.set_mesh(mesh):
    params = jax.device_put(infini.params, param_shardings(infini.params, mesh))
    assert all_of_it(OpenedRun(Engine(infini.config, params), Unending())) == here


def test_wrong_inputs_are_one_line(infini):
  two, one = Session(infini.run, lanes=2), Session(infini.run)
  for run, message in (
    (lambda: two.read("a text"), "2 lanes reads a list of 2 texts"),
    (lambda: two.read(["a", "b", "c"]), "2 lanes reads a list of 2 texts"),
    (lambda: one.read([3, 264]), "token 264: the model has 0 to 263"),
    (lambda: one.read([-1]), "token -1"),
    (lambda: one.read([0.5]), "whole numbers"),
    (lambda: one.read(["a", "b"]), "whole numbers"),
    (lambda: one.read(np.zeros((30, 40))), "whole numbers"),
    (lambda: one.read(b"a text"), "bytes are neither: decode them"),
    (lambda: one.read(7), "cannot read 7"),
    (lambda: one.generate(-1), "tokens=-1"),
    (lambda: one.generate(stop=["a", ""]), "at least one character"),
    (lambda: one.generate(top_k=-1), "top_k=-1: must be 0 .off. or more"),
    (lambda: one.generate(top_k=2.5), "top_k=2.5: must be a whole number, 0 .off. or more"),
    (lambda: one.generate(top_k=True), "top_k=True: must be a whole number"),
    (lambda: one.generate(top_k=None), "top_k=None: must be a whole number"),
    (lambda: one.generate(2.0), "tokens=2.0: must be a whole number"),
    (lambda: one.generate("9"), "tokens='9': must be a whole number"),
    (lambda: one.generate(seed=1.5), "seed=1.5: must be a whole number"),
    (lambda: one.generate(seed=-1), "seed=-1: must be at least 0"),
    (lambda: one.generate(seed=2**32), "seed=4294967296: must be at most 4294967295"),
    (lambda: one.generate(seed=np.float32(1)), "seed=.*1.0.*: must be a whole number"),
    (lambda: two.generate(seed=(1, 2, 3)), "2 lanes takes one seed, or 2"),
    (lambda: two.generate(seed=(1, 0.5)), "seed=0.5: must be a whole number"),
    (lambda: one.generate(temperature="hot"), "temperature='hot': must be a number"),
    (lambda: one.generate(temperature=True), "temperature=True: must be a number"),
    (lambda: one.generate(temperature=10**400), "temperature=inf: must be 0 .greedy. or more"),
    (lambda: one.generate(temperature=np.float32("nan")), "temperature=nan"),
    (lambda: one.generate(top_p=[0.9]), "top_p=.0.9.: must be a number"),
    (lambda: one.generate(repetition_penalty=None), "repetition_penalty=None: must be a number"),
    (lambda: one.generate(stop=7), "stop=7: must be a text, or several"),
    (lambda: one.generate(stop=["a", b"b"]), "must be a text, or several"),
    (lambda: one.generate(stop=""), "at least one character"),
    (lambda: one.read([True, False]), "whole numbers"),
    (lambda: one.read("a\ud800b"), "the text: not UTF-8 text .after 1 char"),
    (lambda: one.read(__file__), "test_session.py': a file of this name exists"),
    (lambda: two.read(["a", f" {__file__}\n"]), "a file of this name exists"),
    (lambda: one.reset(1), "lane=1: must be at most 0"),
    (lambda: two.reset([0, 0.5]), "lane=0.0: must be a whole|lane=0.5: must be a whole"),
    (lambda: Session(infini.run, lanes=0), "lanes=0: must be at least 1"),
    (lambda: Session(infini.run, lanes=1.5), "lanes=1.5: must be a whole number"),
    (lambda: Session.load(7), "path=7: must be the path of a run or of a state"),
    (lambda: Session.load(__file__, model=7), "model=7: must be the path"),
    (lambda: Session.load(".", step="newest"), "step='newest': must be a whole number"),
    (lambda: Session(infini.run, begin=False).generate(1), "nothing to continue from"),
  ):
    with pytest.raises(InputError, match=message) as error:
      run()
    assert "\n" not in str(error.value)
  assert one.positions == [1] and two.positions == [1, 1], "something of it was read"


def test_numpys_numbers_are_numbers(rng, infini):
  session = Session(infini.run)
  session.read(draw(rng, 9)[0])
  plain = {"temperature": 0.5, "top_p": 0.75, "top_k": 9, "repetition_penalty": 1.5, "seed": 3}
  kinds = (np.float32, np.float64, np.int64, np.float16, np.uint8)
  same = {name: kind(plain[name]) for name, kind in zip(plain, kinds, strict=True)}
  assert written(session.fork(), 4, **same) == written(session, np.int32(4), **plain)
