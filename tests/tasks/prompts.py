"""The paper's pass key prompt, and a check of texts against it."""

import re

# shared/reference/infini-attention.md 1.4 (paper, appendix B), for x = 2 and y = 1.
PAPER = (
  "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
  "I will quiz you about the important information there. The grass is green. The sky is blue. "
  "The sun is yellow. Here we go. There and back again. The grass is green. The sky is blue. The "
  "sun is yellow. Here we go. There and back again. The pass key is 9054. Remember it. 9054 is "
  "the pass key. The grass is green. The sky is blue. The sun is yellow. Here we go. There and "
  "back again. What is the pass key? The pass key is"
)
INTRO = PAPER[: PAPER.index(" The grass")]
FILLER = (
  " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
)
STATED = re.compile(r" The pass key is (\d+)\. Remember it\. (\d+) is the pass key\.")
ASKED = re.compile(r" What is the pass key\? The pass key is (\d+)$")


def key_of(text):
  """The key of a well-formed prompt with its answer; fails for any other text."""
  stated, asked = STATED.findall(text), ASKED.search(text)
  assert len(stated) == 1 and asked, f"want one key, stated and asked for, in {text!r}"
  assert text.startswith(INTRO), f"the introduction is cut: {text[:200]!r}"
  before = text[len(INTRO) : STATED.search(text).start()]
  after = text[STATED.search(text).end() : asked.start()]
  for filler in (before, after):
    whole = FILLER * (1 + len(filler) // len(FILLER))
    assert whole.startswith(filler), f"this is no beginning of filler: {filler!r}"
  assert {*stated[0], asked[1]} == {asked[1]}, f"another key is asked for: {stated}, {asked[1]}"
  return asked[1]
