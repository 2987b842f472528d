"""Paths of users are expanded, or refused in one line before anything starts."""

import importlib
import os
from pathlib import Path

import pytest

from infini_jax import cli
from infini_jax.config import InputError
from infini_jax.paths import expand, file_to_write, folder_to_write, local

CONFIG = "--config=configs/demo.py"


@pytest.fixture
def places(tmp_path, monkeypatch):
  """A folder of unusual files, which is also the home folder."""
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "folder").mkdir()
  (tmp_path / "file").write_text("x")
  (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
  (tmp_path / "loop").symlink_to(tmp_path / "loop")
  (tmp_path / "round").symlink_to(tmp_path / "about")
  (tmp_path / "about").symlink_to(tmp_path / "round")
  (tmp_path / "linked").symlink_to(tmp_path / "folder")
  return tmp_path


# Impossible paths for reading and writing.
NO_PATHS = {
  "": "is empty",
  "http://bucket/run": "is a URL",
  "file:///tmp/run": "is a URL",
  "gs:/bucket/run": "is a URL",
  "a\0b": "NUL",
  "~nobody-has-this-name/run": "no user has the home",
  "{here}/loop": "leads to itself",
  "{here}/round/run": "leads to itself",
  "{here}/" + "x" * 300: "too long",
  "{here}/" + "y/" * 2500: "too long",
  "\udfff\ud800": "cannot be a name",
}
NO_FOLDERS = {
  "{here}/file": "is a file",
  "{here}/file/run": "is a file",
  "{here}/dangling": "is a link to nothing",
  "{here}/dangling/run": "is a link to nothing",
  "{here}/new/" + "x" * 300: "too long",
  "/proc/run": "takes no files",
  "/proc": "takes no files",
  "/dev/null": "is a file",
  "/sys/run": "takes no files",
}
NO_FILES = {
  "{here}/folder": "is a folder",
  "{here}/new.json/": "is a folder",
  "{here}/nowhere/a.json": "make it first",
  "{here}/file/a.json": "is a file",
  "{here}/dangling": "is a link to nothing",
  "/proc/a.json": "takes no files",
  "{here}/" + "x" * 250: "too long",
}


def refused(call, path, here, why):
  path = path.format(here=here)
  with pytest.raises(InputError) as caught:
    call(path)
  text = str(caught.value)
  assert why in text, text
  assert "\n" not in text and len(text) < 600
  return text


@pytest.mark.parametrize("path", NO_PATHS)
def test_impossible_paths_are_refused_everywhere(places, path):
  for call in (local, folder_to_write, file_to_write):
    refused(lambda p, call=call: call(p, "--flag"), path, places, NO_PATHS[path])


@pytest.mark.parametrize("path", NO_FOLDERS)
def test_folders_that_cannot_be_written(places, path):
  before = sorted(os.listdir(places))
  assert "--out=" in refused(lambda p: folder_to_write(p, "--out"), path, places, NO_FOLDERS[path])
  assert sorted(os.listdir(places)) == before, "nothing is left of the attempt"


@pytest.mark.parametrize("path", NO_FILES)
def test_files_that_cannot_be_written(places, path):
  assert "--json=" in refused(lambda p: file_to_write(p, "--json"), path, places, NO_FILES[path])


def test_a_device_is_written_but_never_replaced():
  assert file_to_write("/dev/null") == Path("/dev/null")
  with pytest.raises(InputError, match="a device or a pipe"):
    file_to_write("/dev/null", replaced=True)


@pytest.mark.parametrize(
  "command",
  [
    ("plan", CONFIG, "--table=memory", "--json"),
    ("report", "--workdir=run", "--out"),
    ("generate", "--workdir=run", "--prompt=x", "--save-state"),
  ],
)
def test_a_file_of_another_kind_is_not_written_over(places, capsys, command):
  *others, flag = command
  for content in (b"a book", b'{"config": {}}', b"\xff", b"def get_config():\n"):
    (places / "file").write_bytes(content)
    error = one_line(capsys, *others, f"{flag}={places / 'file'}")
    assert f"{flag}=" in error and "holds something else" in error
    assert (places / "file").read_bytes() == content


def test_what_a_command_wrote_before_is_written_over(places, capsys):
  (places / "file").write_bytes(b"")
  for _ in range(2):
    assert cli.main(["plan", CONFIG, "--table=memory", f"--json={places / 'file'}"]) == 0
  assert b"infini" in (places / "file").read_bytes()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_paths_without_permission_are_refused(places):
  (places / "folder").chmod(0o500)
  refused(folder_to_write, "{here}/folder", places, "takes no files")
  refused(file_to_write, "{here}/folder/a", places, "takes no files")
  (places / "file").chmod(0o400)
  refused(file_to_write, "{here}/file", places, "Permission denied")


def test_good_paths_are_left_as_they_are_and_homes_expanded(places, monkeypatch):
  monkeypatch.chdir(places)
  for good in ("new", "new/deeper", "folder", "linked", "linked/new", "folder/", "a b ü 空 [/x]"):
    assert folder_to_write(good) == Path(good)
  for good in ("new.json", "file", "folder/new.json", "linked/new.json", "12:30/../new.json"):
    if "12:30" in good:
      (places / "12:30").mkdir()
    assert file_to_write(good) == Path(good)
  assert folder_to_write("~/runs/a") == places / "runs" / "a"
  assert local("~") == places
  assert expand("~root/x").endswith("/x") and not expand("~root/x").startswith("~")
  assert local("./~/x") == Path("~/x"), "a folder of that name"
  assert local("./gs:/x") == Path("gs:/x")
  assert sorted(os.listdir(places)) == sorted(
    "12:30 about dangling file folder linked loop round".split()
  )


def one_line(capsys, *argv):
  assert cli.main(list(argv)) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1, error
  return error


@pytest.mark.parametrize("path", ["gs://bucket/a", "/proc/a", "", "{here}/dangling", "{here}/loop"])
def test_every_output_is_checked_before_anything_starts(places, capsys, monkeypatch, path):
  def never(*_, **__):
    raise AssertionError("something was started")

  for started in (
    "infini_jax.data.store.work.open_corpus",
    "infini_jax.tasks.from_config.open_or_prepare",
    "infini_jax.convert.huggingface.convert",
    "infini_jax.convert.gguf.convert",
    "infini_jax.convert.export.export",
    "infini_jax.plan.command.memories",
    "infini_jax.report.page.read_runs",
    "infini_jax.inference.saved.open_run",
    "infini_jax.training.loop.make_mesh",
    "infini_jax.evaluation.evaluate.make_mesh",
  ):
    module, _, name = started.rpartition(".")
    monkeypatch.setattr(importlib.import_module(module), name, never)
  monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(places / "absent.json"))  # no network
  monkeypatch.chdir(places)
  config = f"--config={Path(__file__).parent.parent / 'configs/demo.py'}"
  path = path.format(here=places)
  run = f"--workdir={places / 'run'}"
  for flag, *command in (
    ("--workdir", "train", config, f"--workdir={path}"),
    ("--workdir", "eval", config, f"--workdir={path}"),
    ("--out", "prepare", "--source=python-stdlib", f"--out={path}"),
    ("--json", "plan", config, "--table=memory", f"--json={path}"),
    ("OUT", "convert", "hf", "folder", path),
    ("OUT", "convert", "gguf", "file", path),
    ("OUT", "convert", "export", "run", path),
    ("--out", "report", run, f"--out={path}"),
    ("--save-state", "generate", run, "--prompt=x", f"--save-state={path}"),
    *(
      [("config.run.compilation_cache", "train", config, run,
        f"--config.run.compilation_cache={path}")] * bool(path)  # empty: none
    ),
  ):  # fmt: skip
    assert flag in one_line(capsys, *command), command
  assert not (places / "gs:").exists()


