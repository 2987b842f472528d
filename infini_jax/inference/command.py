"""`infini-jax generate`: restore a run, read a prompt whole, write what follows."""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from infini_jax.config import Config, InputError, MeshConfig
from infini_jax.data import Document, Store, Tokenizer, load_saved, read_text
from infini_jax.inference.generate import Generator
from infini_jax.inference.sampling import Sampling
from infini_jax.models import abstract_params
from infini_jax.parallel import make_mesh
from infini_jax.progress import track
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.workdir import Workdir


def generate(args: argparse.Namespace, console: Console) -> None:
  """Restores the newest checkpoint and continues the prompt on standard output.

  Raises:
    InputError: no run, no checkpoint, or no such prompt.
  """
  sampling = Sampling(args.temperature, args.top_p)
  if args.tokens < 1:
    raise InputError(f"--tokens={args.tokens}: must be at least 1")
  workdir = Workdir(args.workdir)
  config = workdir.config()
  tokenizer = load_saved(workdir.tokenizer)
  name, ids = _prompt(args, config, workdir, tokenizer)
  prompt = np.concatenate([[tokenizer.bos], ids]).astype(np.int32)

  mesh = make_mesh(MeshConfig(data=1), jax.local_devices()[:1])
  with jax.set_mesh(mesh):
    params, step = Checkpoints(workdir).restore_params(
      abstract_params(config.model, mesh), args.step
    )
    generator = Generator(config, params)
    errors = Console(stderr=True)
    errors.print(f"step {step}; {name}: {len(prompt):,} tokens", highlight=False)
    started = time.perf_counter()
    with track(errors, "read", len(prompt)) as bar:
      logits_BV, stream = generator.prefill([prompt], advance=bar)
      logits_BV.block_until_ready()
    read_seconds = time.perf_counter() - started
    state_bytes = sum(x.nbytes for x in jax.tree.leaves(stream))
    tail = tokenizer.decode(ids[-60:].tolist())
    errors.print(f"[dim]... {tail[-200:]!r} ->[/dim]", highlight=False)
    written, speed = _write(
      generator.decode(logits_BV, stream, args.tokens, sampling, args.seed), tokenizer, ids
    )
  errors.print(
    f"\nread {len(prompt):,} tokens in {read_seconds:.1f} s, wrote {written} at {speed:,.0f} "
    f"tokens/s; the state is {state_bytes / 1e6:.2f} MB",
    highlight=False,
  )


def _write(
  tokens: Iterator[np.ndarray], tokenizer: Tokenizer, before: np.ndarray
) -> tuple[int, float]:
  """Prints text as soon as its characters are whole, up to the document's end.

  Returns:
    How many tokens were written, and how many a second: by the median, which leaves compiling out.
  """
  ids = before[-8:].tolist()  # a piece may be written differently after another
  shown = len(tokenizer.decode(ids))
  times = [time.perf_counter()]
  for token_B in tokens:
    if int(token_B[0]) == tokenizer.eos:
      break
    times.append(time.perf_counter())
    ids.append(int(token_B[0]))
    text = tokenizer.decode(ids)
    if not text.endswith("\ufffd"):  # half a character: wait for the rest
      sys.stdout.write(text[shown:])
      sys.stdout.flush()
      ids = ids[-8:]
      shown = len(tokenizer.decode(ids))
  sys.stdout.write("\n")
  return len(times) - 1, 1 / float(np.median(np.diff(times))) if len(times) > 1 else 0.0


def _prompt(
  args: argparse.Namespace, config: Config, workdir: Workdir, tokenizer: Tokenizer
) -> tuple[str, np.ndarray]:
  limit = args.prompt_tokens
  if args.prompt_document:
    split, _, number = args.prompt_document.partition(":")
    path = Path(config.data.path)
    documents = Store.open(path if (path / "store.json").exists() else workdir.store).split(split)
    if not number.isdigit() or int(number) >= len(documents):
      raise InputError(
        f"--prompt-document={args.prompt_document}: want SPLIT:NUMBER with a number below "
        f"{len(documents)}"
      )
    size = int(documents.tokens[int(number)])
    ids = documents.read(int(number), 0, min(size, limit or size))
    return f"{split} document {documents.names[int(number)]}", ids
  if args.prompt_file == "-":
    name, text = "standard input", sys.stdin.read()
  elif args.prompt_file:
    file = Path(args.prompt_file)
    if not file.is_file():
      raise InputError(f"--prompt-file={file}: no such file")
    name, text = str(file), read_text(Document(file.name, file))
  else:
    name, text = "prompt", args.prompt or ""
  return name, tokenizer.encode(text)[:limit]
