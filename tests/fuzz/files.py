"""Damaged files: a reader says in one line what is wrong, or reads what is still right."""

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infini_jax.config import Config, InputError
from infini_jax.convert import gguf, huggingface
from infini_jax.data import Store, load_tokenizer
from infini_jax.data.sources import open_corpus
from infini_jax.data.sources.conversations import open_conversations
from infini_jax.data.tokenizers import ByteTokenizer
from infini_jax.inference import Session
from infini_jax.models import abstract_params
from infini_jax.parallel import make_mesh
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import Workdir
from infini_jax.tasks.chat import read_conversations
from infini_jax.tasks.published import Benchmark
from infini_jax.training.loop import train
from tests.convert import gguf_files, golden
from tests.tiny import config, quiet, write_corpus

ROOM = 64 << 20  # bytes that reading may take beside twice the size of the file


class Target(NamedTuple):
  """A folder or a file, and what reads it."""

  path: Path
  read: Callable[[Path, Path], Any]  # (the damaged copy, an empty folder)


def case(rng: np.random.Generator, folder: Path) -> str:
  """Damages one file of a copy, and reads it."""
  targets = _targets(folder)
  name = str(rng.choice(list(targets)))
  target, place = targets[name], folder / "case"
  shutil.rmtree(place, ignore_errors=True)
  place.mkdir()
  copy = place / target.path.name
  if target.path.is_dir():
    shutil.copytree(target.path, copy, symlinks=True)
    files = sorted(file for file in copy.rglob("*") if file.is_file())
    damaged = files[rng.integers(len(files))]
  else:
    shutil.copy(target.path, copy)
    damaged = copy
  whole = damaged.read_bytes()
  damaged.write_bytes(mutated(rng, whole))
  tracemalloc.start()
  try:
    target.read(copy, place / "out")
    outcome = "read"
  except InputError as error:
    assert "\n" not in str(error), f"{name}, {damaged.name}: several lines: {error}"
    outcome = "refused"
  finally:
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
  size = sum(f.stat().st_size for f in copy.rglob("*") if f.is_file()) or len(whole)
  assert peak < 2 * size + ROOM, f"{name}, {damaged.name}: {peak:,} bytes to read {size:,}"
  return f"{name}, {outcome}"


def mutated(rng: np.random.Generator, data: bytes) -> bytes:
  """Bytes with one to three changes; of JSON often with another value in one place."""
  if data[:1] in (b"{", b"[") and rng.random() < 0.6:
    try:
      return json.dumps(other_json(rng, json.loads(data))).encode()
    except ValueError:
      pass
  for _ in range(rng.integers(1, 4)):
    at = int(rng.integers(len(data) + 1))
    # Headers are short: half of the changes are in the first bytes.
    at = min(at, int(rng.integers(2048))) if rng.random() < 0.5 else at
    size = int(rng.integers(1, 16))
    some = rng.bytes(size)
    extreme = [b"\0" * 8, b"\xff" * 8, b"\x7f" * 4, b"\xff" * 7 + b"\x7f"][rng.integers(4)]
    data = [
      data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
      if at < len(data)
      else data,
      data[:at],
      data[:at] + some + data[at:],
      data[:at] + some + data[at + size :],
      data[:at] + extreme + data[at + len(extreme) :],
      data[:at] + data[at + size :],
      data + some,
    ][rng.integers(7)]
  return data


VALUES = (None, True, -1, 0, 1, 2**31, 2**70, 1e308, float("nan"), "", "a", "\0", "../x", [], {})


def other_json(rng: np.random.Generator, value: Any) -> Any:
  """A copy with another value, a missing one or one too many at a random place."""
  if isinstance(value, dict) and value and rng.random() < 0.9:
    key = list(value)[rng.integers(len(value))]
    if rng.random() < 0.1:
      return {k: v for k, v in value.items() if k != key}
    if rng.random() < 0.05:
      return value | {str(key) + "2": value[key]}
    return value | {key: other_json(rng, value[key])}
  if isinstance(value, list) and value and rng.random() < 0.9:
    i = int(rng.integers(len(value)))
    if rng.random() < 0.2:
      return value[:i] + value[i + 1 :]
    return [*value[:i], other_json(rng, value[i]), *value[i + 1 :]]
  return VALUES[rng.integers(len(VALUES))]


_made: dict[Path, dict[str, Target]] = {}


