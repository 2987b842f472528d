"""Conversations are read from JSON lines and Parquet; an error names the file and the line."""

import datetime
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from infini_jax.config import InputError
from infini_jax.data.sources.conversations import open_conversations

ROW = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}]}
PAIR = {"prompt": "Who?", "completion": "Ann."}


def write(file, rows):
  lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
  file.write_text("".join(f"{line}\n" for line in lines))
  return f"jsonl:{file}"


def read(spec):
  corpus = open_conversations(spec, train=False)
  records = [record for part in corpus.parts for record in part.read(corpus.skips)]
  return [(record.name, json.loads(record.text)) for record in records]


def test_messages_and_pairs_become_messages(tmp_path):
  spec = write(tmp_path / "train.jsonl", [ROW, "", ROW])
  assert read(spec) == [
    ("train.jsonl, line 1", ROW["messages"]),
    ("train.jsonl, line 3", ROW["messages"]),
  ]
  spec = write(tmp_path / "b.jsonl", [PAIR])
  assert read(spec) == [("b.jsonl, line 1", ROW["messages"])]


def test_options_name_the_fields(tmp_path):
  row = {"talk": ROW["messages"], "question": "Who?", "answer": "Ann.", **PAIR, "prompt": "no"}
  spec = write(tmp_path / "train.jsonl", [row])
  assert read(f"{spec}?messages=talk") == read(f"{spec}?prompt=question&completion=answer")


def test_parquet_gives_the_same(tmp_path):
  file = tmp_path / "train.parquet"
  pyarrow.parquet.write_table(pa.Table.from_pylist([ROW, ROW]), file)
  assert [messages for _, messages in read(f"parquet:{file}")] == [ROW["messages"]] * 2


def test_columns_that_are_no_text_are_refused_and_not_converted(tmp_path):
  day = datetime.datetime(2026, 1, 31)
  for name, rows, said in (
    ("a", [PAIR | {"prompt": day}], r"a.parquet:0: field 'prompt' is not text \(datetime\)"),
    ("b", [PAIR | {"completion": b"Ann."}], r"field 'completion' is not text \(bytes\)"),
    ("c", [{"messages": [{"role": "user", "content": day}]}], "field 'messages': .*datetime is no"),
  ):
    file = tmp_path / f"{name}.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file)
    with pytest.raises(InputError, match=said):
      read(f"parquet:{file}")


def test_a_byte_order_mark_and_other_ends_of_lines_are_read(tmp_path):
  file = tmp_path / "train.jsonl"
  file.write_bytes(b"\xef\xbb\xbf" + f"{json.dumps(PAIR)}\r\n".encode() * 2)
  assert [messages for _, messages in read(f"jsonl:{file}")] == [ROW["messages"]] * 2
  file.write_bytes(json.dumps(PAIR).encode("utf-16"))
  with pytest.raises(InputError, match=r"is not UTF-8 text \(byte 0\); save the file as UTF-8"):
    read(f"jsonl:{file}")


def test_files_named_for_a_split_belong_to_it(tmp_path):
  for split in ("train", "validation", "test"):
    write(tmp_path / f"qa-{split}.jsonl", [ROW] * 2)
  corpus = open_conversations(f"jsonl:{tmp_path}/*.jsonl")
  assert (
    sorted(r.split for p in corpus.parts for r in p.read())
    == ["test"] * 2 + ["train"] * 2 + ["validation"] * 2
  )


@pytest.mark.parametrize(
  "rows, said",
  [
    ([ROW, {"text": "x"}], "train.jsonl, line 2: has no field 'messages', only text; complete"),
    ([ROW, {"messages": None}], "line 2: field 'messages' is null; complete the row"),
    ([ROW, "{oops"], "train.jsonl, line 2: the line there is not JSON"),
    ([PAIR, {"prompt": "x"}], "line 2: has no field 'completion', only prompt"),
    ([PAIR, {**PAIR, "prompt": 3}], r"line 2: field 'prompt' is not text \(int\); give a text"),
  ],
)
def test_a_row_without_its_fields_is_named_by_its_line(tmp_path, rows, said):
  spec = write(tmp_path / "train.jsonl", rows)
  with pytest.raises(InputError, match=said):
    read(spec)
  assert len(read(f"{spec}?bad=skip")) == 1


@pytest.mark.parametrize(
  "spec, said",
  [
    ("jsonl:{}", "has no field 'prompt'; name one of text with [?]messages=FIELD, or two with"),
    ("jsonl:{}?messages=talk", "has no field 'talk'"),
    ("jsonl:{}?text=text", "option 'text=text' is not one of"),
    ("tfds:c4", "are read from jsonl:FILES or parquet:FILES"),
    ("{}", "are read from jsonl:FILES"),
  ],
)
def test_a_corpus_without_conversations_is_refused(tmp_path, spec, said):
  write(tmp_path / "train.jsonl", [{"text": "x"}])
  with pytest.raises(InputError, match=said):
    open_conversations(spec.format(tmp_path / "train.jsonl"))
