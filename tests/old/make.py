"""Writes the files of this folder. It runs with the code of the commit that README.md names.

The working directory is the folder to write to, so that all recorded paths are relative.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np

SEEN = "a small text of several segments that every run reads before it writes"
SHOWN = 33  # one logit in so many is kept
SYSTEMS = {
  "infini": ("model.rule=delta",),
  "full": ("data.carry_state=False", "evaluation.input_tokens=64"),
  "compressive": ("model.compression_rate=4", "model.compressed_memory=6"),
  "memorizing": ("model.knn_layers=(2,)", "model.knn_memory=40", "model.knn_top=5"),
  "rmt": ("model.summary_tokens=3",),
}
CONFIG = """
from infini_jax.config import base_config


def get_config():
  c = base_config()
  m, d, e = c.model, c.data, c.evaluation
  m.layers, m.width, m.heads, m.kv_heads, m.head_dim, m.ffn = 2, 16, 2, 2, 8, 32
  m.vocab_size, m.segment_length, m.remat = 264, 16, "none"
  d.path, d.lanes, d.segments = "store", 8, 2
  e.lanes, e.segments = 8, 2
  c.optimizer.warmup_steps, c.optimizer.learning_rate = 2, 1e-2
  c.train.log_every, c.train.checkpoint_every, c.train.tensorboard = 1, 100, False
  c.mesh.data = 8
  return c
"""
FLAGS = (
  "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
  "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
ADAPTED = ("model.mixer=infini", "model.write_gate=True", "model.lora_rank=2")
ADAPTED += ("model.gate_init=-5.0", "train.part=lora", "train.start_from=full")
OTHERS = (*(name for name in SYSTEMS if name != "infini"), "adapted")


def command(*words: str) -> None:
  devices = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS}
  code = "import sys; from infini_jax.cli import main; sys.exit(main())"
  subprocess.run([sys.executable, "-c", code, *words], check=True, env={**os.environ, **devices})


def train(workdir: str, steps: int, *flags: str) -> None:
  command(
    *("train", "--config=base.py", f"--workdir={workdir}", f"--config.train.steps={steps}"),
    *(f"--config.{flag}" for flag in flags),
  )


def logits(path: str, **how: str) -> list[float]:
  """Some of the logits after `SEEN`."""
  from infini_jax.inference import Session

  session = Session.load(path, **how)
  tokens = [session.tokenizer.bos, *session.tokenizer.encode(SEEN)]
  engine, stream = session.run.engine, session.run.engine.start(1)
  for i in range(0, len(tokens), engine.segment):
    found_BV, stream = engine.extend(stream, [tokens[i : i + engine.segment]])
  return [round(float(x), 6) for x in np.asarray(found_BV[0, ::SHOWN])]


def make() -> None:
  letters = np.array(list("abcdefghij klmno pqrs tuvw xyz.\n"))
  rng = np.random.default_rng(0)
  for split, count in (("train", 8), ("validation", 2), ("test", 3)):
    Path("texts", split).mkdir(parents=True, exist_ok=True)
    for i in range(count):
      text = "".join(rng.choice(letters, 150 + int(rng.integers(300))))
      Path("texts", split, f"{i}.txt").write_text(text)
  Path("base.py").write_text(CONFIG)
  command("prepare", "--source=texts", "--out=store", "--workers=1")
  for name, fields in SYSTEMS.items():
    train(name, 3 if name == "infini" else 1, f"model.mixer={name}", *fields)
  train("adapted", 1, *ADAPTED)
  command("eval", "--workdir=infini", "--task=perplexity,gates")
  command("convert", "export", "infini", "export")
  command("convert", "adapter", "adapted", "adapter")
  Path("states").mkdir(exist_ok=True)
  read = ("--workdir=infini", f"--prompt={SEEN}", "--tokens=0", "--save-state=states/text.state")
  command("generate", *read)

  from infini_jax.inference import Session

  found = {name: logits(name) for name in ("infini", *OTHERS)}
  pieces = Session.load("states/text.state").generate(8, temperature=0.0)
  shutil.copytree("infini", "longer")
  train("longer", 5, "model.mixer=infini", *SYSTEMS["infini"])
  lines = [json.loads(line) for line in Path("longer", "metrics.jsonl").read_text().splitlines()]
  losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
  written = [piece.token for piece in pieces]
  numbers = {"seen": SEEN, "logits": found, "written": written, "losses": losses}
  Path("numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
  pack()


def pack() -> None:
  """Writes the archive: the same files give the same bytes. Leaves out what no test reads."""
  for folder in ("longer", "texts", *(f"{name}/checkpoints/1/rest" for name in OTHERS)):
    shutil.rmtree(folder)
  with tarfile.open("old.tar.xz", "w:xz", preset=9) as archive:
    for path in sorted(Path().rglob("*")):
      if path.is_file() and len(path.parts) > 1 and path.suffix not in (".png", ".html"):
        info = archive.gettarinfo(path)
        info.mtime, info.mode, info.uid, info.gid, info.uname, info.gname = 0, 0o644, 0, 0, "", ""
        with path.open("rb") as opened:
          archive.addfile(info, opened)


if __name__ == "__main__":
  make()
