"""The requests of a harness: likelihoods of continuations and of texts, and generated text.

Requests have any length: nothing is cut. Contexts are read side by side, longest first. What
continuations have in common, their context, is read once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from infini_jax.config import InputError
from infini_jax.data.chat.conversation import Chat, open_chat
from infini_jax.data.chat.render import Message
from infini_jax.inference import OpenedRun, Session
from infini_jax.inference.arguments import whole

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# Arguments of a generation that change nothing here.
IGNORED = ("until", "do_sample", "use_cache", "return_full_text", *LENGTHS)
SAMPLED = ("top_p", "top_k", "repetition_penalty")
USUAL = 256  # tokens to generate, where a task does not say

Advance = Callable[[int], None]  # called with the number of requests done since the last call


class Continuation(NamedTuple):
  """Tokens to score after others."""

  context: Sequence[int]
  tokens: Sequence[int]


class Scorer:
  """A model that answers requests.

  Args:
    run: the model.
    lanes: contexts that are read side by side.
    bos: whether a text begins with bos, as documents do in training.
    template: the chat template, as `config.chat.template`.
    empty: the memory is held empty.
  """

  def __init__(
    self,
    run: OpenedRun,
    lanes: int = 1,
    bos: bool = True,
    template: str = "own",
    empty: bool = False,
  ):
    self.run, self.bos, self._template, self._empty = run, bos, template, empty
    self.lanes = whole("batch_size", lanes, least=1)
    self._chat: Chat | None = None
    if empty:
      Session(run).score("", empty=True)  # raises if there is no memory to hold empty

  def encode(self, text: str, bos: bool | None = None) -> list[int]:
    """The tokens of a text. Names of special tokens in it become these tokens, as in templates.

    Args:
      text: the text.
      bos: whether it begins with bos; None: as the model does.
    """
    ids = self.run.tokenizer.encode_marked(text).tolist()
    mark = self.run.tokenizer.bos
    return [mark] * ((self.bos if bos is None else bos) and ids[:1] != [mark]) + ids

  def continuations(
    self, asked: Sequence[Continuation], advance: Advance = lambda n: None
  ) -> list[tuple[float, bool]]:
    """The log-likelihood of each continuation in nats, and whether it is the likeliest.

    Continuations of one context are scored from copies of its state.
    """
    indices: dict[tuple[int, ...], list[int]] = {}
    for i, one in enumerate(asked):
      indices.setdefault(tuple(one.context) or (self.run.tokenizer.bos,), []).append(i)
    found: list[Any] = [None] * len(asked)
    for some in self._batches(list(indices)):
      session = self._read(some)
      texts = [[list(asked[i].tokens) for i in indices[context]] for context in some]
      scores = session.score(self._each(texts), empty=self._empty, marked=True)
      for context, own in zip(some, scores if self.lanes > 1 else [scores], strict=False):
        for i, score in zip(indices[context], own, strict=True):
          found[i] = (score.log_prob, score.likeliest)
        advance(len(own))
    return found

  def texts(self, asked: Sequence[str], advance: Advance = lambda n: None) -> list[float]:
    """The log-likelihood of each whole text in nats; its first token follows bos."""
    mark, found = self.run.tokenizer.bos, [0.0] * len(asked)
    ids = [self.encode(text, bos=True)[1:] for text in asked]
    session = self._read([(mark,)])
    order = sorted(range(len(asked)), key=lambda i: -len(ids[i]))
    for first in range(0, len(order), self.lanes):
      some = order[first : first + self.lanes]
      texts = self._each([[ids[i]] for i in some])
      scores = session.score(texts, empty=self._empty, marked=True)
      for i, (score,) in zip(some, scores if self.lanes > 1 else [scores], strict=False):
        found[i] = score.log_prob
      advance(len(some))
    return found

  def generate(
    self,
    asked: Sequence[str],
    how: Mapping[str, Any],
    seed: int = 0,
    advance: Advance = lambda n: None,
  ) -> list[str]:
    """What the model writes after each text.

    Args:
      asked: the texts.
      how: the arguments of a generation, as tasks of lm-evaluation-harness give them: `until`,
        `max_gen_toks`, `do_sample`, `temperature`, `top_p`, `top_k`, `repetition_penalty`.
      seed: of the draws.
      advance: called with the texts done.

    Raises:
      InputError: an argument is not known, or is out of its range.
    """
    if self._empty:
      raise InputError("empty=True: text is generated with the memory; leave it out for this task")
    tokens, stop, sampling = arguments(how)
    special = self.run.tokenizer.special
    ends = {special[text] for text in stop if text in special}
    if self._chat is not None:
      ends.add(self._chat.end)
    found = [""] * len(asked)
    contexts = [tuple(self.encode(text)) or (self.run.tokenizer.bos,) for text in asked]
    order = sorted(range(len(asked)), key=lambda i: -len(contexts[i]))
    for first in range(0, len(order), self.lanes):
      some = order[first : first + self.lanes]
      session = self._read([contexts[i] for i in some])
      stops = [text for text in stop if text not in special]
      ended = 0
      for piece in session.generate(tokens, stop=stops, ends=ends, seed=seed, **sampling):
        if piece.lane < len(some):
          found[some[piece.lane]] += piece.text
          ended += bool(piece.end)
        if ended == len(some):
          break
      advance(len(some))
    return found

  def render(self, messages: Sequence[Message], ask: bool = True) -> str:
    """A conversation as text, up to the beginning of an answer; without `ask`, the last message is
    the beginning of an answer that continues.

    Raises:
      InputError: the model has no template, or the template refuses the messages.
    """
    chat = self.chat
    last = "" if ask else messages[-1]["content"]
    asked = chat.check(messages if ask else messages[:-1])
    return chat.render(asked, ask=True) + last

  def template_text(self) -> str:
    """The text of the chat template."""
    return next(iter(self.chat.template.texts.values()))

  @property
  def chat(self) -> Chat:
    """The chat template. From its first use on, a generation ends with the end of an answer."""
    if self._chat is None:
      self._chat = open_chat(self.run.tokenizer, self._template)
    return self._chat

  def _batches(self, contexts: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Contexts that are read side by side, the longest first."""
    ordered = sorted(contexts, key=lambda ids: -len(ids))
    return [ordered[i : i + self.lanes] for i in range(0, len(ordered), self.lanes)]

  def _read(self, contexts: Sequence[Sequence[int]]) -> Session:
    """A session that has read a text in each lane; the last one again where there are fewer."""
    session = Session(self.run, self.lanes, begin=False)
    texts = [list(ids) for ids in contexts]
    texts += texts[-1:] * (self.lanes - len(texts))
    session.read(texts if self.lanes > 1 else texts[0], marked=True)
    return session

  def _each(self, texts: list[list[list[int]]]) -> Any:
    """Lists of texts in the form of `Session.score`; nothing for lanes without a text."""
    if self.lanes == 1:
      return texts[0]
    return [*texts, *[[[]]] * (self.lanes - len(texts))]


def arguments(how: Mapping[str, Any]) -> tuple[int, list[str], dict[str, Any]]:
  """The most tokens, the texts that end a generation, and the arguments of `Session.generate`.

  Raises:
    InputError: an argument is not known, or is out of its range.
  """
  for name, value in how.items():
    if name not in (*IGNORED, "temperature", *SAMPLED):
      raise InputError(
        f"generation argument {name}={value!r}: is not supported; leave it out (supported: until, "
        f"{LENGTHS[0]}, do_sample, temperature, {', '.join(SAMPLED)})"
      )
  given = [how[name] for name in LENGTHS if how.get(name) is not None]
  tokens = whole(LENGTHS[0], given[0] if given else USUAL, least=1)
  until = how.get("until") or []
  stop = [until] if isinstance(until, str) else [text for text in until if text]
  sampled = how.get("do_sample", bool(how.get("temperature")))
  sampling: dict[str, Any] = {"temperature": how.get("temperature", 1.0) if sampled else 0.0}
  sampling |= {"top_p": 1.0} | {name: how[name] for name in SAMPLED if how.get(name) is not None}
  return tokens, stop, sampling
