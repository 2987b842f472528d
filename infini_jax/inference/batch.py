"""`Batch`: sessions of one lane that write together, and that join and leave at any token."""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.config import InputError
from infini_jax.inference.engine import Engine
from infini_jax.inference.lane import uninterrupted
from infini_jax.inference.programs import KEPT, Programs
from infini_jax.inference.sampling import NOTHING, RECENT, Sampling, Settings, sample_lanes
from infini_jax.inference.session import Session
from infini_jax.models import bind
from infini_jax.models.states import has_one_size

LIKELIEST = 20  # tokens whose probabilities are given, where they are asked for


class Drawn(NamedTuple):
  """A token that was drawn, and natural logarithms of probabilities before any sampling."""

  token: int
  logprob: float
  likeliest: list[tuple[int, float]]  # the likeliest tokens; empty if they were not asked for


class Batch:
  """B lanes of one compiled program. Each holds a session of one lane, or none.

  While a session is in the batch, its state is here, and it must not be used. What a session writes
  depends on its text, its seed and its position, and not on other sessions or on its lane.

  Raises:
    InputError: the state of the model grows with the text, so no program has one shape.
  """

  def __init__(self, engine: Engine, lanes: int):
    if not has_one_size(engine.config.model):
      raise InputError(
        "the state of this model grows with the text (full attention), so its sessions have no one "
        "size: choose a model with a memory (docs/mixers.md)"
      )
    self.engine = engine
    self._sessions: list[Session | None] = [None] * lanes
    self._how = [Sampling()] * lanes
    self._seeds_B = np.zeros(lanes, np.uint32)
    self._likeliest_B = np.zeros(lanes, bool)
    self._layers = engine.layers()
    self._programs = _programs_of(engine.programs, self._layers is not None)
    self._stream: Any = None
    self.clear()

  def clear(self) -> None:
    """Empties all lanes; the states of the sessions in them are lost."""
    self._stream = self._programs.begin(self.engine.params, len(self._sessions))
    self._sessions = [None] * len(self._sessions)

  @property
  def free(self) -> int:
    """The number of lanes without a session."""
    return self._sessions.count(None)

  def join(self, session: Session, how: Sampling, seed: int, likeliest: bool = False) -> int:
    """Puts a session, of which one token waits, into a lane; returns the lane's number.

    Args:
      session: of the same engine.
      how: how its tokens are drawn.
      seed: of the draws.
      likeliest: whether the likeliest tokens are wanted with each token.
    """
    lane = self._sessions.index(None)
    (waiting,) = session.waiting
    assert waiting == 1 and session.run.engine is self.engine
    one = self.engine.together(session._stream)
    self._stream = self._programs.put(self.engine.params, self._stream, one, lane)
    session._stream = None
    self._sessions[lane] = session
    self._how[lane], self._seeds_B[lane], self._likeliest_B[lane] = how, seed, likeliest
    return lane

  def leave(self, lane: int) -> Session:
    """Gives a session back, with its state; its last token waits to be read."""
    session = self._sessions[lane]
    assert session is not None
    self._sessions[lane] = None
    session._stream = self._programs.take(self.engine.params, self._stream, lane)
    return session

  def step(self) -> dict[int, Drawn]:
    """Draws one more token in every lane that holds a session; returns them by lane."""
    active_B = np.array([session is not None for session in self._sessions])
    recent_BQ = np.full((len(active_B), RECENT), NOTHING, np.int32)
    tokens_B, positions_B = np.zeros(len(active_B), np.int32), np.zeros(len(active_B), np.uint32)
    with uninterrupted():
      for i, session in enumerate(self._sessions):
        if session is not None:
          lane = session._lanes[0]
          (tokens_B[i],), positions_B[i] = lane.give(1, self.engine.segment), lane.read % 2**32
          recent_BQ[i, RECENT - len(lane.recent) :] = lane.recent
      how = Settings(*map(np.array, zip(*map(_numbers, self._how), strict=True)))  # type: ignore[arg-type]
      draws = (self._seeds_B, positions_B, recent_BQ, self._likeliest_B & active_B)
      out, self._stream = self._programs.step(
        self.engine.params, self._stream, tokens_B, active_B, how, draws, self._layers
      )
      token_B, logprob_B, top_BY, ids_BY = map(np.asarray, out)
      drawn = {}
      for i, session in enumerate(self._sessions):
        if session is not None:
          session._lanes[0].take([int(token_B[i])])
          pairs = zip(ids_BY[i].tolist(), top_BY[i].tolist(), strict=True)
          likeliest = [*pairs] if self._likeliest_B[i] else []
          drawn[i] = Drawn(int(token_B[i]), float(logprob_B[i]), likeliest)
    return drawn


