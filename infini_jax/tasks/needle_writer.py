"""From the text of needles to tokens: the spans of an example."""

from infini_jax.config import Config
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.digests import short_hash
from infini_jax.tasks.example import Example, Span, weighed
from infini_jax.tasks.pieces import Pieces

BEFORE = "So it is."  # the text before a piece, for the tokenizer


class Writer:
  """Converts the needles of a run to tokens.

  Args:
    config: the config of the run.
    tokenizer: the tokenizer.
  """

  def __init__(self, config: Config, tokenizer: Tokenizer):
    self._task, self._context_weight = config.needle, config.task.context_weight
    self._tokenizer, remedy = tokenizer, "a tokenizer of all text"
    self._pieces = Pieces(tokenizer, config.data.tokenizer, "the needles", remedy)

  def fingerprint(self, corpus: str) -> str:
    """A short hash of the needles' settings, the tokenizer, and the corpus of the filler."""
    t = self._task
    asked = f"{t.family} {t.needles} {t.hops} {t.facts} {t.digits}"
    name = f"needle {asked} {self._tokenizer.fingerprint} {corpus}"
    return short_hash(name.encode())

  def piece(self, text: str, before: str = BEFORE) -> Span:
    """The tokens that `text` adds after `before`.

    Raises:
      InputError: the tokenizer cannot write it.
    """
    return self._pieces.span(text, before)

  def tail(self, question: str, answers: list[str]) -> list[Span]:
    """The spans of the question and the answers; before each answer is a span that leads to it."""
    spans: list[Span] = []
    text = question
    leading = self.piece(question).ids
    for i, answer in enumerate(answers):
      if i:
        leading, text = self.piece(",", text).ids, f"{text},"
      spans += self._pieces.asked(leading, self.piece(f" {answer}", text).ids)
      text = f"{text} {answer}"
    return spans

  def example(self, front: list[Span], tail: list[Span]) -> Example:
    """The whole example, with its loss weights."""
    answers = range(len(front) + 1, len(front) + len(tail), 2)
    return weighed([*front, *tail], answers, self._context_weight)
