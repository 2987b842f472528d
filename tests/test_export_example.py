"""The commands and the program of docs/export.md, run as written.

The model of docs/chat.md gives the same answers in transformers, also after a long text, which is
read there in constant memory.
"""

import re

import numpy as np
import pytest

from infini_jax.inference import Session
from tests.test_chat_example import ASKED, ROOT, commands, run

PAGE = ROOT / "docs" / "export.md"
REMEDY = "pip install -e .[reference]"


def programs(text):
  """The programs of the page."""
  return re.findall(r"(?ms)^```python\n(.*?)^```", text)


def answer(session, ids, tokens=24):
  """What a session writes after these tokens, greedily."""
  session.read([ids], marked=True)
  special = set(session.tokenizer.special.values())
  written = [piece.token for piece in session.generate(tokens, temperature=0)]
  end = next((i for i, token in enumerate(written) if token in special), len(written))
  return session.tokenizer.decode(np.array(written[:end], np.int32)).strip()


def test_the_page_has_two_commands_and_three_programs():
  names = [command[:2] for command in commands(PAGE.read_text())]
  assert names == [["infini-jax", "convert"], ["infini-jax", "generate"]]
  assert len(programs(PAGE.read_text())) == 3
  for program in programs(PAGE.read_text()):
    compile(program, "docs/export.md", "exec")


@pytest.mark.slow
def test_the_model_gives_the_same_answers_in_transformers(tmp_path, taught, monkeypatch):
  pytest.importorskip("torch", reason=REMEDY)
  pytest.importorskip("transformers", reason=REMEDY)
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
  monkeypatch.chdir(ROOT)
  places = {"RUN": taught[0]["RUN"], "FOLDER": tmp_path / "folder"}
  places["text.state"] = tmp_path / "text.state"
  for command in commands(PAGE.read_text()):
    run(command, places)
  names: dict = {}
  for program in programs(PAGE.read_text()):
    for word in ("FOLDER", "text.state"):
      program = program.replace(f'"{word}"', repr(str(places[word])))
    exec(compile(program, "docs/export.md", "exec"), names)
  ask, model, tokenizer = names["ask"], names["model"], names["tokenizer"]

  session = Session.load(places["RUN"])
  answers = {}
  for question in ASKED:
    session.reset()
    answers[question] = session.chat(
      [{"role": "user", "content": question}], temperature=0, tokens=24
    )
  assert {question: ask(question) for question in ASKED} == answers
  assert sum(ASKED[question] == found for question, found in answers.items()) >= 3, answers

  ids_BT, N = names["ids"], model.config.segment_length
  size = lambda cache: sum(x.numel() for one in cache.layers for x in (*one[:2], *one[3:]))
  short, longer = (model.read(ids_BT[:, : n * N]) for n in (1, 4))
  room = 2 * N * sum(one.z_BKE.numel() for one in longer.layers)  # of an open segment
  assert size(short) == size(longer) <= size(names["book"]) <= size(longer) + room
  assert ids_BT.shape[1] > 15 * N, "the text has too few segments"

  bare = Session(session.run, begin=False)
  bare.read(ids_BT[0].tolist())
  texts = {
    "read in torch": (names["book"], None, bare),
    "read by the run": (names["text"], names["last"], Session.load(places["text.state"])),
  }
  for (how, (book, last, own)), question in zip(texts.items(), ASKED, strict=False):
    talk = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    asked = tokenizer(text, add_special_tokens=False).input_ids
    want, got = answer(own, asked), ask(question, book.fork(), last)
    print(f"{how}: {question} {got}")
    assert got == want, f"{how}: {question}"
