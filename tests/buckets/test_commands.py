"""Commands whose corpus, store, run and states lie in an object store."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from infini_jax import buckets, cli
from infini_jax.config import InputError
from infini_jax.data import Store
from infini_jax.inference import Session
from infini_jax.runs.metrics import read_metrics
from infini_jax.tasks import open_dataset
from tests.tiny import config, quiet

ROOT = Path(__file__).parent.parent.parent
FLAGS = (  # a tiny model
  *("--config.data.tokenizer=bytes", "--config.model.layers=2", "--config.model.width=32"),
  *("--config.model.heads=2", "--config.model.kv_heads=1", "--config.model.head_dim=16"),
  *("--config.model.ffn=64", "--config.model.vocab_size=512", "--config.model.segment_length=32"),
  *("--config.data.segments=2", "--config.data.lanes=2", "--config.train.eval_every=0"),
)
SERVER = os.environ.get("INFINI_JAX_TEST_S3", "")


def test_a_corpus_a_store_and_a_state(remote, texts, trained, capsys):
  shutil.copytree(texts, remote.root / "bucket" / "corpus")
  command = ["prepare", "--source=s3://bucket/corpus", "--out=s3://bucket/store", "--workers=1"]
  assert cli.main(command) == 0, capsys.readouterr().err
  made = cli.main(["prepare", f"--source={texts}", f"--out={remote.root / 'same'}", "--workers=1"])
  assert made == 0
  there = remote.files("store")
  for file in (remote.root / "same").rglob("*"):
    if file.is_file() and file.name != "store.json":
      assert there[file.relative_to(remote.root / "same").as_posix()] == file.read_bytes()
  remote.machine("there")
  assert Store.open(buckets.fetch("s3://bucket/store")).splits["train"]["tokens"] > 0
  assert cli.main(["verify", "s3://bucket/store"]) == 0

  run = str(trained[1])
  session = Session.load(run)
  session.read("a text")
  session.save("s3://bucket/states/a.state")
  remote.machine("here")
  again = Session.load("s3://bucket/states/a.state", model=run)
  np.testing.assert_array_equal(again.positions, session.positions)


def test_conversations_of_a_bucket_are_read(remote):
  folder = remote.root / "bucket" / "qa"
  folder.mkdir()
  (folder / "train.jsonl").write_text('{"prompt": "Who?", "completion": "Ann."}\n' * 3)
  for files in ("*.jsonl", "train.jsonl?prompt=prompt", ""):
    path = f"jsonl:s3://bucket/qa/{files}"
    c = config(path, task={"name": "chat"}, chat={"template": "plain"})
    assert len(open_dataset(c, None, quiet()).split("train")) == 3
  c = config("jsonl:s3://bucket/none/*.jsonl", task={"name": "chat"}, chat={"template": "plain"})
  with pytest.raises(InputError, match="no file matches"):
    open_dataset(c, None, quiet())


def test_errors_name_the_flag(remote, capsys):
  for command, told in (
    (["generate", "--workdir=s3://bucket/none", "--prompt=x"], "no run"),
    (["report", "--workdir=s3://bucket"], "--workdir=s3://bucket: not a possible name"),
    (["prepare", "--source=s3://bucket/none", "--out=s3://bucket/new"], "no such folder"),
  ):
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1, error


@pytest.mark.slow
@pytest.mark.skipif(not SERVER, reason="INFINI_JAX_TEST_S3 names no Python that has moto[server]")
def test_a_run_in_a_real_server_is_killed_and_goes_on_elsewhere_to_the_bit(texts, tmp_path):
  port = "5871"
  server = subprocess.Popen([SERVER, "-m", "moto.server", "-H", "127.0.0.1", "-p", port])
  url = f"http://127.0.0.1:{port}"
  settings = {"AWS_ENDPOINT_URL": url, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
  settings |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "JAX_PLATFORMS": "cpu"}
  settings["XLA_FLAGS"] = ""  # one device
  on = lambda name: {**os.environ, **settings, "XDG_CACHE_HOME": str(tmp_path / name)}
  make = f"import boto3; s3 = boto3.client('s3', endpoint_url='{url}'); "
  make += "s3.create_bucket(Bucket='bucket'); import pathlib; root = pathlib.Path(r'" + str(texts)
  make += "'); [s3.upload_file(str(f), 'bucket', 'corpus/' + f.relative_to(root).as_posix())"
  make += " for f in root.rglob('*') if f.is_file()]"
  flags = [*FLAGS, "--config.train.steps=400", "--config.train.checkpoint_every=20"]

  def start(name, workdir):
    command = [sys.executable, "train.py", "--config=configs/demo.py", f"--workdir={workdir}"]
    command += ["--config.data.path=s3://bucket/store", *flags]
    return subprocess.Popen(command, cwd=ROOT, env=on(name), stderr=subprocess.PIPE, text=True)

  try:
    for _ in range(60):
      if subprocess.run([SERVER, "-c", make], env=on("x"), capture_output=True).returncode == 0:
        break
      time.sleep(1)
    prepare = [sys.executable, "-m", "infini_jax.cli", "prepare", "--source=s3://bucket/corpus"]
    prepare += ["--out=s3://bucket/store", "--tokenizer=bytes", "--workers=1"]
    subprocess.run(prepare, cwd=ROOT, env=on("a"), check=True)
    whole = start("a", tmp_path / "whole")
    assert whole.wait(300) == 0, whole.stderr.read()
    killed = start("b", "s3://bucket/run")
    copy = tmp_path / "b" / "infini_jax" / "objects" / "s3" / "bucket" / "run"
    for _ in range(600):
      steps = [int(f.name) for f in copy.glob("checkpoints/[0-9]*") if f.name.isdigit()]
      if max(steps, default=0) >= 100:
        break
      assert killed.poll() is None, killed.stderr.read()
      time.sleep(0.1)
    time.sleep(11)  # a pass
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    goes_on = start("c", "s3://bucket/run")  # another machine
    assert goes_on.wait(300) == 0, goes_on.stderr.read()
    copy = tmp_path / "c" / "infini_jax" / "objects" / "s3" / "bucket" / "run"
    losses = lambda folder: {line["step"]: line["loss"] for line in read_metrics(folder, "train")}
    assert losses(copy) == losses(tmp_path / "whole")
    verify = [sys.executable, "-m", "infini_jax.cli", "verify", "s3://bucket/run"]
    assert subprocess.run(verify, cwd=ROOT, env=on("d")).returncode == 0
  finally:
    server.terminate()
    server.wait()