def test_urls_are_refused_as_inputs_and_homes_are_expanded(places, capsys):
  run = f"--workdir={places / 'run'}"
  for name, *command in (
    ("--workdir", "generate", "--workdir=http://b/run", "--prompt=x"),
    ("--workdir", "report", "--workdir=ftp://b/run"),
    ("--load-state", "generate", "--load-state=http://b/a.state"),
    ("FILE", "convert", "gguf", "http://b/a.gguf", str(places / "new")),
    ("config.train.start_from", "train", CONFIG, run, "--config.train.start_from=http://b/run"),
  ):
    error = one_line(capsys, *command)
    assert f"{name}=" in error and "is a URL" in error, error
  for command in (
    ("generate", "--workdir=~/folder", "--prompt=x"),
    ("report", "--workdir=~/folder"),
    ("prepare", "--source=~/folder", "--out=~/store"),
    ("prepare", "--source=text:~/folder", "--out=~/store"),
    ("convert", "hf", "~/folder", "~/made"),
    ("convert", "export", "~/folder", "~/made"),
  ):
    error = one_line(capsys, *command)
    assert str(places / "folder") in error or "in this folder" in error, error


def test_a_config_a_corpus_and_a_vocabulary_at_home(texts, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("HOME", str(Path(texts).parent))
  monkeypatch.chdir(tmp_path)
  corpus = f"~/{Path(texts).name}"
  assert cli.main(["prepare", f"--source={corpus}", "--out=bytes", "--workers=1"]) == 0
  monkeypatch.setenv("HOME", str(tmp_path))
  assert cli.main(["prepare", f"--source={texts}", "--out=~/again", "--workers=1"]) == 0
  assert (tmp_path / "again" / "store.json").is_file()
  assert "corpus" in one_line(capsys, "prepare", "--source=~/nowhere", "--out=~/new")
  assert "No such file" in one_line(
    capsys, "prepare", f"--source={texts}", "--out=~/new", "--tokenizer=huggingface:~/t.json"
  )
  os.mkfifo(tmp_path / "pipe")
  for path, why in (("http://b/t.json", "is a URL"), ("~", "not a file"), ("pipe", "not a file")):
    vocabulary = f"--tokenizer=huggingface:{path}"
    assert why in one_line(capsys, "prepare", f"--source={texts}", "--out=~/new", vocabulary)
  assert not (tmp_path / "~").exists()
