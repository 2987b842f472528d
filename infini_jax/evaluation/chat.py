"""Conversations: how likely the right answers are, and the answers that the model writes itself.

A written answer is compared with the right one: exact match, F1 of words, and F1 of ROUGE-L. Words
are normalised as in SQuAD (Rajpurkar et al., arXiv 1606.05250).
"""

import collections
import re
import string
from collections.abc import Callable

from jax.sharding import Mesh

from infini_jax.config import Config, InputError
from infini_jax.evaluation.answers import Answers, scorer
from infini_jax.tasks import Conversations

COUNTS = ("conversations", "cut", "left_out", "bad")


def normalised(text: str) -> list[str]:
  """The words of an answer as SQuAD counts them: lower case, without punctuation and articles."""
  plain = "".join(c for c in text.lower() if c not in string.punctuation)
  return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def shared_words(written: str, reference: str) -> float:
  """F1 of the words that both texts have, each as often as in both, 0 to 1."""
  one, other = normalised(written), normalised(reference)
  if not one or not other:
    return float(one == other)
  same = sum((collections.Counter(one) & collections.Counter(other)).values())
  return 2 * same / (len(one) + len(other))


def comparing() -> Callable[[str, str], dict[str, float]]:
  """Returns a function of a reference and a written answer: its scores, each from 0 to 1."""
  rouge = scorer()
  return lambda reference, written: {
    "exact_match": float(normalised(written) == normalised(reference)),
    "f1": shared_words(written, reference),
    "rougeL": rouge(reference, written)["rougeL"],
  }


def answering(config: Config, mesh: Mesh, dataset: Conversations) -> Answers:
  """The evaluator of the conversations of a split.

  Raises:
    InputError: the split has no conversations, or a field does not fit.
  """
  e = config.evaluation
  for field in ("document", "max_tokens"):
    if value := getattr(e, field):
      raise InputError(
        f"config.evaluation.{field}={value!r} with --task=chat: conversations are read whole; "
        f"leave it out"
      )
  talks = dataset.split(e.split)
  counts = {name: getattr(talks.counts, name) for name in COUNTS}
  about = lambda count: counts | {"asked": count}
  return Answers(config, mesh, dataset, talks, comparing(), about)
