"""The launch recipes can be parsed, and name only what exists."""

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from infini_jax import arguments, cli, config
from infini_jax.processes import joining

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
FILES = sorted(LAUNCH.iterdir())
SCRIPTS = [file for file in FILES if file.suffix in (".sh", ".sbatch")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_scripts_parse(script):
  done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def test_every_task_of_slurm_is_told_its_cores(tmp_path):
  """Since 22.05 srun does not inherit them from the batch script; a task would have one core."""
  srun = tmp_path / "srun"
  srun.write_text('#!/bin/sh\necho "$@"\n')
  srun.chmod(0o755)
  given = {"SLURM_CPUS_PER_TASK": "32", "SLURM_SUBMIT_DIR": str(tmp_path)}
  env = {"PATH": f"{tmp_path}:/usr/bin:/bin", **given}
  command = ["bash", LAUNCH / "slurm_gpu.sbatch", "--config.mesh.dcn=4"]
  done = subprocess.run(command, env=env, capture_output=True, text=True)
  assert done.returncode == 0 and "--cpus-per-task=32 " in done.stdout, done.stderr
  assert done.stdout.rstrip().endswith("--config.mesh.dcn=4"), "further flags are passed on"


def test_slurm_prepares_a_corpus_in_parts_and_joins_them(texts, tmp_path, monkeypatch):
  """Each task of the array, then the join, with the arguments that they give to a stand-in."""
  python = tmp_path / "python"
  python.write_text('#!/bin/sh\nshift 3\nprintf "%s\\n" "$@"\n')
  python.chmod(0o755)
  env = {"PATH": "/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path), "PYTHON": str(python)}
  env |= {"SLURM_CPUS_PER_TASK": "1", "SOURCE": str(texts), "OUT": "store", "WAIT": "0"}
  env |= {"TOKENIZER": "train:300"}
  monkeypatch.chdir(tmp_path)
  tasks = [{"SLURM_ARRAY_TASK_ID": f"{i}", "SLURM_ARRAY_TASK_COUNT": "2"} for i in (1, 2)]
  for task, more in ((tasks[0], []), (tasks[1] | {"PARTS": "2"}, []), ({}, ["--join"])):
    command = ["bash", LAUNCH / "prepare_slurm.sbatch", "--min-tokens=2", *more]
    done = subprocess.run(command, env=env | task, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert cli.main(done.stdout.splitlines()) == 0
  assert (tmp_path / "store" / "store.json").is_file()


KILLED = 128 + signal.SIGTERM  # before Python listened, or by a second signal
ENDS = [(0, False), (cli.STOPPED, True), (KILLED, True), (2, False), (1, False), (137, False)]


@pytest.mark.parametrize("status, requeued", ENDS)
def test_slurm_queues_a_stopped_run_again(tmp_path, status, requeued):
  """With stand-ins for srun and scontrol."""
  for name, body in (("srun", f"exit {status}"), ("scontrol", 'echo "scontrol $@"')):
    (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
    (tmp_path / name).chmod(0o755)
  env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "17"}
  env |= {"SLURM_CPUS_PER_TASK": "1", "SLURM_SUBMIT_DIR": str(tmp_path)}
  command = ["bash", LAUNCH / "slurm_gpu.sbatch"]
  done = subprocess.run(command, env=env, capture_output=True, text=True)
  assert done.returncode == status, "Slurm's record of the job has the status of the training"
  assert ("scontrol requeue 17" in done.stdout) == requeued, done.stdout


def restarts(manifest, status):
  """A stand-in for the JobSet controller: what happens after a pod ends with this status."""
  spec = manifest["spec"]
  (job,) = spec["replicatedJobs"]
  if status == 0:
    return "done"
  reason = "BackoffLimitExceeded"
  for rule in job["template"]["spec"]["podFailurePolicy"]["rules"]:
    codes = rule["onExitCodes"]
    pods = job["template"]["spec"]["template"]["spec"]["containers"]
    assert codes["containerName"] in {pod["name"] for pod in pods}
    if codes["operator"] == "In" and status in codes["values"] and rule["action"] == "FailJob":
      reason = "PodFailurePolicy"
  for rule in spec["failurePolicy"]["rules"]:
    if reason in rule["onJobFailureReasons"]:
      return rule["action"]
  return "RestartJobSet"


def test_kubernetes_restarts_a_stopped_run_without_counting_it():
  manifest = yaml.safe_load(filled_manifest())
  for status in (cli.STOPPED, KILLED):
    assert restarts(manifest, status) == "RestartJobSetAndIgnoreMaxRestarts"
  assert restarts(manifest, 1) == "RestartJobSet" and restarts(manifest, 0) == "done"


def filled_manifest():
  text = (LAUNCH / "gke_jobset.yaml").read_text()
  values = {"SLICES": "2", "HOSTS": "4", "CHIPS": "4"}
  return re.sub(r"\$\{(\w+)\}", lambda found: values.get(found[1], "x"), text)


def test_manifest_is_a_jobset_whose_hosts_agree():
  manifest = yaml.safe_load(filled_manifest())
  (job,) = manifest["spec"]["replicatedJobs"]
  job_spec = job["template"]["spec"]
  assert (manifest["kind"], job["replicas"]) == ("JobSet", 2)
  assert job_spec["parallelism"] == job_spec["completions"] == 4
  pod = job_spec["template"]["spec"]
  (container,) = pod["containers"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  assert [m["name"] for m in container["volumeMounts"]] == [v["name"] for v in pod["volumes"]]
  text = (LAUNCH / "gke_jobset.yaml").read_text()
  given = set(re.findall(r"(\w+)=", text.split("envsubst")[0]))
  assert set(re.findall(r"\$\{(\w+)\}", text)) <= given, "a parameter is not told of"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_is_named_exists(file):
  text = file.read_text()
  for path in re.findall(r"\b(?:configs|launch)/\w+\.\w+|\b(?:train|eval)\.py", text):
    assert (ROOT / path).is_file(), path
  for section, field in re.findall(r"config\.(\w+)\.(\w+)", text):
    if (section, field) != ("section", "field"):
      config.check_name(section, field)
  source = Path(joining.__file__).read_text()
  for name in re.findall(r"INFINI_(\w+)", text):
    known = f'"INFINI_{name}"' in source or f"--{name.lower()}" in dict(flags())
    assert known, f"INFINI_{name} is never read"
  for flag in re.findall(
    r"(?:train\.py|eval\.py|auto|train) .*?(--(?:process\w*|coordinator))", text
  ):
    assert flag in dict(flags()), flag
  assert not re.search(r"(?<![\w}])/(?:home|root|work)/", text), "a path of one machine"


def flags():
  return [(flag, value) for flag, value, _ in arguments.PROCESS_FLAGS]


def instructions():
  """The instructions of the Dockerfile, in order: a name and its text, with its lines joined."""
  lines = (line for line in (LAUNCH / "Dockerfile").read_text().splitlines() if line[:1] != "#")
  joined = "\n".join(lines).replace("\\\n", " ")
  return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def test_the_image_has_locked_packages_and_ends_by_a_signal():
  found = instructions()
  last = {name: text for name, text in found}  # of the stage that is kept
  assert json.loads(last["ENTRYPOINT"]) == ["tini", "--", "infini-jax"], "no shell takes the signal"
  assert last["STOPSIGNAL"] == "SIGTERM" and json.loads(last["CMD"]) == ["--help"]
  assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"]), "a number that is not root's"
  names = [name for name, _ in found]
  assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))
  installs = [text for name, text in found if name == "RUN" and "pip install" in text]
  assert all("--require-hashes" in text or "--no-deps" in text for text in installs)
  assert "requirements.lock" in installs[0] and "locks/${extra}.lock" in installs[0]


def test_the_builder_gets_every_file_of_the_image_and_no_other():
  """As Docker reads .dockerignore: the last pattern that fits decides."""
  sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
  copied = []
  for name, text in instructions():
    if name == "COPY" and "--from=" not in text:
      *paths, _ = [part for part in text.split() if not part.startswith("--")]
      copied += paths
  assert sorted(path.removeprefix("./") for path in copied) == sorted(sent)
  assert all((ROOT / path).exists() for path in sent)
  assert {"runs", ".venv", ".git", "build"}.isdisjoint(sent)


def test_every_way_to_build_the_image_names_extras_that_are_locked():
  text = (LAUNCH / "README.md").read_text() + (LAUNCH / "Dockerfile").read_text()
  built = re.findall(r'--build-arg EXTRAS="([^"]*)"', text)
  extras = {extra for names in built for extra in names.split()}
  assert {"gpu", "tpu"} <= extras
  assert all((ROOT / "locks" / f"{extra}.lock").is_file() for extra in extras - {"serve"})
