"""The tasks that a config can name, and the facts of each that other modules read.

Other code never compares the name of a task; it reads a fact. How answers are measured, and what
tables call them, is in `tasks.example.Facts`.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TaskKind:
  """The facts of a task; without any, it is documents, each of whose tokens is learned."""

  generated: bool = False  # its examples are generated; each is whole in one chunk
  own_words: bool = False  # it can have a vocabulary of its own: data.tokenizer='task'
  writes: str = ""  # the text that the model writes as an answer; empty: it writes none

  @property
  def asks(self) -> bool:
    """Whether it has answers, which have loss weights of their own."""
    return self.generated or bool(self.writes)


TASKS: dict[str, TaskKind] = {
  "text": TaskKind(),
  "passkey": TaskKind(generated=True, own_words=True),
  "recall": TaskKind(generated=True, own_words=True),
  "needle": TaskKind(generated=True),
  "summarization": TaskKind(writes="a summary"),
  "chat": TaskKind(writes="an answer"),
}
