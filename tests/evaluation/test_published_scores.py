"""The scorers of RULER and BABILong: values worked by hand from the published definitions."""

import pytest

from infini_jax.evaluation.published_scores import (
  LABELS,
  cleaned,
  contained,
  is_answer,
  score,
  string_match_all,
  string_match_part,
)


def test_all_references_count_by_their_share():
  """Of 2, 1 and 0 of two references: (1 + 0.5 + 0) / 3, in percent with two digits."""
  written = ["The numbers are 4821 and 1907.", "4821", "none of them"]
  references = [["4821", "1907"]] * 3
  assert string_match_all(written, references) == 50.0
  assert string_match_part(written, references) == 66.67
  assert string_match_all(["a b"], [["a", "b", "c"]]) == 66.67
  assert string_match_part(["a b"], [["x", "c"]]) == 0.0


def test_case_does_not_count_and_a_reference_may_be_inside_a_word():
  assert string_match_all(["the PARISIANS"], [["Paris"]]) == 100.0
  assert contained("48210", ["4821"], part=False) == 1.0


def test_control_characters_are_newlines():
  assert cleaned(" \ta\x00b\t\n") == "a\nb"
  assert score("vt", "AB\x07CD", ["AB\nCD"]) == 1.0


def test_questions_are_scored_by_part_and_all_else_by_all():
  assert score("qa_1", "blue", ["blue", "azure"]) == 1.0
  assert score("niah_multivalue", "blue", ["blue", "azure"]) == 0.5


@pytest.mark.parametrize(
  "task, written, target, question, right",
  [
    ("qa1", "The bathroom. Or the office.", "bathroom", "Where is Mary?", True),
    ("qa1", "bathroom or office", "bathroom", "Where is Mary?", False),
    ("qa1", "I do not know", "bathroom", "Where is Mary?", False),
    ("qa1", "BATHROOM", "bathroom", "Where is Mary?", True),
    # Labels of the question are no predictions.
    ("qa3", "Before the kitchen it was in the garden", "garden", "... before the kitchen?", True),
    ("qa3", "The kitchen", "kitchen", "... before the kitchen?", False),
    ("qa6", "Yes, he is", "yes", "Is John in the office?", True),
    ("qa6", "yes and no", "yes", "Is John in the office?", False),
    ("qa8", "apple and milk", "apple,milk", "What is Daniel carrying?", True),
    ("qa8", "milk", "apple,milk", "What is Daniel carrying?", False),
    ("qa8", "apple, milk and football", "apple,milk", "What is Daniel carrying?", False),
    ("qa5", "It was Bill", "Bill", "Who gave the cake to Fred?", True),
    ("qa19", "e,s", "e,s", "How do you go?", True),
    ("qa19", "e,n", "e,s", "How do you go?", False),
    ("qa5", "Fred gave the milk", "milk", "What did Fred give to Bill?", True),
    ("qa5", "Jeff gave the milk", "milk", "What did Fred give to Bill?", False),
    ("qa7", "two<example>three", "two", "How many?", True),
    ("qa7", "none", "none", "How many?", False),  # it holds "one"
    ("qa1", "the kitchen, " + "question", "kitchen", "Where is Mary?", True),
  ],
)
def test_answers_of_babilong(task, written, target, question, right):
  assert is_answer(task, written, target, question) is right
  assert score(task, written, [target], question) == float(right)


def test_every_task_of_babilong_has_its_labels():
  assert LABELS.keys() == {f"qa{i}" for i in range(1, 21)}
