"""The same preparation as an Apache Beam pipeline, on any of its runners.

The only file that imports apache_beam, which is an extra and slow to import.
"""

import contextlib
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from infini_jax.config import InputError
from infini_jax.data.store.prepare import finish
from infini_jax.data.store.store import Store
from infini_jax.data.store.work import Preparation
from infini_jax.data.store.workers import Job, write_job, write_shards
from infini_jax.data.tokenizers import Tokenizer, load_saved
from infini_jax.progress import make_console
from infini_jax.quiet import quiet

SHOWN = 300  # the most characters of an error of Beam in a message


def prepare_with_beam(
  runner: str,
  flags: Sequence[str],
  corpus: str,
  out: Path,
  tokenizer: str,
  min_tokens: int = 1,
  console: Console | None = None,
) -> Store:
  """Tokenizes a corpus into a store, each job by a worker of Beam.

  The store is that of `prepare`, byte for byte. It continues after an interruption. Every worker
  must find the corpus and `out` at the same paths as this process.

  Args:
    runner: the name of the runner, such as DirectRunner, DataflowRunner or FlinkRunner.
    flags: further flags of Beam and of the runner, each as `--name=value` or `--name`.
    corpus: as in `prepare`.
    out: the folder of the store.
    tokenizer: as in `prepare`. A vocabulary is trained before the pipeline starts.
    min_tokens: documents with fewer tokens are dropped.
    console: for progress and the final table.

  Raises:
    InputError: as `prepare`; Beam is not installed, does not have the runner or a flag, or fails.
  """
  console = console or make_console()
  options = _options(runner, flags)
  work = Preparation(corpus, out.absolute(), tokenizer, min_tokens)
  if work.is_complete:
    return Store.open(work.out)
  work.introduce(console)
  write = functools.partial(
    _write, out=work.out, dtype=work.dtype, min_tokens=work.min_tokens
  )  # the type of the ids needs the tokenizer: from here on it is saved in `out`
  if todo := work.todo(work.jobs):
    with console.status(f"{runner}: {len(todo):,} of {len(work.jobs):,} corpus parts"):
      _run(todo, write, options, runner)
  if left := work.todo(todo):
    rest = (work.out, work.tokenizer, work.dtype, work.min_tokens, 1, console)
    write_shards(left[:1], *rest)  # where a document is at fault, this names it
    raise InputError(
      f"{work.out}: {len(left):,} of {len(todo):,} corpus parts were not written by the workers of "
      f"{runner}; they must find --source and --out at the same paths as this machine"
    )
  return finish(work, console)


def _options(runner: str, flags: Sequence[str]) -> Any:
  """The options of the pipeline.

  Raises:
    InputError: Beam is not installed, or does not have the runner or a flag.
  """
  try:
    with quiet():
      from apache_beam.options.pipeline_options import PipelineOptions
      from apache_beam.runners import PipelineRunner, create_runner
      from apache_beam.runners.portability.portable_runner import PortableRunner
  except ImportError:
    raise InputError(
      f"--runner={runner}: needs the package apache-beam, in an environment of its own: make "
      f"extra-beam, or pip install -e '.[beam]'"
    ) from None
  try:
    with quiet():
      made = create_runner(runner)
  except (ImportError, AttributeError, TypeError, ValueError):
    made = None
  if not isinstance(made, PipelineRunner):
    raise InputError(
      f"--runner={runner}: Beam has no such runner, or not its packages; choose DirectRunner, "
      f"DataflowRunner (pip install 'apache-beam[gcp]'), FlinkRunner, SparkRunner or PortableRunner"
    )
  options, said = PipelineOptions([f"--runner={runner}", *flags]), io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      given = options.get_all_options(retain_unknown_options=True)
  except SystemExit:  # of the parser of Beam
    raise InputError(
      f"--runner={runner}: {said.getvalue().rpartition('error: ')[2].strip()}"
    ) from None
  unknown = [f"--{name}" for name in given.keys() - PipelineOptions([]).get_all_options().keys()]
  loose = [flag for flag in flags if not flag.startswith("--")]
  if loose or (unknown and not isinstance(made, PortableRunner)):  # that one asks its job server
    raise InputError(
      f"--runner={runner}: unknown {(loose or sorted(unknown))[0]}; give flags of infini-jax "
      f"prepare, and of the runner as --name=value"
    )
  return options


def _run(jobs: list[Job], write: functools.partial, options: Any, runner: str) -> None:
  """Runs the pipeline to its end.

  Raises:
    InputError: it failed.
  """
  import apache_beam as beam

  again = "the same command continues"
  try:
    with quiet():
      pipeline = beam.Pipeline(options=options)
      pieces = pipeline | "pieces" >> beam.Create(jobs, reshuffle=False)
      pieces | "to all workers" >> beam.Reshuffle() | "write" >> beam.Map(write)
      state = pipeline.run().wait_until_finish()
  except Exception as error:  # of any class: workers, runners and services raise their own
    raise InputError(f"--runner={runner}: {_line(error)}; {again}") from None
  if state not in (None, "DONE"):
    raise InputError(f"--runner={runner}: the pipeline ended as {state}; {again}")


def _write(job: Job, out: Path, dtype: str, min_tokens: int) -> None:
  """What a worker does. A job that fails for a wrong input leaves no shard; it is done again."""
  with contextlib.suppress(InputError):
    write_job(job, out, _tokenizer(out), dtype, min_tokens)


@functools.lru_cache(1)
def _tokenizer(out: Path) -> Tokenizer:
  """The tokenizer of a store, loaded once in each worker."""
  return load_saved(out)


def _line(error: BaseException) -> str:
  """An error of Beam in one line: the last one of those that a worker's traceback ends with."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return (lines[-1] if lines else type(error).__name__)[:SHOWN]
