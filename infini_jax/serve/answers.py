"""Answers of the API in OpenAI's form."""

import secrets
import time
from typing import Any

from infini_jax.data import Tokenizer, text_of
from infini_jax.serve.fields import Asking
from infini_jax.serve.job import Done, Event, Progress, Written
from infini_jax.serve.service import Service
from infini_jax.serve.sessions import Kept

REASONS = {"length": "length"}  # why a text ended, in OpenAI's words; any other reason is "stop"


class Completion:
  """The answer to one request, whole or in pieces.

  Args:
    asking: the request.
    before: the length of the session's text before it.
    model: the name of the model.
    fingerprint: of its parameters.
    tokenizer: its vocabulary.
  """

  def __init__(
    self, asking: Asking, before: int, model: str, fingerprint: str, tokenizer: Tokenizer
  ):
    self._asking, self._tokenizer = asking, tokenizer
    self._chat = asking.kind == "chat"
    prefix = "chatcmpl" if self._chat else "cmpl"
    self._base: dict[str, Any] = {
      "id": f"{prefix}-{secrets.token_hex(12)}",
      "created": int(time.time()),
      "model": model,
      "system_fingerprint": fingerprint,
    }
    if asking.session:
      self._base["session"] = asking.session
    self._kind = "chat.completion.chunk" if self._chat else "text_completion"
    self._before, self._tokens = before, 0
    self._written: list[Written] = []
    self._characters = 0  # of the text that the logprobs so far are of

  @property
  def text(self) -> str:
    """The text that was written so far."""
    return "".join(written.piece.text for written in self._written)

  def first(self) -> list[dict[str, Any]]:
    """The first objects of a stream."""
    if not self._chat:
      return []
    return [self._chunk({"delta": {"role": "assistant", "content": ""}}, None)]

  def take(self, event: Event) -> list[dict[str, Any]]:
    """Takes the next event; returns the objects that are sent for it in a stream."""
    if isinstance(event, Done):
      self._tokens = event.result
    if isinstance(event, Done) and self._asking.usage:
      return [{**self._base, "object": self._kind, "choices": [], "usage": self.usage()}]
    if not isinstance(event, Written):
      return []
    self._written.append(event)
    text, reason = event.piece.text, self.reason
    if not text and reason is None and self._asking.logprobs is None:
      return []
    body: dict[str, Any] = {"delta": {"content": text}} if self._chat else {"text": text}
    return [self._chunk(body, reason, [event])]

  @property
  def reason(self) -> str | None:
    """Why the text has ended; None while it continues."""
    end = self._written[-1].piece.end if self._written else ""
    return REASONS.get(end, "stop") if end else None

  def usage(self) -> dict[str, Any]:
    """The numbers of tokens; those that the session had before count as cached."""
    written = len(self._written)
    prompt = self._tokens - written
    return {
      "prompt_tokens": prompt,
      "completion_tokens": written,
      "total_tokens": self._tokens,
      "prompt_tokens_details": {"cached_tokens": self._before},
    }

  def whole(self) -> dict[str, Any]:
    """The whole answer at once."""
    said = {"role": "assistant", "content": self.text, "refusal": None}
    body = {"message": said} if self._chat else {"text": self.text}
    self._characters = 0
    choice = self._choice(body, self.reason or "length", self._written)
    kind = "chat.completion" if self._chat else "text_completion"
    return {**self._base, "object": kind, "choices": [choice], "usage": self.usage()}

  def _chunk(
    self, body: dict[str, Any], reason: str | None, written: list[Written] | None = None
  ) -> dict[str, Any]:
    choice = self._choice(body, reason, written or [])
    return {**self._base, "object": self._kind, "choices": [choice]}

  def _choice(
    self, body: dict[str, Any], reason: str | None, written: list[Written]
  ) -> dict[str, Any]:
    told = None if self._asking.logprobs is None else self._logprobs(written)
    return {"index": 0, **body, "logprobs": told, "finish_reason": reason}

  def _logprobs(self, written: list[Written]) -> dict[str, Any]:
    count = self._asking.logprobs or 0
    if self._chat:
      return {
        "content": [
          {
            **self._named(each.drawn.token, each.drawn.logprob),
            "top_logprobs": [self._named(*pair) for pair in each.drawn.likeliest[:count]],
          }
          for each in written
        ],
        "refusal": None,
      }
    offsets = []
    for each in written:
      offsets.append(self._characters)
      self._characters += len(each.piece.text)
    return {
      "tokens": [text_of(self._tokenizer, each.drawn.token) for each in written],
      "token_ids": [each.drawn.token for each in written],
      "token_logprobs": [each.drawn.logprob for each in written],
      "top_logprobs": [self._by_text(each.drawn.likeliest[:count]) for each in written],
      "text_offset": offsets,
    }

  def _named(self, id: int, logprob: float) -> dict[str, Any]:
    told = [*self._tokenizer.bytes_of(id)] or None  # a special token has none
    text = text_of(self._tokenizer, id)
    return {"token": text, "logprob": logprob, "bytes": told, "token_id": id}

  def _by_text(self, likeliest: list[tuple[int, float]]) -> dict[str, float]:
    """Probabilities by the texts of tokens; of several with one text, the likeliest."""
    named: dict[str, float] = {}
    for id, logprob in likeliest:
      named.setdefault(text_of(self._tokenizer, id), logprob)
    return named


def session(kept: Kept) -> dict[str, Any]:
  """A session; its owner is not included."""
  return {
    "id": kept.id,
    "object": "session",
    "name": kept.name,
    "created": int(kept.created),
    "used": int(kept.used),
    "tokens": kept.tokens,
    "bytes": kept.bytes,
    "ended": kept.ended,
    "busy": kept.busy,
    "kept": True,
  }


def progress(event: Progress, seconds: float) -> dict[str, Any]:
  """The progress of reading a text.

  Args:
    event: the newest one.
    seconds: since the first one.
  """
  told = {
    "object": "session.progress",
    "tokens": event.tokens,
    "share": round(event.share, 4),
    "seconds": round(seconds, 3),
  }
  return told if event.used is None else {**told, "used": event.used}


def model(service: Service) -> dict[str, Any]:
  """The model, with its sizes."""
  c = service.run.engine.config.model
  return {
    "id": service.name,
    "object": "model",
    "created": service.created,
    "owned_by": "infini_jax",
    "step": service.run.step,
    "mixer": list(c.pattern) or [c.mixer],
    "layers": c.layers,
    "segment_tokens": c.segment_length,
    "chunk_tokens": service.run.engine.chunk,
    "vocabulary": c.vocab_size,
    "state_bytes": service.state_bytes,
    "lanes": service.limits.lanes,
    "most_tokens": service.limits.tokens,
    "chat": service.chats,
  }
