"""How to use what `export` and `adapter` write: the first section of the card next to it."""

import dataclasses
import math

from infini_jax.config import ModelConfig
from infini_jax.convert.layout import parameter_shapes
from infini_jax.data.tokenizers import ByteTokenizer, Tokenizer, WordTokenizer
from infini_jax.report.card import FILE, card

__all__ = ["FILE", "of_adapter", "of_export"]

LOAD = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER"{more})
model = AutoModelForCausalLM.from_pretrained("FOLDER"{more})
```"""
ALONE = """```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("FOLDER"{more})
```

transformers has no tokenizer of this vocabulary: {kind}"""
KINDS = {  # of vocabularies that transformers cannot load
  ByteTokenizer: """token i is the byte i of a text in UTF-8, and 256 begins and ends a document:
`ids = torch.tensor([[256, *text.encode()]])`.""",
  WordTokenizer: """a text is cut into the words of `tokenizer.words.json`, the longest that
fits first; their tokens are 2, 3, ... in the order of the file, 0 begins and ends a document, and 1
is any other character.""",
}
WITH = """It reads a text of any length once, in constant memory, and then answers any number of
questions:

```python
book = model.read({text})
ids = {question}
print({answer})
```

`model.load_state(FILE)` loads a state that `infini_jax` saved. The code is `modeling_infini.py`."""
WITHOUT = """This is the model without its memory: transformers attends to the whole text. The
figures below are those of the run with the memory, which `infini-jax convert hf FOLDER RUN`
restores."""
ADAPT = """It holds what training added to the original, and no parameter of the original itself:

    infini-jax convert adapt ORIGINAL RUN --adapter=FOLDER"""


# What the example reads, as transformers encodes it; a question begins no document.
ENCODED = {
  "text": 'tokenizer(text, return_tensors="pt").input_ids',
  "question": 'tokenizer(question, add_special_tokens=False, return_tensors="pt").input_ids',
}
CALL = "model.generate(ids, cache=book.fork(), max_new_tokens=50)[0]"


def of_export(path: str, step: int, model: ModelConfig, memory: bool, tokenizer: Tokenizer) -> str:
  """The card of an export.

  Args:
    path: the folder of the run.
    step: the step whose parameters are exported.
    model: the config of the model.
    memory: whether the memory is exported as code that transformers runs.
    tokenizer: the vocabulary.

  Raises:
    InputError: a file of the run cannot be read.
  """
  more = ", trust_remote_code=True" if memory else ""
  kind = KINDS.get(type(tokenizer))
  parts = {name: f"{name}_ids" for name in ENCODED} if kind else ENCODED
  reads = WITH.format(**parts, answer=CALL if kind else f"tokenizer.decode({CALL})")
  after = reads if memory else "" if model.is_plain else WITHOUT
  whole = dataclasses.replace(model, adapters=dataclasses.replace(model.adapters, rank=0))
  count = sum(math.prod(shape) for shape in parameter_shapes(whole).values())
  size = f"The model has {count:,} parameters."
  return card(
    path,
    _use(step, (ALONE if kind else LOAD).format(more=more, kind=kind), after, size),
    "transformers",
  )


def of_adapter(path: str, step: int) -> str:
  """The card of an adapter; arguments and errors as of `of_export`."""
  return card(path, _use(step, ADAPT))


def _use(step: int, *parts: str) -> str:
  whose = f"The parameters are those of step {step:,} of the run."
  return "\n\n".join(filter(None, ["## Use", *parts, whose]))