class _BatchPrograms:
  """The programs of the batches of a model, with stacked or with separate layers."""

  def __init__(self, programs: Programs, apart: bool):
    self._programs, self._axis = programs, 0 if apart else 1
    self.begin = jax.jit(self._empty, static_argnums=1)
    self.put = jax.jit(self._put_lane, donate_argnums=1)
    self.take = jax.jit(self._take_lane)
    self.step = jax.jit(self._step_all, donate_argnums=1)

  def _empty(self, params, lanes):
    model = bind(self._programs.model, params)
    stream = model.open(model.state(lanes), lanes)
    return stream if self._axis else model.apart(stream)

  def _put_lane(self, params, stream, one, lane):
    one = one if self._axis else bind(self._programs.model, params).apart(one)
    put = lambda x, own: jax.lax.dynamic_update_slice_in_dim(x, own, lane, self._axis)
    return jax.tree.map(put, stream, one)

  def _take_lane(self, params, stream, lane):
    take = lambda x: jax.lax.dynamic_slice_in_dim(x, lane, 1, self._axis)
    one = jax.tree.map(take, stream)
    return one if self._axis else bind(self._programs.model, params).together(one)

  def _step_all(self, params, stream, tokens_B, active_B, how, draws, layers):
    seeds_B, positions_B, recent_BQ, likeliest_B = draws
    layers = () if layers is None else (layers,)
    logits_BV, stream = self._programs.logits(
      params, stream, tokens_B[:, None], active_B[:, None], *layers
    )
    key = lambda seed, position: jax.random.fold_in(jax.random.key(seed), position)
    keys_B = jax.vmap(key)(seeds_B, positions_B)
    greedy_B = jnp.where(active_B, how.temperature_B, 0)  # so that an empty lane costs no draw
    token_B = sample_lanes(logits_BV, keys_B, how._replace(temperature_B=greedy_B), recent_BQ)
    logprob_BV = jax.nn.log_softmax(logits_BV.astype(jnp.float32), axis=-1)
    own_B = jnp.take_along_axis(logprob_BV, token_B[:, None], axis=1)[:, 0]
    shape = len(tokens_B), min(LIKELIEST, logits_BV.shape[1])
    top = partial(jax.lax.top_k, k=shape[1])
    none = lambda _: [jnp.zeros(shape, logprob_BV.dtype), jnp.zeros(shape, jnp.int32)]
    top_BY, ids_BY = jax.lax.cond(likeliest_B.any(), top, none, logprob_BV)
    return (token_B, own_B, top_BY, ids_BY), stream


@lru_cache(maxsize=KEPT)
def _programs_of(programs: Programs, apart: bool) -> _BatchPrograms:
  return _BatchPrograms(programs, apart)


def catch_up(session: Session) -> bool:
  """Reads waiting tokens of one lane by one call; the last token stays, for `Batch` to read.

  Returns:
    Whether more than the last token still waits.
  """
  (lane,) = session._lanes
  if len(lane.unread) > 1:
    with uninterrupted():
      session._feed([0], kept=1)
  return len(lane.unread) > 1


def _numbers(how: Sampling) -> tuple[Any, ...]:
  k = np.int32(how.top_k)
  return (np.float32(how.temperature), np.float32(how.top_p), k, np.float32(how.repetition_penalty))
