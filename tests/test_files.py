"""Files are complete or do not exist, also with several writers and after any failure."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from infini_jax import files
from infini_jax.files import (
  atomic,
  atomic_folder,
  is_temporary,
  left_over,
  locked,
  move_into,
  write_bytes,
  write_json,
  write_text,
)

# Writes one file repeatedly, filled with one byte value.
WRITER = """
import sys
from pathlib import Path
from infini_jax.files import write_bytes
print("ready", flush=True)
sys.stdin.read(1)
for _ in range(200):
  write_bytes(Path(sys.argv[1]), sys.argv[2].encode() * 50_000)
"""


def names(folder):
  return sorted(file.name for file in folder.iterdir())


def test_a_file_and_its_folder_are_made(tmp_path):
  file = tmp_path / "new" / "folder" / "a.json"
  write_json(file, {"é": [1, 2]})
  assert file.read_text("utf-8") == '{\n  "\\u00e9": [\n    1,\n    2\n  ]\n}\n'
  write_text(file, "né")
  assert file.read_bytes() == "né".encode()
  write_bytes(file, b"")
  assert file.read_bytes() == b"" and names(file.parent) == ["a.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path, old, error):
  file = tmp_path / "a"
  if old is not None:
    file.write_bytes(old)
  with pytest.raises(error), atomic(file) as temporary:
    temporary.write_bytes(b"half")
    raise error
  assert names(tmp_path) == ([] if old is None else ["a"])
  assert old is None or file.read_bytes() == old


def test_if_a_folder_has_the_name_nothing_is_left(tmp_path):
  (tmp_path / "a").mkdir()
  with pytest.raises(OSError):
    write_text(tmp_path / "a", "text")
  assert names(tmp_path) == ["a"]


def test_until_the_end_a_reader_finds_the_old_file(tmp_path):
  file = tmp_path / "a"
  write_text(file, "old")
  with atomic(file) as temporary:
    assert temporary.parent == file.parent and temporary.read_bytes() == b""
    temporary.write_text("new")
    assert file.read_text() == "old" and left_over(tmp_path) == [temporary]
  assert file.read_text() == "new" and not left_over(tmp_path)


def test_a_file_that_the_body_puts_in_place_gets_the_usual_mode(tmp_path):
  file, other = tmp_path / "a", tmp_path / "b"
  other.touch()
  with atomic(file) as temporary:
    temporary.unlink()
    temporary.write_text("new")
    temporary.chmod(0o600)
  assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
  file, synced = tmp_path / "a", []

  def fsync(descriptor):
    assert not file.exists()
    synced.append(os.fstat(descriptor).st_ino)

  monkeypatch.setattr(os, "fsync", fsync)
  write_text(file, "text")
  assert synced == [file.stat().st_ino]


@pytest.mark.parametrize("number", files.NEVER_SYNCS)
def test_a_file_system_without_fsync_can_be_written(tmp_path, monkeypatch, number):
  def fsync(_):
    raise OSError(number, "no")

  monkeypatch.setattr(os, "fsync", fsync)
  write_text(tmp_path / "a", "text")
  assert (tmp_path / "a").read_text() == "text"


def test_a_disk_that_fills_up_when_it_syncs_is_an_error(tmp_path, monkeypatch):
  def fsync(_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", fsync)
  with pytest.raises(OSError, match="No space"):
    write_text(tmp_path / "a", "text")
  assert names(tmp_path) == []


def test_processes_that_write_the_same_file_never_mix(tmp_path):
  file, kinds = tmp_path / "a", "xy"
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", WRITER, str(file), kind],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    for kind in kinds
  ]
  for process in processes:
    assert process.stdout.readline() == "ready\n"
  for process in processes:
    process.stdin.write(".")
    process.stdin.flush()
  found = set()
  while any(process.poll() is None for process in processes):
    if file.exists():
      content = file.read_bytes()
      assert len(content) == 50_000 and len(set(content)) == 1, "half a file, or a mixed one"
      found.add(content[:1])
  assert [process.wait() for process in processes] == [0, 0]
  assert found, "a weak test: nothing was read meanwhile"
  assert names(tmp_path) == ["a"]


def test_threads_that_write_the_same_file_never_mix(tmp_path):
  file, failed = tmp_path / "a", []

  def write(kind):
    try:
      for _ in range(50):
        write_bytes(file, kind * 50_000)
    except OSError as error:
      failed.append(error)

  threads = [threading.Thread(target=write, args=(kind,)) for kind in (b"x", b"y", b"z")]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not failed and len(set(file.read_bytes())) == 1 and names(tmp_path) == ["a"]


def test_files_of_a_killed_process_are_found_and_do_no_harm(tmp_path):
  file = tmp_path / "folder" / "a"
  code = (
    "import os, signal, sys\n"
    "from pathlib import Path\n"
    "from infini_jax.files import atomic\n"
    "with atomic(Path(sys.argv[1])) as temporary:\n"
    "  temporary.write_bytes(b'half')\n"
    "  os.kill(os.getpid(), signal.SIGKILL)\n"
  )
  done = subprocess.run([sys.executable, "-c", code, str(file)])
  assert done.returncode == -signal.SIGKILL and not file.exists()
  (left,) = left_over(tmp_path)
  assert left.parent == file.parent and left.read_bytes() == b"half" and is_temporary(left)
  write_text(file, "text")
  assert file.read_text() == "text" and left_over(tmp_path) == [left]


def test_names_of_older_programs_are_temporary_too():
  for name in ("run.tmp", "a.safetensors.4711.tmp", "00009.array_record.host.1.tmp"):
    assert is_temporary(Path(name))
  assert not is_temporary(Path("run.json"))


def test_a_temporary_name_is_longer_by_the_stated_bytes(tmp_path):
  file = tmp_path / ("é" * 121)  # 242 bytes of 255, and 13 for the rest
  with atomic(file) as temporary:
    assert len(os.fsencode(temporary.name)) - len(os.fsencode(file.name)) == files.LONGER


def test_a_pipe_is_written_directly(tmp_path):
  pipe = tmp_path / "pipe"
  os.mkfifo(pipe)
  found = []
  reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
  reader.start()
  write_text(pipe, "text")
  reader.join()
  assert found == ["text"] and names(tmp_path) == ["pipe"] and pipe.is_fifo()


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_appears_when_it_is_complete(tmp_path, is_there):
  folder, left = tmp_path / "a", tmp_path / "a.partial"
  (left / "old").mkdir(parents=True)  # of a killed process
  (left / "link").symlink_to(tmp_path)
  if is_there:
    folder.mkdir()
  with atomic_folder(folder) as partial:
    assert partial == left and not names(partial)
    (partial / "file").write_text("text")
    assert folder.exists() == is_there
  assert names(tmp_path) == ["a"] and names(folder) == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_no_folder(tmp_path, error):
  with pytest.raises(error), atomic_folder(tmp_path / "a") as partial:
    (partial / "file").write_text("half")
    raise error
  assert names(tmp_path) == []


def test_a_folder_that_is_not_empty_is_not_replaced(tmp_path):
  (tmp_path / "a" / "own").mkdir(parents=True)
  with pytest.raises(OSError), atomic_folder(tmp_path / "a"):
    pass
  assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["own"]


def test_a_folder_has_one_writer(tmp_path):
  with atomic_folder(tmp_path / "a") as partial:
    (partial / "file").write_text("text")
    with pytest.raises(BlockingIOError), atomic_folder(tmp_path / "a"):
      pass
    with pytest.raises(BlockingIOError), locked(partial):
      pass
    assert names(partial) == ["file"]
  with locked(tmp_path / "a"):
    pass


def test_a_lock_of_a_file_can_be_waited_for(tmp_path):
  order, file = [], tmp_path / "locks" / "one"

  def second():
    with locked(file, wait=True):
      order.append("second")

  with locked(file):
    waiting = threading.Thread(target=second)
    waiting.start()
    time.sleep(0.1)
    order.append("first")
  waiting.join()
  assert order == ["first", "second"] and file.exists()


def test_what_is_moved_gets_a_free_name(tmp_path):
  for expected in ("3", "3-1", "3-2"):
    (tmp_path / "3").mkdir()
    place = move_into(tmp_path / "3", tmp_path / "damaged")
    assert place == tmp_path / "damaged" / expected and place.is_dir()
    assert not (tmp_path / "3").exists()


@pytest.mark.parametrize("number", [*files.NO_LOCKS, errno.EIO])
def test_where_there_are_no_locks_the_work_is_done_and_other_errors_are_raised(
  tmp_path, monkeypatch, number
):
  def flock(*_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(files.fcntl, "flock", flock)
  if number in files.NO_LOCKS:
    with locked(tmp_path, wait=True):
      pass
  else:
    with pytest.raises(OSError, match=os.strerror(number)), locked(tmp_path, wait=True):
      pass
