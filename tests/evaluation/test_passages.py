"""Passages and words where the memory helps, compared with plain loops; and the page of them."""

import numpy as np
import pytest

from infini_jax.data.tokenizers import ByteTokenizer
from infini_jax.evaluation import text_page
from infini_jax.evaluation.passages import (
  HARMED,
  OF_ONE,
  SHOWN,
  WIDTH,
  Losses,
  passages,
  shares_seen,
  words,
)

N = 16
TOKENIZER = ByteTokenizer()


def losses(rng, *texts):
  """Documents, and the loss of each token with the memory and with the memory held empty."""
  ids = {d: TOKENIZER.encode(text) for d, text in enumerate(texts)}
  names = {d: f"<{d}>.txt" for d in ids}
  draw = lambda: {d: rng.gamma(2.0, 1.0, len(x)).astype(np.float32) for d, x in ids.items()}
  return (Losses(names, ids, draw(), TOKENIZER) for _ in range(2))


def text_of(rng, size):
  return "".join(rng.choice(list("ab c\u00e9\U0001f642\n"), size))


def test_the_most_helped_passages_come_first_and_none_overlap(rng):
  memory, empty = losses(rng, text_of(rng, 3000), text_of(rng, 40), text_of(rng, 2000))
  helped, harmed = passages(memory, empty)
  assert 0 < len(helped) <= SHOWN and 0 < len(harmed) <= HARMED
  for some, sign in ((helped, 1), (harmed, -1)):
    saved = [sign * p.saved for p in some]
    assert saved == sorted(saved, reverse=True) and min(saved) > 0
    for i, one in enumerate(some):
      cost = empty.nats[one.document] - memory.nats[one.document]
      np.testing.assert_allclose(one.saved, cost[one.start : one.stop].sum(), rtol=1e-3, atol=1e-3)
      assert one.stop - one.start <= WIDTH
      same = [p for p in some[:i] if p.document == one.document]
      assert len(same) < OF_ONE and all(one.stop <= p.start or p.stop <= one.start for p in same)


def test_words_are_the_text_and_know_their_earlier_places(rng):
  memory, empty = losses(rng, text_of(rng, 400))
  ids = memory.ids[0]
  helped, harmed = passages(memory, empty)
  for passage in helped + harmed:
    found = words(passage, memory, empty, N)
    assert [w.start for w in found] == [passage.start, *(w.stop for w in found[:-1])]
    assert found[-1].stop == passage.stop
    whole = TOKENIZER.decode(ids[: passage.stop])
    assert whole.endswith("".join(w.text for w in found)) or "\ufffd" in found[0].text
    assert abs(sum(w.saved for w in found) - passage.saved) < 1e-3
    for word in found:
      part = ids[word.start : word.stop].tolist()
      begin = word.start // N * N
      places = [i for i in range(begin - len(part) + 1) if ids[i : i + len(part)].tolist() == part]
      if word.text.strip():
        assert word.before == len(places)
        assert word.distance == (word.start - places[-1] if places else 0)


def test_shares_are_of_tokens_that_stand_in_an_earlier_segment(rng):
  memory, empty = losses(rng, text_of(rng, 300), text_of(rng, 50))
  seen = {True: [], False: []}
  for d, ids in memory.ids.items():
    for i in range(N, len(ids)):
      like = ids[i] in ids[: i // N * N]
      seen[bool(empty.nats[d][i] - memory.nats[d][i] > 1)].append(like)
  helped, of_all = shares_seen(memory, empty, N)
  assert helped == pytest.approx(np.mean(seen[True]))
  assert of_all == pytest.approx(np.mean(seen[True] + seen[False]))


def test_the_page_colours_every_word_and_escapes_the_text(rng, tmp_path):
  memory, empty = losses(rng, "one <b>two</b> & three. " * 40)
  results = {"segment_length": N, "corpus": {"name": "a&b"}, "split": "test", "step": 7}
  text_page.write(memory, empty, results, tmp_path / "text.html")
  page = (tmp_path / "text.html").read_text("utf-8")
  assert page.startswith("<!DOCTYPE html>") and "&lt;b&gt;two&lt;/b&gt;" in page
  assert "<b>two" not in page and "a&amp;b, test; step 7" in page and "&lt;0&gt;.txt" in page
  assert all(page.count(f"rgba({color}") > 20 for color in (text_page.SAVED, text_page.LOST))
  assert "times before, last" in page and "tokens since the last" in page
