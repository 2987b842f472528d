"""From the text of needles to tokens: the parts of an example."""

from infini_jax.config import Config
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.digests import short_hash
from infini_jax.tasks.example import Example, Part, weighed
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

  def piece(self, text: str, before: str = BEFORE) -> Part:
    """The tokens that `text` adds after `before`.

    Raises:
      InputError: the tokenizer cannot write it.
    """
    return self._pieces.part(text, before)

  def tail(self, question: str, answers: list[str]) -> list[Part]:
    """The parts of the question and the answers; before each answer is a part that leads to it."""
    parts: list[Part] = []
    text = question
    leading = self.piece(question).ids
    for i, answer in enumerate(answers):
      if i:
        leading, text = self.piece(",", text).ids, f"{text},"
      parts += self._pieces.asked(leading, self.piece(f" {answer}", text).ids)
      text = f"{text} {answer}"
    return parts

  def example(self, front: list[Part], tail: list[Part]) -> Example:
    """The whole example, with its loss weights."""
    answers = range(len(front) + 1, len(front) + len(tail), 2)
    return weighed([*front, *tail], answers, self._context_weight)
