"""The command line: one line for wrong inputs, and a small complete job."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

import infini_jax
from infini_jax import cli, processes
from infini_jax.config import InputError
from infini_jax.evaluation.filing import newest, newest_file
from infini_jax.inference import Session
from infini_jax.runs.workdir import Workdir
from tests import tiny
from tests.compiling import QUICKLY

ROOT = Path(__file__).parent.parent
# Slow tests run such commands with XLA's optimizations.
ENV = {
  "PATH": "/usr/bin:/bin",
  "JAX_PLATFORMS": "cpu",
  "XLA_FLAGS": QUICKLY,
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # else programs that compile fast are not kept
}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
  """A corpus, a config file for it, and a workdir with 4 trained steps."""
  folder = tmp_path_factory.mktemp("job")
  sections = {**tiny.RUN, "data": {**tiny.RUN["data"], "path": str(folder / "corpus")}}
  programs = os.environ["JAX_COMPILATION_CACHE_DIR"]  # kept from earlier runs of the tests
  sections["train"] = {**tiny.RUN["train"], "steps": 4, "compilation_cache": programs}
  sections["mesh"] = {"data": -1}
  tiny.write_corpus(folder / "corpus")
  (folder / "config.py").write_text(tiny.CONFIG_FILE.format(sections=sections))
  done = real("train.py", f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}")
  assert done.returncode == 0, done.stderr
  return folder


def real(*command):
  """Runs a process as a user does: one device, without the settings of these tests."""
  return subprocess.run(
    [sys.executable, *command], cwd=ROOT, env=ENV, text=True, capture_output=True, timeout=240
  )


def refused(capsys, *command):
  """Runs a command that must fail before any work; returns its error line."""
  assert cli.main([str(c) for c in command]) == 2, "a wrong input exits with 2"
  error = capsys.readouterr().err
  assert error.count("\n") == 1, f"want one line, got: {error!r}"
  return error


def corpus(folder, *texts, name="{}.txt"):
  folder.mkdir()
  for i, text in enumerate(texts):
    (folder / name.format(i)).write_bytes(text)
  return folder


def test_wrong_inputs_are_named_in_one_line_with_the_remedy(job, tmp_path, capsys):
  config, out = f"--config={job / 'config.py'}", f"--workdir={tmp_path / 'out'}"

  def train(*more, workdir=out):
    return refused(capsys, "train", config, workdir, *more)

  path = "--config.data.path={}".format
  assert "no such folder" in train(path(tmp_path / "none"))
  assert "no .txt" in train(path(corpus(tmp_path / "empty")))
  binary = corpus(tmp_path / "binary", *[b"\xff\xfe\x00\x80" * 9] * 3)
  assert "not UTF-8" in train(path(binary))
  short = corpus(tmp_path / "short", b"a", b"b", b"c")
  assert "shorter than one segment" in train(path(short), workdir=f"--workdir={tmp_path / 'w'}")
  assert "did you mean 'width'" in train("--config.model.wdth=3")
  assert "did you mean 'model'" in train("--config.modl.width=3")
  assert "width=x" in train("--config.model.width=x")
  assert "choose one of" in train("--config.model.mixer=infinite")
  assert "--workdir is empty" in train(workdir="--workdir=")
  assert "is a file; name a folder" in train(workdir=f"--workdir={job / 'config.py'}")
  assert "vocab_size" in train("--config.model.vocab_size=100", "--config.model.width=16")
  assert "unknown argument" in train("--steps=3")
  assert "does not fit" in train("--config.mesh.tensor=7")
  assert "another config" in train("--config.model.width=32", workdir=f"--workdir={job / 'run'}")
  own = ("--config.data.tokenizer=task", "--config.data.carry_state=False")
  assert "set config.data.carry_state=False" in train("--config.task.name=passkey")
  assert "needs config.task.name" in train("--config.data.tokenizer=task")
  assert "make it 67 tokens or more" in train("--config.task.name=passkey", *own)
  assert "set it to" in train(
    "--config.task.name=recall", "--config.task.min_segments=1", "--config.model.vocab_size=9", *own
  )
  assert "recall has its own vocabulary" in train("--config.task.name=recall", own[1])
  assert "choose 1 to 32" in train("--config.task.name=passkey", "--config.task.digits=33", *own)
  assert "choose 0 to 1" in train("--config.warm.share=1.5")
  assert "must be above 0" in train("--config.infini.decay=0.0")
  assert "gradient" in train("--config.infini.gate=hard_sigmoid", "--config.infini.gate_init=-5.0")
  wrong = tmp_path / "wrong.py"
  for text, said in (
    ("get_config = lambda: None", "get_config() must return the config of base_config()"),
    ("def get_config():\n  raise ValueError('mine')", f'File "{wrong}", line 2, in get_config'),
  ):
    wrong.write_text(text)
    line = refused(capsys, "train", f"--config={wrong}", out)
    assert said in line and "Traceback" not in line
  assert "is missing" in refused(capsys, "train", out)
  assert "no such file" in refused(capsys, "train", "--config=nowhere.py", out)
  assert "no run here" in refused(capsys, "eval", config, out)
  assert "no run here" in refused(capsys, "generate", out)
  run = f"--workdir={job / 'run'}"
  assert "choose some of perplexity," in refused(capsys, "eval", config, run, "--task=perplexty")
  assert "own vocabulary" in refused(capsys, "eval", config, run, "--task=gates,recall")
  assert "no run here" in refused(capsys, "report", run, out)
  passkey = ("eval", config, run, "--config.evaluation.task=passkey")
  assert "248 or more" in refused(capsys, *passkey, "--config.evaluation.lengths=(500,99)").replace(
    "tokens or", "or"
  )
  assert "depths: 2.0: choose 0 to 1" in refused(
    capsys, *passkey, "--config.evaluation.depths=(0.5,2.0)"
  )
  assert "own vocabulary" in refused(capsys, "eval", config, run, "--config.evaluation.task=recall")
  assert "no such file" in refused(capsys, "generate", run, "--prompt-file=nowhere.txt")
  assert "top_p" in refused(capsys, "generate", run, "--top-p=0")
  assert "SPLIT:NUMBER" in refused(capsys, "generate", run, "--prompt-document=test:99")
  assert "no checkpoint of step 99" in refused(capsys, "generate", run, "--step=99", "--prompt=a")


def test_a_wrong_input_is_one_line_in_a_real_process_too(job):
  done = real("train.py", f"--config={job / 'config.py'}", f"--workdir={job / 'x'}", "--config.a=1")
  assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
  assert "Traceback" not in done.stderr


def test_a_process_ends_beside_a_thread_of_a_library_that_hangs():
  code = """
