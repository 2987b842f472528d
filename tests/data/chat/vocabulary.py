"""A small vocabulary with special tokens, as a Hugging Face tokenizer.json."""

import json

from infini_jax.data import HuggingFaceTokenizer, Template

CHATML = (
  "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
  "'<|im_end|>' + '\n'}}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Earlier answers lose what stands before </think>, as in templates of models that reason.
FORGETS = (
  "{% for message in messages %}{% set text = message['content'] %}"
  "{% if message['role'] == 'assistant' and not loop.last %}"
  "{% set text = text.split('</think>')[-1] %}{% endif %}"
  "{{'<|im_start|>' + message['role'] + '\n' + text + '<|im_end|>\n'}}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def letters() -> dict[str, int]:
  """The characters that stand for bytes in byte-level BPE."""
  shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
  hidden = [b for b in range(256) if b not in shown]
  names = {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
  return {names[b]: b for b in range(256)}


def vocabulary(template: str | None = CHATML) -> HuggingFaceTokenizer:
  """Bytes, a token of two newlines, and the special tokens of ChatML."""
  names = letters() | {"\u010a\u010a": 256}
  level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
  special = {"<|endoftext|>": 257, "<|im_start|>": 258, "<|im_end|>": 259}
  flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
  content = {
    "version": "1.0",
    "added_tokens": [
      {"id": id, "content": name, "special": True, **flags} for name, id in special.items()
    ],
    "pre_tokenizer": {**level, "use_regex": False},
    "decoder": {**level, "use_regex": False},
    "model": {"type": "BPE", "vocab": names, "merges": ["\u010a \u010a"]},
  }
  made = HuggingFaceTokenizer(json.dumps(content).encode(), marks=(257, 257))
  if template is not None:
    made.template = Template({"default": template}, {"eos_token": "<|endoftext|>"})
  return made


def user(text: str) -> dict[str, str]:
  return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
  return {"role": "assistant", "content": text}
