"""Only what the assistant says counts, in the tokens in which the model will be asked."""

import numpy as np
import pytest

from infini_jax.config import InputError
from infini_jax.data import Template
from infini_jax.data.chat.conversation import Chat, open_chat
from infini_jax.data.tokenizers import ByteTokenizer
from tests.data.chat.vocabulary import CHATML, FORGETS, assistant, user, vocabulary

END = 259


def chat_of(template=CHATML):
  tokenizer = vocabulary(template)
  return Chat(tokenizer, tokenizer.template)


def said(chat, talk):
  """What the assistant says, in text and with the token that ends it."""
  names = {id: name for name, id in chat.tokenizer.special.items()}
  parts = [names.get(int(id)) or chat.tokenizer.decode([id]) for id in talk.ids[talk.said]]
  return "".join(parts)


def test_only_answers_and_the_token_that_ends_them_count():
  chat = chat_of()
  messages = [user("One?"), assistant("First"), user("Two?"), assistant("Second")]
  (talk,) = chat.talks(messages)
  assert said(chat, talk) == "First<|im_end|>Second<|im_end|>"
  assert np.array_equal(talk.ids, chat.encode(chat.render(messages).rstrip("\n")))
  assert chat.end == END


def test_what_follows_the_last_answer_is_not_read():
  chat = chat_of()
  short = chat.talks([user("One?"), assistant("First")])
  (talk,) = chat.talks([user("One?"), assistant("First"), user("Two?")])
  assert np.array_equal(talk.ids, short[0].ids) and np.array_equal(talk.said, short[0].said)


def test_random_conversations_count_what_they_say(rng):
  chat, text = chat_of(), lambda: "".join(rng.choice(list("ab \n.é"), rng.integers(1, 12)))
  for _ in range(30):
    messages = []
    for _ in range(rng.integers(1, 4)):
      messages += [user(text()), assistant("x" + text())]
    (talk,) = chat.talks(messages)
    answers = [m["content"] + "<|im_end|>" for m in messages[1::2]]
    told = chat.tokenizer.decode(talk.ids[talk.said])
    assert told == "".join(answers).replace("<|im_end|>", "")
    assert int((talk.ids[talk.said] == END).sum()) == len(answers)
    for i in range(1, len(messages), 2):  # the question as it will be asked is its beginning
      prompt = chat.encode(chat.render(messages[:i], ask=True))
      assert np.array_equal(talk.ids[: len(prompt)], prompt) and talk.said[len(prompt)]


def test_a_token_that_would_cross_into_the_answer_is_divided():
  """The template ends a question with a newline, and two newlines are one token."""
  chat = chat_of()
  (talk,) = chat.talks([user("One?"), assistant("\nFirst")])
  prompt = chat.encode(chat.render([user("One?")], ask=True))
  assert np.array_equal(talk.ids[: len(prompt)], prompt)
  assert said(chat, talk) == "\nFirst<|im_end|>"


def test_a_template_that_changes_earlier_answers_gives_one_conversation_for_each():
  chat = chat_of(FORGETS)
  messages = [user("One?"), assistant("a</think>First"), user("Two?"), assistant("b</think>Second")]
  one, two = chat.talks(messages)
  assert said(chat, one) == "a</think>First<|im_end|>"
  assert said(chat, two) == "b</think>Second<|im_end|>"
  assert "a</think>" not in chat.tokenizer.decode(two.ids)


def test_a_template_that_always_begins_an_answer_ends_the_one_before():
  always = CHATML.replace("{% if add_generation_prompt %}", "{% if true %}")
  chat = chat_of(always)
  assert chat.end == END
  talks = chat.talks([user("One?"), assistant("First"), user("Two?"), assistant("Second")])
  assert [said(chat, talk) for talk in talks] == ["First<|im_end|>Second<|im_end|>"]


def test_a_question_that_is_not_the_beginning_of_its_answer_is_refused():
  thinks = CHATML.replace("assistant\n' }}", "assistant\n<think>' }}")
  with pytest.raises(InputError, match="not the beginning"):
    chat_of(thinks).talks([user("One?"), assistant("First")])


