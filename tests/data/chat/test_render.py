"""Templates are rendered as `transformers` does, in a sandbox; each failure is one line."""

import datetime

import pytest

from infini_jax.config import InputError
from infini_jax.data.chat.render import plain_tokens, render

MESSAGES = [{"role": "user", "content": "Who?"}]


def write(text, ask=False, date="", **tokens):
  return render(text, MESSAGES, ask=ask, tokens=tokens, date=date)


def test_blocks_leave_no_lines_and_no_indentation():
  text = "{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}\n"
  assert write(text) == "user\n"


def test_a_template_reads_messages_tokens_and_whether_an_answer_begins():
  text = "{{ bos_token }}{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}"
  assert write(text, bos_token="<s>") == "<s>Who?"
  assert write(text, ask=True, bos_token="<s>") == "<s>Who?>"
  assert write("{{ bos_token }}|{{ tools is none }}") == "|True"  # unknown names write nothing


def test_json_keeps_characters_that_html_replaces():
  assert write("{{ {'a': '<é>'} | tojson }}") == '{"a": "<é>"}'
  assert write("{{ {'b': 1} | tojson(indent=2) }}") == '{\n  "b": 1\n}'


def test_loops_can_be_left_and_generation_blocks_are_written_as_they_are():
  assert (
    write("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
  )
  assert write("a{% generation %}b{{ messages[0].role }}{% endgeneration %}c") == "abuserc"


def test_the_date_is_that_of_the_run_or_today():
  assert write("{{ strftime_now('%d %b %Y') }}", date="2026-01-31") == "31 Jan 2026"
  assert write("{{ strftime_now('%Y') }}") == str(datetime.date.today().year)


@pytest.mark.parametrize(
  "text, said",
  [
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ("{% if %}", "is not a Jinja template"),
    ("{{ messages.append(1) }}", "unsafe"),
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ("{{ messages[0].content + 1 }}", "concatenate"),
  ],
)
def test_a_template_that_fails_is_one_line(text, said):
  with pytest.raises(InputError, match=said) as error:
    write(text)
  assert "\n" not in str(error.value) and "choose another" in str(error.value)


def test_a_vocabulary_without_a_name_for_its_mark_is_refused():
  assert plain_tokens({3: "<s>"}, 3, 3) == {"bos_token": "<s>", "eos_token": "<s>"}
  with pytest.raises(InputError, match="no name for its mark 4"):
    plain_tokens({3: "<s>"}, 3, 4)
