"""`infini-jax score`: JSON lines that agree with `Session.score`, and refusals."""

import io
import json
import math

import numpy as np
import pytest

from infini_jax import cli
from infini_jax.data.tokenizers import ByteTokenizer, WordTokenizer
from infini_jax.inference import Session, open_run, saved
from infini_jax.scoring.command import Lacking

TEXT = "One line.\nAnother line, étrange.\n\nA third\n  and its end" * 3


@pytest.fixture(scope="module")
def opened(trained):
  return open_run(trained[1])


@pytest.fixture
def run(trained, opened, monkeypatch):
  monkeypatch.setattr(saved, "open_run", lambda *_: opened)  # compiles its programs once
  return f"--workdir={trained[1]}"


def command(capsys, *arguments):
  status = cli.main(["score", *map(str, arguments)])
  captured = capsys.readouterr()
  return status, [json.loads(line) for line in captured.out.splitlines()], captured.err


def test_a_line_for_each_text_has_its_sums(run, opened, tmp_path, capsys, monkeypatch):
  book = tmp_path / "book.txt"
  book.write_text(TEXT, "utf-8")
  status, lines, told = command(capsys, run, book, "--text= tail", "--empty")
  assert status == 0 and "step 6" in told
  for line, (named, text) in zip(
    lines, (({"file": str(book)}, TEXT), ({"text": " tail"}, " tail")), strict=True
  ):
    scores = [Session(opened).score(text, empty=empty) for empty in (False, True)]
    assert named.items() <= line.items()
    assert line["tokens"] == line["bytes"] == len(text.encode())
    for found, score in zip((line, line["empty"]), scores, strict=True):
      assert found["log_prob"] == pytest.approx(score.log_prob, rel=1e-6)
      assert found["bits_per_byte"] == pytest.approx(score.bits_per_byte)
      assert found["perplexity"] == pytest.approx(score.perplexity)
    assert line["likeliest"] == scores[0].likeliest
  monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
  status, (line,), _ = command(capsys, run, "-", "--empty")
  assert line == lines[0] | {"file": "standard input"}


def test_a_line_for_each_token_adds_up(run, opened, capsys):
  status, lines, _ = command(capsys, run, f"--text={TEXT}", "--per-token", "--empty")
  *each, whole = lines
  assert status == 0 and len(each) == whole["tokens"]
  assert [line["place"] for line in each] == list(range(len(each)))
  assert [line["token"] for line in each] == list(TEXT.encode())
  session = Session(opened)
  for name, empty in (("log_prob", False), ("empty", True)):
    own = np.array([line[name] for line in each])
    np.testing.assert_allclose(own, session.score(TEXT, empty=empty).log_probs, rtol=1e-6)
  assert math.fsum(line["log_prob"] for line in each) == pytest.approx(whole["log_prob"])
  assert "".join(line["token_text"] for line in each[:9]) == TEXT[:9]
  assert all(line["text"] == TEXT for line in lines), "each line names its text"


def test_tokens_of_unknown_text_are_counted():
  words = WordTokenizer([" a", " b"])
  lacking = Lacking(words)
  lacking.add(words.encode(" a b a"))
  assert lacking.count == 0
  lacking.add(words.encode(" a zebra b"))
  assert lacking.count == len(" zebra")
  lacking = Lacking(ByteTokenizer())
  lacking.add(ByteTokenizer().encode("é\0 any text"))
  assert lacking.count == 0


def test_texts_follow_a_prompt_or_a_state(run, opened, tmp_path, capsys):
  session, state = Session(opened), tmp_path / "book.state"
  session.read(TEXT)
  session.save(state)
  wanted = [score.log_prob for score in session.score([" a", " b"])]
  (tmp_path / "book.txt").write_text(TEXT, "utf-8")
  for before in (
    (run, f"--prompt={TEXT}"),
    (run, f"--prompt-file={tmp_path / 'book.txt'}"),
    (f"--load-state={state}",),
  ):
    status, lines, _ = command(capsys, *before, "--text= a", "--text= b")
    assert status == 0
    assert [line["log_prob"] for line in lines] == pytest.approx(wanted, abs=1e-5)


def test_wrong_inputs_are_one_line_with_the_remedy(run, trained, tmp_path, capsys):
  empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
  empty.write_text("")
  latin.write_bytes(b"caf\xe9" * 9)

  def refused(*arguments):
    assert cli.main(["score", *map(str, arguments)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("infini-jax score: ")
    return error

  assert "--workdir=RUN is missing" in refused("--text=a")
  assert "nothing to score: give files, or --text=TEXT" in refused(run)
  assert "no run here" in refused(f"--workdir={tmp_path}", "--text=a")
  assert "no such file" in refused(run, tmp_path / "none")
  assert "is a folder; name a file" in refused(run, tmp_path)
  assert "is empty; give some text" in refused(run, empty)
  assert "not UTF-8 text" in refused(run, latin)
  assert "--text is empty" in refused(run, "--text=")
  assert "a file of this name exists" in refused(run, f"--text={latin}")
  assert "--prompt is empty" in refused(run, "--text=a", "--prompt=")
  assert "--prompt-file reads it" in refused(run, "--text=a", f"--prompt={latin}")
  assert "no such file" in refused(run, "--text=a", f"--prompt-file={tmp_path / 'none'}")
  assert "not a whole" in refused("--text=a", f"--load-state={latin}")
