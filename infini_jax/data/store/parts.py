"""A store made by several machines: each does every n-th job, and one joins what they wrote.

A part writes the same files as a preparation by one machine. So the folders of machines without a
common disk can be copied into one. When a part is complete, it writes

parts/2-of-4.json   which part it is, the plan and the tokenizer that it was made with
"""

import collections
import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from infini_jax.config import InputError
from infini_jax.data.store.prepare import finish
from infini_jax.data.store.shards import Shard
from infini_jax.data.store.store import Store, is_store, write_json
from infini_jax.data.store.verify import verify
from infini_jax.data.store.work import PARTS, Preparation
from infini_jax.data.store.workers import Job, write_shards
from infini_jax.progress import make_console

REMEDY = "choose another --out, or give the settings of its parts"


class Portion(NamedTuple):
  """Which of the jobs one machine does: `--part`."""

  number: int  # from 1
  of: int

  @classmethod
  def parse(cls, text: str) -> "Portion":
    """The portion that a value of `--part` names.

    Raises:
      InputError: it is not two numbers with a slash, or there is no such part.
    """
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
      raise InputError(f"--part={text}: give PART/PARTS with PART from 1 to PARTS, such as 1/4")
    return cls(int(found[1]), int(found[2]))

  def __str__(self) -> str:
    return f"{self.number}/{self.of}"

  def jobs(self, every: list[Job]) -> list[Job]:
    """Its jobs; there may be none."""
    return every[self.number - 1 :: self.of]

  def file(self, out: Path) -> Path:
    """What the part writes when it is complete."""
    return out / PARTS / f"{self.number}-of-{self.of}.json"


def prepare_part(
  part: str,
  corpus: str,
  out: Path,
  tokenizer: str,
  workers: int | None = None,
  min_tokens: int = 1,
  console: Console | None = None,
) -> None:
  """Writes one part of a store, which `join_parts` completes.

  It continues after an interruption. A part of a complete store does nothing.

  Args:
    part: `PART/PARTS`: which part of how many, from 1.
    corpus: as in `prepare`; the same text on every machine.
    out: the folder of the store, one for all machines or one for each.
    tokenizer: as in `prepare`. Part 1 trains a vocabulary; the others need it.
    workers: the number of processes; by default one for each core.
    min_tokens: documents with fewer tokens are dropped.
    console: for progress.

  Raises:
    InputError: as `prepare`; or there is no such part, or no trained vocabulary yet.
  """
  console = console or make_console()
  portion = Portion.parse(part)
  work = Preparation(corpus, out, tokenizer, min_tokens, remedy=REMEDY)
  if work.is_complete:
    return console.print(f"{work.out}: is complete already", markup=False, soft_wrap=True)
  if work.is_untrained and portion.number > 1:
    raise InputError(
      f"{work.out}: has no vocabulary for --tokenizer={tokenizer} yet; start --part=1/{portion.of} "
      f"first, which trains it (if --out is another folder there, copy that folder here)"
    )
  work.introduce(console)
  jobs = portion.jobs(work.jobs)
  todo = work.todo(jobs)
  write_shards(todo, work.out, work.tokenizer, work.dtype, work.min_tokens, workers, console)
  work.check_plan()
  if jobs:
    verify(work.out, jobs, work.tokenizer, work.dtype, work.min_tokens, console)
  write_json(portion.file(work.out), _description(portion, work))
  console.print(
    f"{work.out}: part {portion} is complete; when all {portion.of} are, run the same command with "
    f"--join instead of --part",
    markup=False,
    soft_wrap=True,
  )


def join_parts(
  corpus: str, out: Path, tokenizer: str, min_tokens: int = 1, console: Console | None = None
) -> Store:
  """Completes a store from its parts, after all their records have been read.

  The files of the store are those that `prepare` makes, byte for byte.

  Args:
    corpus: the same as for the parts.
    out: the folder that holds what all parts wrote.
    tokenizer: the same as for the parts.
    min_tokens: the same as for the parts.
    console: for progress and the final table.

  Raises:
    InputError: as `prepare`; or a part is missing, incomplete, damaged, or made with something
      else.
  """
  console = console or make_console()
  if not out.is_dir() or not is_store(out):
    raise InputError(
      f"{out}: no part of a store is here; make all of them with --part, such as 1/2 and 2/2"
    )
  work = Preparation(corpus, out, tokenizer, min_tokens, remedy=REMEDY)
  if work.is_complete:
    shutil.rmtree(work.out / PARTS, ignore_errors=True)  # of a join that was interrupted
    return Store.open(work.out)
  if work.is_untrained:
    raise InputError(f"{work.out}: has no vocabulary; copy the folder of part 1 here")
  portions = _complete(work)
  with console.status(f"reading {len(work.jobs):,} corpus parts"):
    for portion in portions:
      for job in portion.jobs(work.jobs):
        for shard in job.shards(work.out):
          _check(shard, portion)
  return finish(work, console)


def _description(portion: Portion, work: Preparation) -> dict[str, Any]:
  """What the file of a complete part says."""
  return {"part": portion, **work.plan, "tokenizer_fingerprint": work.tokenizer.fingerprint}


def _complete(work: Preparation) -> list[Portion]:
  """All parts of the store.

  Raises:
    InputError: one is missing, or was made with something else.
  """
  found = _found(work.out)
  if not found:
    raise InputError(
      f"{work.out}: no part is complete; make all of them with --part, such as 1/2 and 2/2"
    )
  of = collections.Counter(portion.of for portion in found).most_common(1)[0][0]
  portions = [Portion(number, of) for number in range(1, of + 1)]
  if missing := [portion for portion in portions if portion not in found]:
    raise InputError(
      f"{work.out}: part {missing[0]} is not complete"
      + (f", nor are {len(missing) - 1} others" if missing[1:] else "")
      + f"; run it with --part={missing[0]}, or copy its folder here"
    )
  for portion in portions:
    for name, value in _description(portion, work).items():
      if name != "part" and found[portion].get(name) != value:
        raise InputError(
          f"{work.out}: part {portion} was made with other {name} ({found[portion].get(name)} "
          f"there, {value} here); make it again in a folder of its own with these settings"
        )
  return portions


def _found(out: Path) -> dict[Portion, dict[str, Any]]:
  """What the files of the complete parts say."""
  found = {}
  for file in sorted((out / PARTS).glob("*-of-*.json")):
    try:
      description = json.loads(file.read_text("utf-8"))
      found[Portion(*description["part"])] = description
    except (OSError, ValueError, KeyError, TypeError):
      raise InputError(f"{file}: cannot be read; run its part again") from None
  return found


def _check(shard: Shard, portion: Portion) -> None:
  """Reads a shard.

  Raises:
    InputError: a file of it is missing or damaged.
  """
  again = f"run --part={portion} again, or copy its files here again"
  try:
    if shard.is_finished():
      return shard.check()
    missing = shard.record_file if shard.index_file.exists() else shard.index_file
    error = InputError(f"{missing}: missing; {again}")
  except InputError as damage:
    what = str(damage).partition(";")[0]
    error = InputError(f"{what}; delete {shard.index_file}, then {again}")
  raise error
