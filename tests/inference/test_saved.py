"""Saved states find their run, and are refused for other models."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.data.tokenizers import ByteTokenizer, WordTokenizer
from infini_jax.inference import OpenedRun, Session
from infini_jax.inference.engine import Engine, checksum
from infini_jax.inference.saved import _named, _stream, config_of
from infini_jax.runs import tensors
from infini_jax.runs.workdir import Workdir
from tests.tiny import changed, config, fake_params, model_config


@pytest.fixture(scope="module")
def session(trained):
  """A session of a trained run, in the middle of a segment."""
  session = Session.load(trained[1])
  session.read("What was read before, and is kept.")
  list(session.generate(5))
  return session


@pytest.fixture
def state(session, tmp_path):
  session.save(tmp_path / "a.state")
  return tmp_path / "a.state"


def tokens(session):
  return [piece.token for piece in session.generate(6, seed=3)]


def test_a_state_finds_its_run_by_its_header(session, state, trained):
  again = Session.load(state)
  assert again.run.workdir == str(trained[1]) and again.run.step == 6
  assert again.positions == session.positions
  assert tokens(again) == tokens(session.fork())
  plain = state.with_name("plain")
  plain.touch()
  assert state.stat().st_mode == plain.stat().st_mode, "others may read it as any file"
  (header,) = tensors.Tensors(state).metadata.values()
  assert {"config", "parameters", "tokenizer", "workdir", "step", "position"} <= set(
    json.loads(header)
  )


def test_the_config_of_its_run_is_known_before_it_is_loaded(session, state, trained, tmp_path):
  assert config_of(state) == Workdir(trained[1]).config()
  (tmp_path / "text").write_text("no state")
  gone = tmp_path / "gone.state"
  session.fork().save(gone)
  moved = gone.read_bytes().replace(str(trained[1]).encode(), b"?" * len(str(trained[1])))
  gone.write_bytes(moved)
  for path in (gone, tmp_path / "text", tmp_path / "nothing"):
    assert config_of(path) is None


def refused(state, message, **how):
  with pytest.raises(InputError, match=message) as error:
    Session.load(state, **how)
  assert "\n" not in str(error.value) and str(state) in str(error.value)


def test_a_damaged_or_foreign_file_is_refused(session, state, tmp_path):
  whole = state.read_bytes()
  for size in (0, 5, 200, len(whole) - 1):
    state.write_bytes(whole[:size])
    refused(state, "not a whole safetensors file", model=session)
  state.write_bytes(b"a book, not a state " * 99)
  refused(state, "not a whole safetensors file", model=session)
  tensors.save(state, {"weights": np.zeros(3)})
  refused(state, "holds no state", model=session)


def test_any_changed_byte_is_noticed(session, state, rng):
  """In the arrays, in their names and shapes, in the header, in the checksum itself."""
  whole = state.read_bytes()
  start = whole.index(b"infini_jax state")
  places = {*range(16), *range(start, start + 20), *rng.integers(0, len(whole), 150).tolist()}
  for place in sorted(places):
    for flip in (1, 32, int(rng.integers(1, 256))):  # 32: a letter of the other case
      damaged = bytearray(whole)
      damaged[place] ^= flip
      state.write_bytes(damaged)
      refused(state, "damaged|not a whole safetensors file", model=session)
  state.write_bytes(whole)
  assert Session.load(state, model=session).positions == session.positions


def test_a_state_of_the_first_format_loads_and_what_does_not_fit_is_damage(session, state):
  """It has no checksum."""
  file = tensors.Tensors(state)
  arrays = {name: file.read(name) for name in file.shapes if name != tensors.CHECKSUM}
  (header,) = (json.loads(text) for text in file.metadata.values())
  first = "infini_jax state 1"

  def write(arrays, header, name=first):
    tensors.save(state, arrays, {name: header if isinstance(header, str) else json.dumps(header)})

  write(arrays, header)
  again = Session.load(state, model=session)
  assert again.positions == session.positions and tokens(again) == tokens(session.fork())
  stream = next(name for name in arrays if name.startswith("stream."))
  for wrong in (
    (arrays, "{"),
    (arrays, "[]"),
    (arrays, {**header, "position": 7}),
    (arrays, {**header, "position": ["1"]}),
    (arrays, {name: value for name, value in header.items() if name != "step"}),
    ({name: x for name, x in arrays.items() if name != stream}, header),
    ({**arrays, stream: arrays[stream][:1]}, header),
    ({**arrays, stream: arrays[stream].astype(np.float64)}, header),
    (arrays, header, "infini_jax state 2"),
  ):
    write(*wrong)
    refused(state, "damaged .*copy or make it again", model=session)
  write(arrays, header, "infini_jax state 3")
  refused(state, "of format 3; update infini_jax", model=session)
  write(arrays, {**header, "config": {**header["config"], "modle": {}}})
  refused(state, "config.modle: no such section", model=session)


def test_a_state_of_another_model_is_refused(session, state, trained):
  run, c = session.run, trained[0]
  other = changed(c, model=changed(c.model, rule="linear"))
  with_engine = lambda config, params, tokenizer=run.tokenizer: Session(
    OpenedRun(Engine(config, params), tokenizer)
  )
  refused(state, "another model .config.infini.rule", model=with_engine(other, run.engine.params))
  refused(state, "other parameters", model=with_engine(c, fake_params(c.model)))
  words = WordTokenizer(["a"])
  refused(state, "another tokenizer", model=with_engine(c, run.engine.params, words))
  same = changed(c, model=changed(c.model, attention="reference"))
  assert Session.load(state, model=with_engine(same, run.engine.params)).positions


def test_for_a_run_that_has_moved_the_error_asks_for_its_path(session, state, trained, tmp_path):
  header = json.loads(next(iter(tensors.Tensors(state).metadata.values())))
  arrays = {name: tensors.Tensors(state).read(name) for name in tensors.Tensors(state).shapes}
  name = next(iter(tensors.Tensors(state).metadata))
  header["workdir"] = str(tmp_path / "gone")
  tensors.save(state, arrays, {name: json.dumps(header)}, checksum=True)
  refused(state, "its run is not at .*gone.; give its path")
  assert Session.load(state, model=trained[1]).positions == session.positions
  copy = tmp_path / "copy"
  copy.mkdir()
  shutil.copy(trained[1] / "run.json", copy)
  ByteTokenizer().save(Workdir(copy).tokenizer)
  refused(state, "no checkpoint of step 6; a run keeps more by train.keep", model=copy)
  refused(tmp_path / "nothing", "no run or state here")
  refused(trained[1], "needs no model=", model=session)
  refused(state, "a state of 1 lanes, not 2", model=session, lanes=2)


def test_the_checksum_depends_on_every_bit(rng):
  params = {"a": rng.standard_normal((7, 5)).astype(np.float32), "b": np.zeros(3, np.float32)}
  first = checksum(params)
  for _ in range(3):
    other = {name: x.copy() for name, x in params.items()}
    i, j = rng.integers(0, 5, 2)
    other["a"][i, j] = np.nextafter(other["a"][i, j], np.float32(9))
    assert checksum(other) != first
  other = {**params, "a": params["a"][::-1].copy()}
  assert checksum(other) != first == checksum(params)


# Names in the files of states, now and before every system's stream had the same form.
FORMER = {
  "transformer_xl": {"state.": "last."},
  "compressive": {"state.": "old.", "cache.x_BNI": "x_BNI"},
  "rmt": {"layers.state.": "layers.last."},
  "memorizing": {
    "0.state.": "0.last.", "1.state.xl.": "1.xl.last.", "1.cache.": "1.xl.cache.",
    "1.state.store.k_BJKE": "1.store.k_BMKE", "1.state.store.v_BJKU": "1.store.v_BMKU",
    "1.state.store.document_BJ": "1.store.document_BM", "1.state.store.current": "1.store.current",
  },
}  # fmt: skip


@pytest.mark.parametrize("mixer", FORMER)
def test_a_state_with_the_names_of_before_is_read(rng, mixer):
  sizes = {"knn_layers": (2,)} if mixer == "memorizing" else {}
  model = model_config(mixer=mixer, **sizes)
  engine = Engine(dataclasses.replace(config(), model=model), fake_params(model))
  draw = lambda x: np.asarray(rng.integers(0, 2, x.shape), x.dtype)
  stream = jax.tree.map(draw, engine.template(2))
  arrays = {}
  for name, array in _named(stream).items():
    for now, before in FORMER[mixer].items():
      name = name.replace(f"stream.{now}", f"stream.{before}")
    arrays[name] = array
  assert not arrays.keys() <= _named(stream).keys(), "nothing was renamed"

  class File:
    shapes = {name: array.shape for name, array in arrays.items()}
    read = staticmethod(arrays.get)

  jax.tree.map(np.testing.assert_array_equal, _stream(File, engine.template(2)), stream)


@pytest.mark.slow
def test_a_session_of_the_average_has_its_parameters_and_so_has_its_state(averaged, tmp_path):
  _, workdir, ema = averaged
  session = Session.load(workdir, ema=True)
  same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, jax.device_get(b))
  same(session.run.engine.params, ema)
  session.read("What was read before.")
  session.save(tmp_path / "a.state")
  again = Session.load(tmp_path / "a.state")
  same(again.run.engine.params, ema)
  assert tokens(again) == tokens(session)
  refused(tmp_path / "a.state", "leave ema=True", ema=True)


def test_a_run_without_an_average_says_so(trained):
  with pytest.raises(
    InputError, match="holds no moving average of the parameters; leave --ema out"
  ):
    Session.load(trained[1], ema=True)