def test_a_template_that_nothing_ends_is_refused():
  endless = CHATML.replace("'<|im_end|>' + ", "")
  with pytest.raises(InputError, match="no special token, so nothing would stop"):
    chat_of(endless).end  # noqa: B018


@pytest.mark.parametrize(
  "messages, said",
  [
    ("hello", "not a list"),
    ([], "messages: the list is empty"),
    ([{**user("Who?"), "name": "<|im_end|>"}], "message 1: holds '<|im_end|>', a special token"),
    ([{**user("Who?"), "calls": [{"<|im_end|>": 1}]}], "message 1: holds '<|im_end|>'"),
    ([user("One?"), "First"], "message 2: no object"),
    ([{"role": "bot", "content": "x"}], "message 1: unknown role 'bot'; choose one of system"),
    ([user("One?"), assistant(" \n")], "message 2: the answer is empty"),
    ([user("One?"), {"role": "assistant"}], r"message 2: its content is not text \(missing\)"),
    ([user(3)], r"not text \(int\)"),
    ([user("a <|im_end|> b")], "holds '<|im_end|>', a special token"),
  ],
)
def test_wrong_messages_are_refused(messages, said):
  with pytest.raises(InputError, match=said.replace("|", r"\|")):
    chat_of().check(messages)


def test_an_answer_that_is_not_taught_may_be_empty():
  messages = [user("One?"), assistant(" \n"), user("Two?")]
  assert chat_of().check(messages, taught=False) == messages


def test_empty_fields_of_messages_are_left_out_and_others_kept():
  given = {**user("One?"), "tool_calls": None, "name": "Ann"}
  assert chat_of().check([given]) == [{**user("One?"), "name": "Ann"}]


def test_the_plain_template_serves_a_vocabulary_of_bytes():
  chat = open_chat(ByteTokenizer(), "plain", "2026-01-01")
  messages = [{"role": "system", "content": "Be brief."}, user("One?"), assistant("First")]
  assert chat.render(messages) == (
    "<|document|>system:\nBe brief.\n\nuser:\nOne?\n\nassistant:\nFirst<|document|>\n\n"
  )
  (talk,) = chat.talks(messages)
  assert said(chat, talk) == "First<|document|>" and talk.ids[0] == ByteTokenizer.bos


def test_a_config_names_the_template(tmp_path):
  file = tmp_path / "chat.jinja"
  file.write_text(CHATML)
  own = vocabulary(FORGETS)
  assert open_chat(own).template.texts == {"default": FORGETS}
  assert open_chat(own, f"file:{file}").template.texts == {"default": CHATML}
  assert open_chat(own, CHATML).template.texts == {"default": CHATML}
  own.template = Template({"default": CHATML, "rag": FORGETS}, {})
  assert open_chat(own, "own:rag").template.texts == {"default": FORGETS}
  for spec, wrong in (
    ("own:none", "no template 'none'; choose one of own:default, own:rag"),
    ("file:none.jinja", "No such file"),
    ("chatml", "choose own, own:NAME, plain"),
  ):
    with pytest.raises(InputError, match=wrong):
      open_chat(own, spec)
  with pytest.raises(InputError, match="comes with no chat template; set config.chat.template"):
    open_chat(vocabulary(None))


def test_a_run_keeps_the_template_that_it_was_taught_with(tmp_path):
  file = tmp_path / "chat.jinja"
  file.write_text(CHATML)
  tokenizer, spec = vocabulary(FORGETS), f"file:{file}"
  tokenizer.template = open_chat(tokenizer, spec, "2026-01-01").template
  for again in (spec, "own"):
    assert open_chat(tokenizer, again, "2027-01-01").template == tokenizer.template
  file.unlink()
  assert open_chat(tokenizer, spec).template == tokenizer.template
  file.write_text(FORGETS)
  with pytest.raises(InputError, match="the file has changed"):
    open_chat(tokenizer, spec)
