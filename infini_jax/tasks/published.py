"""Samples of published benchmarks, with the vocabulary of a run."""

from collections.abc import Iterator

import numpy as np

from infini_jax.data.sources.base import digest
from infini_jax.data.sources.published import BABILONG, RULER, Published, Sample
from infini_jax.data.tokenizers import Tokenizer

FORMS = {"ruler": RULER, "babilong": BABILONG}
PROMPT = "{input}\n\nQuestion: {question}\nAnswer:"  # of rows that keep the question apart


class Benchmark:
  """The samples of a benchmark.

  Args:
    spec: where they are: `Published`.
    name: ruler or babilong.
    tokenizer: the vocabulary of the run.
    limit: the most samples of a task and length; 0: all.

  Attributes:
    name: that of the benchmark.
    path: the spec.
    runs: consecutive samples of a task and length, and their number.
    tokens: the most tokens to write; 0: as the benchmark says.
    text: a short hash of all samples.
    fingerprint: a short hash of them and of the vocabulary.
  """

  def __init__(self, spec: str, name: str, tokenizer: Tokenizer, limit: int = 0):
    self._rows = Published(spec, FORMS[name], PROMPT, limit)
    self.name, self.path, self.tokenizer = name, spec, tokenizer
    self.runs, self.tokens, self.text = self._rows.runs, self._rows.tokens, self._rows.text
    self.fingerprint = digest([self.text, tokenizer.fingerprint])

  def samples(self) -> Iterator[Sample]:
    """Each sample in its order, read when it is needed."""
    return self._rows.samples()

  def prompt(self, sample: Sample) -> np.ndarray:
    """Its tokens, with bos in front; names of special tokens are tokens, for prompts have them."""
    ids = self.tokenizer.encode_marked(sample.text)
    begins = len(ids) and ids[0] == self.tokenizer.bos
    return ids if begins else np.append(np.int32(self.tokenizer.bos), ids).astype(np.int32)
