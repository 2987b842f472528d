"""From files of text to batches: sources, tokenizers, the token store, lanes, the loader.

`prepare` converts a corpus to a `Store` once. `TrainLanes` and `EvalLanes` define which tokens are
where in which batch. `loader.train_batches` reads batches ahead. No module here depends on a model.
"""

from infini_jax.data.lanes.documents import EvalLanes, TrainLanes
from infini_jax.data.lanes.loader import eval_batches, train_batches
from infini_jax.data.sources import (
  Corpus,
  CorpusPart,
  Document,
  Record,
  list_documents,
  open_corpus,
  read_text,
)
from infini_jax.data.store.beam import prepare_with_beam
from infini_jax.data.store.parts import join_parts, prepare_part
from infini_jax.data.store.prepare import open_or_prepare, open_prepared, prepare
from infini_jax.data.store.store import Documents, Store
from infini_jax.data.tokenizers import (
  HuggingFaceTokenizer,
  SentencePieceTokenizer,
  Template,
  Tokenizer,
  encode_named,
  find_template,
  is_saved,
  load_saved,
  load_tokenizer,
  sentencepiece_model,
  text_of,
  train_sentencepiece,
)

__all__ = [
  "Corpus",
  "CorpusPart",
  "Document",
  "Documents",
  "EvalLanes",
  "HuggingFaceTokenizer",
  "Record",
  "SentencePieceTokenizer",
  "Store",
  "Template",
  "Tokenizer",
  "TrainLanes",
  "encode_named",
  "eval_batches",
  "find_template",
  "is_saved",
  "join_parts",
  "list_documents",
  "load_saved",
  "load_tokenizer",
  "open_corpus",
  "open_or_prepare",
  "open_prepared",
  "prepare",
  "prepare_part",
  "prepare_with_beam",
  "read_text",
  "sentencepiece_model",
  "text_of",
  "train_batches",
  "train_sentencepiece",
]
