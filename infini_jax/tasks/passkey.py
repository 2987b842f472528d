"""The passkey task, word for word that of the paper (arXiv 2404.07143v2, appendix B).

A key hides in a text that says nothing, and is asked for at the end. The text has exactly the
wanted number of tokens: filler before and after the key is cut, the key and the question never.
"""

import hashlib
import re

import numpy as np

from infini_jax.config import Config, InputError
from infini_jax.data.tokenizers import Tokenizer, WordTokenizer, load_tokenizer
from infini_jax.tasks.draw import Draw
from infini_jax.tasks.example import Example, Part, early

INTRO = (
  "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
  "I will quiz you about the important information there."
)
FILLER = (
  " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
)
KEY = " The pass key is {key}. Remember it."
REPEAT = " {key} is the pass key."
QUESTION = " What is the pass key? The pass key is"
ANSWER = " {key}"
CONTEXT = -1.0  # the weight of a part that shares the context's, once the text is complete
WORDS = re.compile(r" ?[A-Za-z]+| |[^A-Za-z ]")


def words() -> list[str]:
  """The vocabulary of the task alone: its words, its punctuation, a space, the ten digits."""
  text = INTRO + FILLER + KEY + REPEAT + QUESTION + ANSWER
  return [*map(str, range(10)), *sorted(set(WORDS.findall(text.replace("{key}", ""))))]