def _targets(folder: Path) -> dict[str, Target]:
  """All targets; made once."""
  if folder in _made:
    return _made[folder]
  root = folder / "targets"
  root.mkdir()
  rng = np.random.default_rng(0)
  texts = write_corpus(root / "texts")
  small = config(texts, mesh={"data": len(jax.devices())})
  train(small, root / "run", quiet())
  session = Session.load(root / "run")
  session.read("What was read before.")
  session.save(root / "a.state")
  gguf_files.write(root / "a.gguf", rng)
  golden.write_tokenizer(root)
  (root / "rows").mkdir()
  rows = [json.dumps({"text": f"text {i}"}) for i in range(50)]
  (root / "rows" / "a.jsonl").write_text("\n".join(rows))

  _older(root / "run", root / "older" / "run")
  _rows(root)

  def vocabulary(file: Path, out: Path) -> None:
    tokenizer = load_tokenizer(f"huggingface:{file}")
    tokenizer.decode(tokenizer.encode("the other thé 1234\n"))

  _made[folder] = {
    "model folder": Target(
      golden.HERE / "qwen2", lambda path, out: huggingface.convert(str(path), out, None, quiet())
    ),
    "gguf": Target(root / "a.gguf", lambda path, out: gguf.convert(path, out, None, quiet())),
    "state": Target(root / "a.state", lambda path, out: Session.load(path, model=session)),
    "run": Target(root / "run", lambda path, out: _restored(path, small)),
    "store": Target(root / "run" / "store", lambda path, out: _read(Store.open(path))),
    "tokenizer.json": Target(root / "tokenizer.json", vocabulary),
    "jsonl": Target(
      root / "rows",
      lambda path, out: [list(p.read()) for p in open_corpus(f"jsonl:{path}", False).parts],
    ),
    "older run": Target(root / "older" / "run", lambda path, out: _restored(path, small)),
    "older store": Target(
      root / "older" / "run" / "store", lambda path, out: _read(Store.open(path))
    ),
    "parquet": Target(
      root / "table",
      lambda path, out: [list(p.read()) for p in open_corpus(f"parquet:{path}", False).parts],
    ),
    "chat": Target(root / "talks", lambda path, out: _talk(f"jsonl:{path}")),
    "chat in parquet": Target(root / "talk-table", lambda path, out: _talk(f"parquet:{path}")),
    "ruler": Target(root / "4096", lambda path, out: _ask(f"jsonl:{path}", "ruler")),
    "babilong": Target(root / "4k", lambda path, out: _ask(f"jsonl:{path}", "babilong")),
  }
  return _made[folder]


def _older(run: Path, out: Path) -> None:
  """A copy of a run as an older program wrote it: without digests and hashes."""
  shutil.copytree(run, out)
  for file in out.rglob("*.json"):
    if file.name == "digests.json":
      file.unlink()
    elif file.name in ("run.json", "store.json"):
      content = json.loads(file.read_text())
      assert content.pop("sha256")
      file.write_text(json.dumps(content))


def _rows(root: Path) -> None:
  """Files of rows: texts, conversations and published tasks, as JSON lines and in Parquet."""
  talks = [
    [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": f"It is {i}."}]
    for i in range(20)
  ]
  keys = {"input": "A text. What is the key?", "outputs": ["1234"], "length": 4000}
  where = {"input": "Mary went to the hall.", "question": "Where is Mary?", "target": "hall"}
  lines = {
    "talks/a.jsonl": [{"messages": talk} for talk in talks],
    "4096/niah_single_1/validation.jsonl": [keys] * 9,
    "4k/qa1.jsonl": [where] * 9,
  }
  for name, rows in lines.items():
    (root / name).parent.mkdir(parents=True)
    (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
  for name, column in (("table", "text"), ("talk-table", "messages")):
    values = [f"text {i}" for i in range(50)] if column == "text" else talks
    (root / name).mkdir()
    pq.write_table(pa.table({column: values}), root / name / "a.parquet")


def _talk(spec: str) -> None:
  """All conversations of a corpus, in tokens."""
  chats = config("chats", task={"name": "chat"}, chat={"template": "plain"})
  read_conversations(chats, open_conversations(spec, False), ByteTokenizer(), ("all",), str)


def _ask(spec: str, name: str) -> None:
  """All prompts of a published task."""
  source = Benchmark(spec, name, ByteTokenizer())
  for sample in source.samples():
    source.prompt(sample)


def _restored(path: Path, small: Config) -> None:
  """The parameters of a run, if its config is still the one that it had."""
  run = Workdir(path)
  found = run.config()
  run.load_tokenizer()
  if found.model != small.model:
    return
  mesh = make_mesh(found.mesh)
  with jax.set_mesh(mesh), Checkpoints(run) as saved:
    saved.restore_params(abstract_params(found.model, mesh))


def _read(store: Store) -> None:
  """All tokens of a store."""
  store.tokenizer.decode([1, 2, 3])
  for split in store.splits:
    documents = store.split(split)
    for document in range(len(documents)):
      documents.read(document, 0, int(documents.tokens[document]))
