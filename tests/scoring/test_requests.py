"""The answers to a harness are those of a plain forward pass and of a session, in any lanes."""

import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.data.tokenizers import ByteTokenizer
from infini_jax.inference import Session
from infini_jax.scoring.requests import Continuation, Scorer, arguments
from tests.inference.test_scoring import CLOSE, plain
from tests.inference.test_session import case_of, draw


@pytest.fixture(scope="module")
def infini():
  return case_of("infini-delta")


@pytest.fixture(params=[3, pytest.param(1, marks=pytest.mark.slow)], ids="lanes={}".format)
def scorer(request, infini):
  return Scorer(infini.run, lanes=request.param)


def test_continuations_are_scored_after_their_contexts(rng, infini, scorer):
  """Several of one context, one of another, in any order; contexts of every length."""
  contexts = draw(rng, 40, 3, 21, 21)
  places = rng.permutation([0, 0, 1, 2, 0, 3, 2])
  texts = draw(rng, *rng.integers(1, 30, len(places)))
  asked = [
    Continuation([256, *contexts[i].tolist()], text.tolist())
    for i, text in zip(places, texts, strict=True)
  ]
  done = []
  found = scorer.continuations(asked, done.append)
  assert sum(done) == len(asked)
  for (log_prob, likeliest), i, text in zip(found, places, texts, strict=True):
    wanted = plain(infini, contexts[i], text)
    assert log_prob == pytest.approx(wanted.sum(), rel=CLOSE["rtol"], abs=1e-3)
    assert not likeliest, "random tokens are not the likeliest"


def test_a_context_is_read_once(rng, infini, monkeypatch):
  """Four continuations of one context: each token of it goes through the model once."""
  engine, read = infini.run.engine, []
  extend = engine.extend
  monkeypatch.setattr(
    engine, "extend", lambda s, pieces, *how: read.append(pieces) or extend(s, pieces, *how)
  )
  context, *texts = (x.tolist() for x in draw(rng, 15, 3, 3, 3, 3))
  Scorer(infini.run).continuations([Continuation([256, *context], text) for text in texts])
  assert sum(len(piece) for pieces in read for piece in pieces) == 15


def test_what_is_written_is_the_likeliest(rng, infini, scorer):
  context = [256, *draw(rng, 20)[0].tolist()]
  session = Session(infini.run, begin=False)
  session.read(context, marked=True)
  written = [piece.token for piece in session.generate(5, temperature=0)]
  other = [(written[0] + 1) % 256, *written[1:]]
  one, two = scorer.continuations([Continuation(context, x) for x in (written, other)])
  assert one[1] and not two[1] and one[0] > two[0]


def test_whole_texts_follow_bos(rng, infini, scorer):
  texts = ["".join(rng.choice(list("abc é\n"), n)) for n in (30, 1, 45, 8)]
  found = scorer.texts(texts)
  for text, log_prob in zip(texts, found, strict=True):
    assert log_prob == pytest.approx(Session(infini.run).score(text).log_prob, abs=1e-3)
    ids = np.frombuffer(text.encode(), np.uint8)
    assert log_prob == pytest.approx(plain(infini, [], ids).sum(), rel=1e-5, abs=1e-3)


def test_texts_are_written_as_a_session_writes_them(rng, infini, scorer):
  texts = ["".join(rng.choice(list("abc é\n"), n)) for n in (30, 1, 12, 8)]
  found = scorer.generate(texts, {"max_gen_toks": 6, "do_sample": False})
  for text, written in zip(texts, found, strict=True):
    session = Session(infini.run)
    session.read(text)
    own = "".join(piece.text for piece in session.generate(6, temperature=0, top_p=1.0))
    assert written == own
  stop = next((character for text in found for character in text[1:]), "x")
  cut = scorer.generate(texts, {"max_gen_toks": 6, "until": [stop, "<eos>"]})
  assert cut == [text.partition(stop)[0] for text in found]


def test_the_memory_can_be_held_empty(rng, infini):
  scorer, session = Scorer(infini.run, empty=True), Session(infini.run)
  text = "".join(rng.choice(list("abc \n"), 40))
  (found,) = scorer.texts([text])
  assert found == pytest.approx(session.score(text, empty=True).log_prob, abs=1e-3)
  (asked,) = scorer.continuations([Continuation([256, *text[:20].encode()], list(b"abc"))])
  session.read(text[:20])
  assert asked[0] == pytest.approx(session.score("abc", empty=True).log_prob, abs=1e-3)
  with pytest.raises(InputError, match="text is generated with the memory"):
    scorer.generate([text], {})


def test_a_text_begins_with_bos_once_or_not_at_all(infini):
  with_bos, without = Scorer(infini.run), Scorer(infini.run, bos=False)
  name = next(n for n, id in ByteTokenizer().special.items() if id == 256)
  assert with_bos.encode("ab") == [256, 97, 98] == without.encode("ab", bos=True)
  assert without.encode("ab") == [97, 98] == with_bos.encode("ab", bos=False)
  assert with_bos.encode(name + "a") == [256, 97] == without.encode(name + "a")
  # Without bos and without a context, a continuation follows bos, as in other harnesses.
  (found,) = without.continuations([Continuation([], [97, 98])])
  assert found[0] == pytest.approx(plain(infini, [], [97, 98]).sum(), abs=1e-3)


def test_conversations_are_written_with_the_template(infini):
  run = infini.run._replace(tokenizer=ByteTokenizer())
  scorer = Scorer(run, template="plain")
  talk = [{"role": "user", "content": "Who?"}]
  text = scorer.render(talk)
  assert text.endswith("user:\nWho?\n\nassistant:\n")
  more = [*talk, {"role": "assistant", "content": "It is"}]
  assert scorer.render(more, ask=False) == text + "It is"
  assert "assistant" in scorer.template_text()
  with pytest.raises(InputError, match="comes with no chat template"):
    Scorer(run).render(talk)


def test_arguments_of_a_generation():
  assert arguments({"until": "a", "max_gen_toks": 3}) == (3, ["a"], {"temperature": 0, "top_p": 1})
  how = {"until": ["a", ""], "do_sample": True, "temperature": 0.5, "top_k": 4, "max_tokens": 9}
  assert arguments(how) == (9, ["a"], {"temperature": 0.5, "top_p": 1.0, "top_k": 4})
  assert arguments({"temperature": 0.7})[2]["temperature"] == 0.7
  assert arguments({"do_sample": False, "temperature": 0.7})[2]["temperature"] == 0
  for how, message in (
    ({"num_beams": 4}, r"generation argument num_beams=4: is not supported; leave it out"),
    ({"max_gen_toks": 0}, "max_gen_toks=0: must be at least 1"),
  ):
    with pytest.raises(InputError, match=message):
      arguments(how)


def test_wrong_models_are_refused():
  local = case_of("local")
  with pytest.raises(InputError, match="has no memory to hold empty"):
    Scorer(local.run, empty=True)
  with pytest.raises(InputError, match="batch_size=0: must be at least 1"):
    Scorer(local.run, lanes=0)