class Passkey:
  """Keys of `digits` digits; about every tenth key is held out for evaluation.

  Raises:
    InputError: the tokenizer cannot write the prompt or the digits.
  """

  has_depth = True

  def __init__(self, config: Config, tokenizer: Tokenizer | None = None):
    spec = config.data.tokenizer
    if tokenizer is None:
      tokenizer = WordTokenizer(words()) if spec == "task" else load_tokenizer(spec)
    self.tokenizer = tokenizer
    self._digits, self._task = config.task.digits, config.task
    self._spec, self._seed = spec, config.train.seed
    if not 1 <= self._digits <= 32:
      raise InputError(f"config.task.digits={self._digits}: choose 1 to 32")
    intro = self._encode("", INTRO)
    self._head = Part(intro, len(intro), CONTEXT)
    self._filler = self._encode(INTRO, FILLER)
    self._question = self._encode(FILLER, QUESTION)
    keys = ["".join(str((d + i) % 10) for i in range(self._digits)) for d in range(10)]
    texts = [self._pieces(key) for key in keys]  # every digit in every place
    one = max(sum(map(len, self._pieces(str(d)))) for d in range(10))
    # These keys' digits may be joined into few tokens, and another's not: three times one by one.
    longest = max(one + 3 * (self._digits - 1), *(sum(map(len, parts)) for parts in texts))
    self.shortest = self.shortest_training = len(intro) + longest + len(self._question)
    name = f"passkey {config.task.digits} {tokenizer.fingerprint}"
    self.fingerprint = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()

  def example(
    self, rng: np.random.Generator, length: int, depth: float | None = None, *, held_out: bool
  ) -> Example:
    """A prompt and its answer: `length` tokens, the key at `depth` of the filler (0 to 1).

    In training the key stands anywhere, or as often early: see `early`; a share `task.late` of them
    stands near the end instead, in the same way.
    """
    if depth is None:
      depth = self._late(rng, length)
    if depth is None:
      depth = rng.random() if rng.random() < 0.5 else early(rng, length)
    key = self._key(rng, held_out)
    return self._assemble(self._head, key, length, depth, self._cycle(0))

  def beginning(self, rng: np.random.Generator, length: int) -> Example:
    """The beginning of a prompt; two in three have their key in it, early; the others come to it
    later."""
    key = self._key(rng, held_out=False)
    depth = early(rng, length) if rng.random() < 2 / 3 else 1.0
    cycle = self._cycle(0)
    return self._assemble(self._head, key, length + self.shortest, depth, cycle)

  def continuation(self, rng: np.random.Generator, before: Example, read: int, n: int) -> Example:
    """More filler and the question; with a key of its own where `before` has had none so far."""
    key = 2  # the place of the key's statement among the parts
    ahead = sum(part.size for part in before.parts[:key])
    if read <= ahead:
      intro = before.parts[0].size
      rest = before.read(read, max(read, intro))  # of the intro, if it stands across the border
      cycle = self._cycle(max(0, read - intro))
      head = Part(rest, len(rest), CONTEXT)
      depth = self._late(rng, n)
      depth = rng.random() if depth is None else depth
      return self._assemble(head, self._key(rng, False), n, depth, cycle)
    end = ahead + sum(part.size for part in before.parts[key : key + 2])
    rest = before.read(read, max(read, end))  # of the key, if it stands across the border
    cycle = self._cycle(max(0, read - end))
    tail = tuple(part._replace(weight=CONTEXT) for part in before.parts[-2:])  # to be weighed anew
    return self._finish([Part(rest, len(rest), CONTEXT), cycle], tail, n)

  def _late(self, rng: np.random.Generator, length: int) -> float | None:
    """A depth near the end, as often as `task.late` says; else None."""
    if not self._task.late or rng.random() >= self._task.late:
      return None
    return 1 - early(rng, length)

  def _assemble(self, head: Part, key: str, length: int, depth: float, cycle: Part) -> Example:
    statement, repeat, answer = self._pieces(key)
    space = 0  # where it is a token of its own, it belongs to the question
    while not self.tokenizer.decode(answer[: space + 1]).strip():
      space += 1
    question, answer = np.concatenate([self._question, answer[:space]]), answer[space:]
    tail = (Part(question, len(question), CONTEXT), Part(answer, len(answer)))
    fixed = head.size + sum(map(len, (statement, repeat, question, answer)))
    before = round(depth * max(0, length - fixed))
    front = [
      head,
      cycle._replace(size=before),
      Part(statement, len(statement), CONTEXT),
      Part(repeat, len(repeat), self._task.repeat_weight / len(repeat)),
      self._cycle(0),
    ]
    return self._finish(front, tail, length)

  def _cycle(self, first: int) -> Part:
    """Filler from its token `first` on, of a size to be set."""
    return Part(self._filler, 0, CONTEXT, first, filler=True)

  def _finish(self, front: list[Part], tail: tuple[Part, ...], length: int) -> Example:
    """Fills the last part of `front` up, and spreads the weights."""
    room = length - sum(part.size for part in (*front[:-1], *tail))
    if room < 0:
      raise InputError(
        f"a pass key prompt of {length} tokens: the key and the question alone have {length - room}"
      )
    parts = [*front[:-1], front[-1]._replace(size=room), *tail]
    answer = parts.pop()
    context = sum(part.size for part in parts if part.weight == CONTEXT)
    each = self._task.context_weight / max(1, context)
    parts = [p._replace(weight=each) if p.weight == CONTEXT else p for p in parts]
    return Example((*parts, answer._replace(weight=1 / answer.size)), frozenset({len(parts)}))

  def _pieces(self, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The statement, its repetition, and the answer."""
    statement = KEY.format(key=key)
    repeat = REPEAT.format(key=key)
    return (
      self._encode(FILLER, statement),
      self._encode(statement, repeat),
      self._encode(QUESTION, ANSWER.format(key=key)),
    )

  def _key(self, rng: np.random.Generator, held_out: bool) -> str:
    return Draw(rng, self._seed, held_out).numbers(1, self._digits)[0]

  def _encode(self, before: str, text: str) -> np.ndarray:
    """The tokens that `text` adds after `before`."""
    ids = self.tokenizer.encode(before + text)
    start = len(self.tokenizer.encode(before)) if before else 0
    ids = ids[start:]
    found = self.tokenizer.decode(ids)
    if found.strip() != text.strip():
      raise InputError(
        f"config.data.tokenizer={self._spec!r} cannot write the pass key prompt: {text.strip()!r} "
        f"comes back as {found.strip()!r}; choose a tokenizer with digits, such as bytes"
      )
    return ids
