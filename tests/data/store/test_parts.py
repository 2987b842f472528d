import json
import shutil
import signal
import subprocess
import sys

import pytest

from infini_jax import cli
from infini_jax.config import InputError
from infini_jax.data import Store, join_parts, prepare, prepare_part
from infini_jax.data.sources import base, open_corpus
from infini_jax.data.store import parts
from tests.data.store.test_prepare import files


@pytest.fixture(autouse=True)
def many_pieces(monkeypatch):
  """A small corpus has many pieces of work."""
  monkeypatch.setattr(base, "SMALLEST", 1500)


def write_rows(file, documents=120):
  """Documents with summaries; some are empty, some short, some are no text."""
  rows = [{"text": f"document {i} " * (i % 7), "sum": f"of {i}"} for i in range(documents)]
  rows[2 * documents // 3]["text"] = 5
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return f"jsonl:{file}?summary=sum&bad=skip"


@pytest.fixture
def rows(tmp_path):
  return write_rows(tmp_path / "all.jsonl")


@pytest.mark.parametrize(
  "documents, of, tokenizer",
  [(120, 1, "bytes"), (120, 4, "bytes"), (120, 4, "train:300"), (6, 9, "bytes")],
)
def test_joined_parts_are_the_store_of_one_machine(tmp_path, quiet, rng, documents, of, tokenizer):
  spec = write_rows(tmp_path / "all.jsonl", documents)
  prepare(spec, tmp_path / "one", tokenizer, None, 14, quiet)
  order = [1, *(rng.permutation(of - 1) + 2).tolist()]
  for number in order:
    prepare_part(f"{number}/{of}", spec, tmp_path / "out", tokenizer, None, 14, quiet)
  store = join_parts(spec, tmp_path / "out", tokenizer, 14, quiet)
  assert files(tmp_path / "out") == files(tmp_path / "one")
  left_out = store.splits["train"]
  assert min(left_out[kind] for kind in ("empty", "short", "bad")) > 0
  assert len(open_corpus(spec).parts) > (1 if documents > 6 else 0)


def test_folders_of_machines_without_a_common_disk_are_copied_into_one(tmp_path, rows, quiet):
  prepare_part("1/3", rows, tmp_path / "1", "train:300", console=quiet)
  for number in (2, 3):
    out = tmp_path / str(number)
    with pytest.raises(InputError, match="no vocabulary .*start --part=1/3 first.*copy that"):
      prepare_part(f"{number}/3", rows, out, "train:300", console=quiet)
    shutil.copytree(tmp_path / "1", out, dirs_exist_ok=True)
    shutil.rmtree(out / "train")
    prepare_part(f"{number}/3", rows, out, "train:300", console=quiet)
  for number in (2, 3):
    shutil.copytree(tmp_path / str(number), tmp_path / "1", dirs_exist_ok=True)
  join_parts(rows, tmp_path / "1", "train:300", console=quiet)
  prepare(rows, tmp_path / "one", "train:300", console=quiet)
  assert files(tmp_path / "1") == files(tmp_path / "one")


SCRIPT = """
import os, signal, sys
from pathlib import Path
from infini_jax.data import prepare_part
from infini_jax.data.sources import base
from infini_jax.data.store import workers

base.SMALLEST = 1500
entry, left = workers._entry, [90]

def killed(*args):
  left[0] -= 1
  if not left[0]:
    os.kill(os.getpid(), signal.SIGKILL)
  return entry(*args)

workers._entry = killed
prepare_part("2/2", sys.argv[1], Path(sys.argv[2]), "bytes")
"""


def test_a_killed_part_continues(tmp_path, rows, quiet, monkeypatch):
  out = tmp_path / "out"
  done = subprocess.run([sys.executable, "-c", SCRIPT, rows, str(out)], capture_output=True)
  assert done.returncode == -signal.SIGKILL, done.stderr
  finished = {file: file.stat().st_mtime_ns for file in out.glob("*/*.npz")}
  assert finished, "a weak test: it was killed too early"
  whole = len(open_corpus(rows).parts) // 2
  write_shards, counts = parts.write_shards, []

  def count(jobs, *args):
    counts.append(len(jobs))
    write_shards(jobs, *args)

  monkeypatch.setattr(parts, "write_shards", count)
  prepare_part("1/2", rows, out, "bytes", console=quiet)
  with pytest.raises(InputError, match=r"part 2/2 is not complete; run it with --part=2/2"):
    join_parts(rows, out, "bytes", console=quiet)
  for _ in range(2):
    prepare_part("2/2", rows, out, "bytes", console=quiet)
  assert 0 < counts[1] < whole and counts[2] == 0, "finished work is not done again"
  assert finished == {file: file.stat().st_mtime_ns for file in finished}
  join_parts(rows, out, "bytes", console=quiet)
  prepare(rows, tmp_path / "one", "bytes", console=quiet)
  assert files(out) == files(tmp_path / "one")


@pytest.fixture
def halves(tmp_path, rows, quiet):
  """A folder with both parts of a store."""
  for number in (1, 2):
    prepare_part(f"{number}/2", rows, tmp_path / "out", "bytes", console=quiet)
  return tmp_path / "out"


@pytest.mark.parametrize("name", ["min_tokens", "tokenizer", "documents"])
def test_parts_made_with_other_settings_are_refused(tmp_path, rows, halves, quiet, name):
  """Part 2 of the other settings was copied over that of this store."""
  spec = write_rows(tmp_path / "other.jsonl", 121) if name == "documents" else rows
  tokenizer = "train:300" if name == "tokenizer" else "bytes"
  other = (tokenizer, None, 9 if name == "min_tokens" else 1, quiet)
  for number in (1, 2):
    prepare_part(f"{number}/2", spec, tmp_path / "other", *other)
  with pytest.raises(InputError, match=f"made with other {name} .*give the settings of its parts"):
    prepare_part("1/2", spec, halves, *other)
  shutil.copy(tmp_path / "other" / "parts" / "2-of-2.json", halves / "parts")
  with pytest.raises(InputError, match=f"part 2/2 was made with other {name} .* here"):
    join_parts(rows, halves, "bytes", console=quiet)
  with pytest.raises(InputError, match=f"made with other {name} .*give the settings of its parts"):
    join_parts(spec, halves, tokenizer, other[2], quiet)
  assert not (halves / "store.json").exists()


@pytest.mark.parametrize("harm", ["no index", "no records", "index", "records"])
def test_a_damaged_part_is_refused_and_made_again(tmp_path, rows, halves, quiet, harm):
  file = sorted(halves.glob("train/*.array_record"))[1]  # the jobs alternate: it is of part 2
  index = file.with_suffix(".npz")
  if harm == "no records":
    file.unlink()
  elif harm == "no index":
    index.unlink()
  else:
    chosen = index if harm == "index" else file
    content = bytearray(chosen.read_bytes())
    content[len(content) // 2] ^= 255
    chosen.write_bytes(content)
  with pytest.raises(InputError, match=r"train/00001\..*; .*run --part=2/2 again") as error:
    join_parts(rows, halves, "bytes", console=quiet)
  if "delete" in str(error.value):
    index.unlink()
  prepare_part("2/2", rows, halves, "bytes", console=quiet)
  join_parts(rows, halves, "bytes", console=quiet)
  prepare(rows, tmp_path / "one", "bytes", console=quiet)
  assert files(halves) == files(tmp_path / "one")


def test_a_complete_store_is_left_as_it_is(rows, halves, quiet):
  join_parts(rows, halves, "bytes", console=quiet)
  before = files(halves)
  prepare_part("2/2", rows, halves, "bytes", console=quiet)
  (halves / "parts").mkdir()  # of a join that was killed at its last step
  join_parts(rows, halves, "bytes", console=quiet)
  assert files(halves) == before and not (halves / "parts").exists()


def test_one_machine_can_finish_what_parts_began(tmp_path, rows, quiet):
  prepare_part("3/4", rows, tmp_path / "out", "bytes", console=quiet)
  prepare(rows, tmp_path / "out", "bytes", console=quiet)
  prepare(rows, tmp_path / "one", "bytes", console=quiet)
  assert files(tmp_path / "out") == files(tmp_path / "one")


def test_commands(tmp_path, rows, capsys):
  def prepared(*flags):
    status = cli.main(["prepare", f"--source={rows}", f"--out={tmp_path}/out", *flags])
    error = capsys.readouterr().err
    assert error.count("\n") == (status > 0), error
    return error

  for wrong in ("0/2", "3/2", "2", "1/0", "a/b", "-1/2", ""):
    assert f"--part={wrong}: give PART/PARTS with PART from 1 to PARTS" in prepared(
      f"--part={wrong}"
    )
  assert "no part of a store is here" in prepared("--join")
  assert not (tmp_path / "out").exists()
  assert not prepared("--part=2/2")
  assert "part 1/2 is not complete; run it with --part=1/2" in prepared("--join")
  assert not prepared("--part=1/2")
  assert not prepared("--join")
  assert Store.open(tmp_path / "out").splits["train"]["bad"] == 1
  with pytest.raises(SystemExit) as stopped:
    prepared("--part=1/2", "--join")
  assert stopped.value.code == 2 and "not allowed with" in capsys.readouterr().err
