"""Chat templates in Jinja, rendered as `transformers` renders them: the only file that uses jinja2.

A template comes with a model from anywhere, so it runs in a sandbox: it can change nothing and call
nothing but what is given to it.
"""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from infini_jax.config import InputError
from infini_jax.data.tokenizers.failing import one_line

Message = Mapping[str, Any]  # with `role` and `content`

# Named in a config as `plain`. It needs no special token but the mark that ends a document.
PLAIN = """
{{- bos_token }}
{%- for message in messages %}
  {{- message['role'] + ':\n' + message['content'] }}
  {%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}
  {{- '\n\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"""


def render(
  text: str,
  messages: Sequence[Message],
  *,
  ask: bool,
  tokens: Mapping[str, str],
  date: str = "",
  name: str = "the chat template",
) -> str:
  """The text of a conversation.

  Args:
    text: the template.
    messages: the messages.
    ask: whether the text ends with the beginning of an answer (`add_generation_prompt`).
    tokens: the names of special tokens, by their role, such as `eos_token`.
    date: what `strftime_now` calls now, YYYY-MM-DD; empty: the time of the clock.
    name: the name of the template, for errors.

  Raises:
    InputError: the template is no Jinja, or refuses these messages.
  """
  template = _compiled(text, name)
  day = datetime.datetime.fromisoformat(date) if date else datetime.datetime.now()
  with one_line(f"{name}: fails", "correct the messages, or choose another config.chat.template"):
    return template.render(
      messages=[dict(message) for message in messages],
      tools=None,
      documents=None,
      add_generation_prompt=ask,
      strftime_now=day.strftime,
      **tokens,
    )


@functools.lru_cache(64)
def _compiled(text: str, name: str) -> Any:
  environment = _environment()
  with one_line(f"{name}: is not a Jinja template", "correct it, or choose another"):
    return environment.from_string(text)


@functools.lru_cache(1)
def _environment() -> Any:
  import jinja2
  import jinja2.ext
  from jinja2 import nodes
  from jinja2.sandbox import ImmutableSandboxedEnvironment

  class Generation(jinja2.ext.Extension):
    """The block `{% generation %}`, which marks what a model says: its body is written as it is."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
      """The body of the block."""
      line = next(parser.stream).lineno
      body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
      return nodes.Scope(body, lineno=line)

  def refuse(message: str) -> None:
    raise jinja2.TemplateError(message)

  def tojson(value: Any, **how: Any) -> str:
    # Jinja's own filter replaces characters that have a meaning in HTML.
    known = {"ensure_ascii", "indent", "separators", "sort_keys"}
    return json.dumps(value, **{"ensure_ascii": False} | {k: how[k] for k in known & how.keys()})

  made = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
  )
  made.filters["tojson"] = tojson
  made.globals["raise_exception"] = refuse
  return made


def plain_tokens(names: Mapping[int, str], bos: int, eos: int) -> dict[str, str]:
  """The names of a vocabulary's marks, as a template calls them.

  Args:
    names: the name of each special token.
    bos: the id that begins a document.
    eos: the id that ends it.

  Raises:
    InputError: a mark has no name.
  """
  if missing := {bos, eos} - names.keys():
    raise InputError(f"the vocabulary has no name for its mark {min(missing)}; choose another")
  return {"bos_token": names[bos], "eos_token": names[eos]}