import threading, time
from infini_jax import cli

def main(argv, alone):
  threading.Thread(target=time.sleep, args=(300,)).start()
  print("done")
  return 3

cli.main, cli.END_SECONDS = main, 0.5
cli.program(["train"])
"""
  done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=60)
  assert (done.returncode, done.stdout) == (3, "done\n"), done.stderr


def test_xla_flags_are_those_of_the_runs_products_and_set_by_a_process_of_its_own_alone(
  job, monkeypatch, capsys
):
  found = []
  monkeypatch.setattr(cli.cpu, "set_flags", lambda environ, dtype: found.append(dtype))
  run = f"--workdir={job / 'run'}"
  generate = ["generate", run, "--prompt=a", "--tokens=0"]
  assert cli.main(generate) == 0 and found == []
  assert cli.main(generate, alone=True) == 0 and found == ["float32"]
  wrong = ["eval", run, "--config.run.compute_dtype=bfloat16", "--task=none"]
  assert cli.main(wrong, alone=True) == 2 and found == ["float32", "bfloat16"]


class Ended(BaseException):
  """Instead of the end of this process."""


@pytest.mark.parametrize(
  "error,status,why",
  [
    (InputError("config.train.steps=0: make it more"), 2, "config.train.steps=0: make it more"),
    (KeyboardInterrupt(), 130, "KeyboardInterrupt"),
    (processes.PeerStopped(0, 75, "it was told to stop"), 75, None),
  ],
  ids=["wrong input", "ctrl-c", "another one stopped"],
)
def test_one_of_several_processes_ends_the_others_too(
  tmp_path, monkeypatch, capsys, error, status, why
):
  ended = []

  def give_up(status, **how):
    ended.append((status, how))
    raise Ended

  def load(*_):
    raise error

  monkeypatch.setattr(processes, "start", lambda how: True)
  monkeypatch.setattr(processes, "give_up", give_up)
  monkeypatch.setattr(cli, "load_config", load)
  with pytest.raises(Ended):
    cli.main(["train", f"--workdir={tmp_path}"])
  pressed = isinstance(error, KeyboardInterrupt)
  assert ended == [(status, {} if why is None else {"together": not pressed, "why": why})]
  said = capsys.readouterr().err
  assert said.startswith("" if pressed else "infini-jax train: ")
  assert said.count("\n") == (0 if pressed else 1)


def test_closed_streams_are_no_error():
  code = "from infini_jax import cli; cli.program([])"
  done = subprocess.run(
    [*"sh -c".split(), '"$0" -c "$1" >&-', sys.executable, code],
    text=True,
    capture_output=True,
    timeout=60,
  )
  assert (done.returncode, done.stderr) == (0, "")


def test_versions_and_help(capsys):
  said = lambda: "".join(capsys.readouterr())
  assert cli.main([]) == 0
  help = said()
  assert all(name in help for name in ("usage: infini-jax", "train", "generate", "--version"))
  for arguments, text in (
    (["--version"], f"infini-jax {infini_jax.__version__} (jax {jax.__version__}, jaxlib "),
    (["train", "--config", "mine.py", "--config.train.steps", "5", "-h"], "--config FILE"),
    *(([name, "--help"], f"usage: infini-jax {name}") for name in ("eval", "plan", "generate")),
  ):
    with pytest.raises(SystemExit) as ended:
      cli.main(arguments)
    assert ended.value.code == 0 and text in said()
  for arguments, text in (
    (["train"], "infini-jax train: the following arguments are required: --workdir"),
    (["trian"], "invalid choice: 'trian'"),
    (["generate", "--tokens=x"], "invalid int value: 'x'"),
    (["report", "--workdir=a", "--config=b"], "unknown arguments: --config=b"),
  ):
    with pytest.raises(SystemExit) as ended:
      cli.main(arguments)
    line = said()
    assert ended.value.code == 2 and text in line and line.count("\n") == 1, line


def test_train_evaluate_and_generate(job, capsys):
  run = job / "run"
  assert (run / "checkpoints" / "4").is_dir()
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4]
  done = real("eval.py", f"--workdir={run}")
  assert done.returncode == 0, done.stderr
  results = newest(run, "perplexity")
  texts = [f.read_bytes() for f in (job / "corpus" / "test").iterdir()]
  assert results["memory"]["bytes"] == results["memory"]["tokens"] == sum(map(len, texts))
  place = newest_file(run, "perplexity").parent
  for picture in (run / "evaluation" / "gates" / "gates.png", place / "positions.png"):
    assert picture.read_bytes().startswith(b"\x89PNG")
  for figure in (
    "perplexity per token",
    "bits per byte",
    "memory held empty",
    "parameters",
    "gates.png",
  ):
    assert figure in done.stdout, f"the table lacks {figure!r}"
  typed = results["command"]
  assert typed == f"infini-jax eval --workdir={run}"
  assert cli.main(["report", f"--workdir={run}"]) == 0
  assert "report.html" in capsys.readouterr().out.replace("\n", "")
  page = (run / "report.html").read_text()
  for figure in (f"{results['memory']['perplexity']:.6g}", typed, 'role="img"'):
    assert figure in page, f"the page lacks {figure!r}"
  (job / "prompt.txt").write_text("abc " * 30)
  command = ["generate", f"--workdir={run}", "--tokens=9", f"--prompt-file={job / 'prompt.txt'}"]
  done = real("-m", "infini_jax.cli", *command)
  assert done.returncode == 0, done.stderr
  assert "121 tokens" in done.stderr, "the prompt is the text and the document mark"
  assert cli.main(command) == 0
  assert capsys.readouterr().out == done.stdout, "the same seed writes the same text"


@pytest.mark.slow
def test_a_second_run_finds_the_first_ones_programs(job, tmp_path):
  kept = []
  for name in ("first", "second"):
    done = real(
      "train.py", f"--config={job / 'config.py'}", f"--workdir={tmp_path / name}",
      f"--config.run.compilation_cache={tmp_path / 'programs'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kept.append({p.name for p in (tmp_path / "programs").glob("*train_step*-cache")})
  assert kept[0], "nothing was kept of what was compiled"
  assert kept[1] == kept[0], "the step was compiled anew"


@pytest.mark.parametrize(
  "runs,command",
  [
    ("infini_jax.inference.command.generate", ["generate", "--workdir={run}", "--prompt=a"]),
    ("infini_jax.inference.command.generate", ["generate", "--load-state={state}"]),
    ("infini_jax.inference.terminal.chat", ["chat", "--workdir={run}"]),
    ("infini_jax.scoring.command.score", ["score", "--load-state={state}", "--text=a"]),
    ("infini_jax.scoring.harness.command", ["lm-eval", "--workdir={run}"]),
  ],
)
def test_every_command_on_a_run_keeps_its_programs(job, tmp_path, monkeypatch, runs, command):
  session = Session.load(job / "run")
  session.save(tmp_path / "a.state")
  kept = []
  monkeypatch.setattr(runs, lambda *_: kept.append(jax.config.jax_compilation_cache_dir))
  before = jax.config.jax_compilation_cache_dir
  monkeypatch.setattr(
    Workdir, "config_here", lambda run: in_folder(run.config(), tmp_path / "here")
  )
  try:
    names = {"run": job / "run", "state": tmp_path / "a.state"}
    assert cli.main([part.format(**names) for part in command]) == 0
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
  assert kept == [str(tmp_path / "here")]


def in_folder(c, folder):
  return c.with_fields(run={"compilation_cache": str(folder)})


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(job):
  run = job / "stopped"
  command = ["train.py", f"--config={job / 'config.py'}", f"--workdir={run}"]
  command += ["--config.train.steps=100000", "--config.train.log_every=1"]
  process = subprocess.Popen(
    [sys.executable, *command],
    cwd=ROOT,
    env=ENV,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  try:
    deadline = time.monotonic() + 120
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
      assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
      time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
  finally:
    process.kill()
  assert process.returncode == cli.STOPPED and "saved" in output, output
  (saved,) = (int(p.name) for p in (run / "checkpoints").iterdir())
  assert saved >= 3
  again = real(*command[:3], f"--config.train.steps={saved + 2}")
  assert again.returncode == 0, again.stderr
  assert f"continuing from step {saved}" in again.stdout.replace("\n", " "), again.stdout
  assert (run / "checkpoints" / str(saved + 2)).is_dir()
