"""How RULER and BABILong score what a model wrote, as they publish it.

RULER (Hsieh et al., arXiv 2404.06654; `scripts/eval/synthetic/constants.py` and `evaluate.py` of
github.com/NVIDIA/RULER):

    string_match_all    mean over samples of the share of references that the text contains
    string_match_part   mean over samples of whether it contains any of them

both without regard to case, in percent, rounded to two digits. Questions (qa) are scored by part,
all other tasks by all. Control characters of the text become newlines, and its ends are stripped.

BABILong (Kuratov et al., arXiv 2406.10149; `babilong/metrics.py` of github.com/booydar/babilong):
each task has a set of labels. The text counts up to its first full stop. It is right if it contains
the label that is the answer, and no other label, except those that the question has. Labels are
found inside of words, as in all published tables: so in qa7 a right "none" also holds "one", and
counts as wrong. (A later version of that file matches whole words there.)
"""

import re
from collections.abc import Sequence

CONTROL = re.compile(r"[\x00-\x1f]")
PARTIAL = ("qa",)  # beginnings of the names of RULER's tasks that are scored by part
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
LABELS = {
  **dict.fromkeys(("qa1", "qa2", "qa3", "qa4", "qa11", "qa12", "qa13"), PLACES),
  "qa5": ("bill", "fred", "jeff", "mary", "apple", "football", "milk"),
  "qa7": ("none", "one", "three", "two"),
  "qa8": ("apple", "football", "milk", "nothing"),
  "qa10": ("maybe", "no", "yes"),
  "qa14": ("bedroom", "cinema", "kitchen", "office", "park", "school"),
  "qa15": ("cat", "mouse", "sheep", "wolf"),
  "qa16": ("gray", "green", "white", "yellow"),
  **dict.fromkeys(("qa6", "qa9", "qa17", "qa18"), ("no", "yes")),
  "qa19": ("e,e", "e,n", "e,s", "n,e", "n,n", "n,w", "s,e", "s,s", "s,w", "w,n", "w,s", "w,w"),
  "qa20": ("bedroom", "bored", "garden", "hungry", "kitchen", "thirsty", "tired"),
}


def cleaned(text: str) -> str:
  """What a model wrote, as RULER's scorer reads it."""
  return CONTROL.sub("\n", text.strip()).strip()


def contained(written: str, references: Sequence[str], part: bool) -> float:
  """The score of one sample of RULER, 0 to 1: by part, or by all."""
  found = [float(reference.lower() in written.lower()) for reference in references]
  return max(found) if part else sum(found) / len(found)


def string_match_all(written: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """RULER's score of texts that must contain all references, 0 to 100."""
  return _percent([contained(*one, False) for one in zip(written, references, strict=True)])


def string_match_part(written: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """RULER's score of texts that must contain any of their references, 0 to 100."""
  return _percent([contained(*one, True) for one in zip(written, references, strict=True)])


def is_answer(task: str, written: str, target: str, question: str) -> bool:
  """Whether an answer to a question of BABILong is right.

  Args:
    task: qa1 to qa20.
    written: what the model wrote.
    target: the right answer; several are divided by commas.
    question: what was asked.
  """
  text = written.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
  target = target.lower()
  found = {label for label in LABELS[task] if label in text}
  found -= {label for label in LABELS[task] if label in question.lower()}
  several = target.split(",") if "," in target and len(target) > 3 else [target]
  return len(found) == len(several) and all(one in found for one in several)


def score(task: str, written: str, targets: Sequence[str], question: str = "") -> float:
  """The score of one sample, 0 to 1; a question belongs to BABILong.

  Args:
    task: its task.
    written: what the model wrote.
    targets: the references, or the one answer.
    question: what was asked, in BABILong.
  """
  if question:
    return float(is_answer(task, written, targets[0], question))
  return contained(cleaned(written), targets, task.startswith(PARTIAL))


def _percent(scores: Sequence[float]) -> float:
  return round(sum(scores) / len(scores) * 100, 2)
