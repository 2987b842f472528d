"""Prompts of published samples in the vocabulary of a run."""

import json

from infini_jax.data.tokenizers import ByteTokenizer
from infini_jax.tasks import Benchmark


def test_a_prompt_begins_with_bos_once_and_special_names_are_tokens(tmp_path):
  tokenizer = ByteTokenizer()
  name = next(n for n, id in tokenizer.special.items() if id == tokenizer.bos)
  rows = [{"input": text, "outputs": ["x"], "length": 9} for text in ("ab", f"{name}ab")]
  file = tmp_path / "vt.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  source = Benchmark(f"jsonl:{file}", "ruler", tokenizer)
  prompts = [source.prompt(sample).tolist() for sample in source.samples()]
  assert prompts == [[tokenizer.bos, 97, 98]] * 2
  assert source.runs == [("vt", 4096, 2)]
  other = Benchmark(f"jsonl:{file}", "ruler", tokenizer, limit=1)
  assert other.runs == [("vt", 4096, 1)] and other.fingerprint != source.fingerprint
