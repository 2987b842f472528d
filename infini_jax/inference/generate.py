"""Text from a trained model: the prompt is read in chunks, then one token follows another.

What is kept is the memory of the closed segments and the keys and values of the open one: constant
in size, however long the prompt. The logits are those of one call over everything.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.config import Config, InputError
from infini_jax.inference.sampling import Sampling, sample
from infini_jax.models import bind
from infini_jax.models.mixers import MIXERS
from infini_jax.parallel import shard


class Generator:
  """Reads and continues token sequences, several lanes side by side."""

  def __init__(self, config: Config, params: Any):
    self._config, self._params = config.model, params
    self._segments = config.evaluation.segments
    self._reserve = MIXERS[config.model.mixer].reserve
    self._read = jax.jit(self._read_chunk, donate_argnums=1)
    self._extend = jax.jit(self._extend_segment, donate_argnums=1)
    self._draw = jax.jit(sample, static_argnums=2)

  def prefill(
    self, prompts: Sequence[np.ndarray], advance: Callable[[int], None] | None = None
  ) -> tuple[jax.Array, Any]:
    """Reads whole prompts, whatever their lengths.

    Args:
      prompts: the token ids of each lane, at least one each.
      advance: called with the number of tokens read of the longest prompt.

    Returns:
      The logits after each lane's last token (B, V), and the stream to go on with.

    Raises:
      InputError: an empty prompt.
    """
    lengths_B = np.array([len(p) for p in prompts])
    if not len(prompts) or not lengths_B.min():
      raise InputError("an empty prompt: give at least one token, such as the document mark")
    B, N = len(prompts), self._config.segment_length
    padded_BT = np.zeros((B, -(-lengths_B.max() // N) * N), np.int32)
    for row, prompt in zip(padded_BT, prompts, strict=True):
      row[: len(prompt)] = prompt

    # Whole chunks as long as every lane has one, and a token more to take the logits of.
    model = bind(self._config, self._params)
    state, T = model.state(B), self._segments * N
    start = 0
    while start + T < lengths_B.min():
      state = self._read(self._params, self._reserve(state, T), padded_BT[:, start : start + T])
      start += T
      if advance is not None:
        advance(start)
    # Then segment by segment, each lane as far as its prompt goes.
    stream = model.open(state, B)
    last_BV: Any = None
    for begin in range(start, padded_BT.shape[1], N):
      mask_BT = np.less(np.arange(begin, begin + N)[None], lengths_B[:, None])
      logits_BV, stream = self._extend(
        self._params, self._reserve(stream, N), padded_BT[:, begin : begin + N], mask_BT
      )
      here_B = mask_BT.any(1)[:, None]
      last_BV = logits_BV if last_BV is None else jnp.where(here_B, logits_BV, last_BV)
      if advance is not None:
        advance(min(begin + N, int(lengths_B.max())))
    return last_BV, stream

  def generate(
    self, prompts: Sequence[np.ndarray], tokens: int, sampling: Sampling, seed: int = 0
  ) -> Iterator[np.ndarray]:
    """Yields the next token of every lane (B,), `tokens` times."""
    logits_BV, stream = self.prefill(prompts)
    yield from self.decode(logits_BV, stream, tokens, sampling, seed)

  def decode(
    self, logits_BV: jax.Array, stream: Any, tokens: int, sampling: Sampling, seed: int = 0
  ) -> Iterator[np.ndarray]:
    """Goes on from a stream, one token at a time. The stream is used up."""
    mask_BT = np.ones((logits_BV.shape[0], 1), bool)
    key = jax.random.key(seed)
    for i in range(tokens):
      token_B = self._draw(logits_BV, jax.random.fold_in(key, i), sampling)
      yield np.asarray(token_B)
      if i + 1 < tokens:
        stream = self._reserve(stream, 1)
        logits_BV, stream = self._extend(self._params, stream, token_B[:, None], mask_BT)

  def _read_chunk(self, params, state, tokens_BT):
    return bind(self._config, params)(tokens_BT, state)[1]

  def _extend_segment(self, params, stream, tokens_BT, mask_BT):
    model = bind(self._config, params)
    hidden_BTD, stream = model.extend(tokens_BT, stream, mask_BT)
    last_B = jnp.maximum(mask_BT.sum(1) - 1, 0)
    hidden_BTD = jnp.take_along_axis(shard(hidden_BTD, "B__"), last_B[:, None, None], axis=1)
    return shard(model.logits(hidden_BTD)[:, 0], "B_"), stream  # sampling sorts the vocabulary
