"""The command `infini-jax`: train, eval, report and more. A wrong input gives exit status 2."""

import argparse
import contextlib
import functools
import importlib.metadata
import os
import platform
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from rich.console import Console

import infini_jax
from infini_jax import buckets, cpu
from infini_jax.config import SYSTEMS, Config, load_config
from infini_jax.convert import command as conversion
from infini_jax.failures import status_of
from infini_jax.paths import folder_to_write, local
from infini_jax.progress import make_console
from infini_jax.sweep import command as sweeping

CONFIG_HELP = "a Python file with get_config(); any field is set by --config.section.field=value"
TASK_HELP = (
  "some of perplexity, passkey, needle, recall, summarization, chat, gates, knockout (the run's "
  "own task with every ablation), surgery (what it cost to adapt an original); default: the task "
  "of the training, and the gates"
)
BRANCH_HELP = "begin a new workdir from a checkpoint (--step) of this run (docs/optimizers.md)"
STEP_HELP = "which checkpoint; the newest by default"
TEMPLATE_HELP = "own, plain, file:FILE (default %(default)s; docs/chat.md)"
EMA_HELP = "the moving average of the parameters (config.optimizer.ema), not their last values"

AUTO = "auto"  # of `config.run.compilation_cache`: the user's own folder
END_SECONDS = 5  # how long the threads of libraries may take to end
STOPPED = 75  # the status of a training that was stopped before its last step: EX_TEMPFAIL

PROCESS_FLAGS = (
  ("--coordinator", "HOST:PORT", "with many processes: where process 0 can be reached"),
  ("--processes", "N", "how many; auto: as many as the cluster says (a Slurm step, TPU hosts)"),
  ("--process", "I", "the number of this process, from 0"),
)


def program(argv: list[str] | None = None) -> NoReturn:
  """Runs one command as the whole process, and ends it with the command's exit status.

  After a failed save, threads of Orbax wait for minutes for parts that never come, and Python waits
  for threads. Nothing is left to do then.
  """
  cpu.set_flags(os.environ)
  status = main(argv)
  sys.stdout.flush()
  sys.stderr.flush()
  late = threading.Timer(END_SECONDS, os._exit, (status,))
  late.daemon = True
  late.start()
  sys.exit(status)


def main(argv: list[str] | None = None) -> int:
  """Runs one command; returns its exit status."""
  parser = _parser()
  argv = sys.argv[1:] if argv is None else argv
  if not argv:
    parser.print_help()
    return 0
  args, rest = parser.parse_known_args(argv)
  args.typed = shlex.join(["infini-jax", *argv])
  if "config" in args:
    rest = [*(f"--config={file}" for file in args.config or ()), *rest]
  elif rest and not getattr(args, "runner", None):  # Beam's flags are its own
    parser.error(f"unknown arguments: {' '.join(rest)}")
  console = make_console()
  try:
    status = args.run(args, rest, console) or 0
  except (FloatingPointError, KeyboardInterrupt, OSError, RuntimeError, ValueError) as error:
    status = status_of(args.command, error)
  try:
    buckets.flush()
  except (KeyboardInterrupt, OSError, ValueError) as error:
    return status_of(args.command, error) or status
  return status


def _train(args: argparse.Namespace, rest: list[str], console: Console) -> int:
  with _all_processes(args, console) as check_alike:
    from infini_jax.training.branch import branch_of
    from infini_jax.training.loop import train

    branch = branch_of(args.branch, args.step)
    config = load_config(rest, branch and branch.config(), _notice(console))
    check_alike(config)

    _remember_programs(config)
    if config.model.run.remat == "auto":
      from infini_jax.plan.remat import settled_here

      config = settled_here(config, _notice(console))
    state = train(config, args.workdir, console, branch)
    status = 0 if int(state.step) >= config.train.steps else STOPPED
  return status


def _eval(args: argparse.Namespace, rest: list[str], console: Console) -> None:
  with _all_processes(args, console) as check_alike:
    from infini_jax.evaluation.evaluate import evaluate, own_config

    config = load_config(rest, own_config(args.workdir), _notice(console))
    check_alike(config)
    _remember_programs(config)
    tasks = [name for name in (args.task or "").replace(" ", "").split(",") if name]
    evaluate(config, args.workdir, console, args.step, tasks, args.typed, args.ema)


def _notice(console: Console) -> Callable[[str], None]:
  """Returns a function that prints a line as it is."""
  return lambda line: console.print(line, soft_wrap=True, highlight=False)


def _remember_programs(config: Config) -> None:
  """Keeps compiled programs for later runs."""
  name = config.model.run.compilation_cache
  if not name or (name == AUTO and os.environ.get("JAX_COMPILATION_CACHE_DIR")):
    return
  if name == AUTO:
    folder = cpu.programs(os.environ)
    if folder is None:  # there is no place for them
      return
  else:
    folder = folder_to_write(name, "config.run.compilation_cache")
  import jax

  jax.config.update("jax_compilation_cache_dir", str(folder))


@contextlib.contextmanager
def _all_processes(
  args: argparse.Namespace, console: Console
) -> Iterator[Callable[[Config], None]]:
  """Joins the other processes of this command, if there are any, and ends together with them.

  The body contains every check that may fail in one process alone; otherwise the others would wait
  for it. Yields a function that compares the config and other settings with those of the others.
  """
  from infini_jax import processes

  how = processes.settings(os.environ, args.coordinator, args.processes, args.process)
  joined = processes.start(how)
  check_alike = functools.partial(processes.check_alike, args)
  if not joined:
    yield check_alike
    return
  console.quiet = processes.process_index() > 0
  try:
    with processes.guard():
      yield check_alike
      processes.finish()
  except processes.PeerStopped as error:
    print(f"infini-jax {args.command}: {error}", file=sys.stderr)
    processes.give_up(error.status)
  except BaseException as error:
    why = " ".join(str(error).split()) or type(error).__name__
    together = not isinstance(error, KeyboardInterrupt)
    processes.give_up(status_of(args.command, error), together=together, why=why)


def _prepare(args: argparse.Namespace, rest: list[str], console: Console) -> None:
  from infini_jax.data import command

  command.run(args, rest, console)


def _plan(args: argparse.Namespace, rest: list[str], console: Console) -> int:
  # The table of memories reads the sections of all memory systems, so no notice is printed.
  say = (lambda line: None) if args.table == "memory" else _notice(console)
  config = load_config(rest, say=say)
  from infini_jax.plan.command import plan

  def config_of(mixer: str) -> Config:
    carry = f"--config.data.carry_state={config.data.carry_state and not SYSTEMS[mixer].grows}"
    alone = [f"--config.model.mixer={mixer}", "--config.model.pattern=()"]
    return load_config([*rest, *alone, carry])

  return 0 if plan(config, args, console, config_of) else 1


def _convert(args: argparse.Namespace, rest: list[str], console: Console) -> None:
  conversion.convert(args, console)


def _report(args: argparse.Namespace, rest: list[str], console: Console) -> None:
  from infini_jax.report.page import report

  report(args.workdir, args.out, console)


def _verify(args: argparse.Namespace, rest: list[str], console: Console) -> int:
  from infini_jax.runs.verify import verify

  return 0 if verify(local(args.path, "PATH"), console) else 1


def _generate(args: argparse.Namespace, rest: list[str], console: Console) -> None:
  from infini_jax.inference.command import generate

  generate(args, console)


def _chat(args: argparse.Namespace, rest: list[str], console: Console) -> None:
  from infini_jax.inference.terminal import chat

  chat(args, console)


class _Parser(argparse.ArgumentParser):
  """A parser that reports a wrong command in one line."""

  def error(self, message: str) -> NoReturn:
    """Exits with the status of a wrong input."""
    self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


class _Version(argparse.Action):
  """Prints the versions of the package and of JAX. Nothing is imported, and no device is used."""

  def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
    """Prints them, and exits."""
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax"))
    about = ", ".join([*versions, f"Python {platform.python_version()}"])
    print(f"{parser.prog} {infini_jax.__version__} ({about})")
    parser.exit()


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(prog="infini-jax", description=__doc__, allow_abbrev=False)
  parser.add_argument("--version", action=_Version, nargs=0, help="print the versions, and exit")
  commands = parser.add_subparsers(dest="command", required=True)

  def command(name, run, description):
    made = commands.add_parser(name, help=description, description=description, allow_abbrev=False)
    made.set_defaults(run=run)
    return made

  for name, run, what in (
    ("train", _train, "train a config, or continue the run in its workdir"),
    ("eval", _eval, "perplexity of documents, or recall of a task, with the memory and without"),
  ):
    made = command(name, run, what)
    own = "; default: the run's own config, which also gives all fields not set" * (name == "eval")
    made.add_argument("--config", action="append", metavar="FILE", help=CONFIG_HELP + own)
    made.add_argument("--workdir", required=True, help="the folder of the run")
    for flag, value, help in PROCESS_FLAGS:
      made.add_argument(flag, metavar=value, help=help)
    made.add_argument("--step", type=int, help=STEP_HELP)
    if name == "train":
      made.add_argument("--branch", metavar="RUN", help=BRANCH_HELP)
    else:
      made.add_argument("--ema", action="store_true", help=EMA_HELP)
      made.add_argument("--task", metavar="A,B,...", help=TASK_HELP)

  made = command("prepare", _prepare, "tokenize a corpus once, and write a store for training")
  made.add_argument(
    "--source",
    required=True,
    help="a folder of text, jsonl:FILES, parquet:FILES, tfds:NAME or hf:NAME (docs/data.md)",
  )
  made.add_argument("--out", required=True, help="the store's folder")
  made.add_argument(
    "--tokenizer",
    default="bytes",
    help="bytes, train:SIZE, sentencepiece:FILE or huggingface:FILE (default %(default)s)",
  )
  made.add_argument(
    "--min-tokens", type=int, default=1, help="leave shorter documents out (default %(default)s)"
  )
  made.add_argument("--workers", type=int, help="processes; all cores by default")
  how = made.add_mutually_exclusive_group()
  how.add_argument("--part", metavar="I/N", help="on N machines: write part I alone, from 1")
  how.add_argument("--join", action="store_true", help="complete the store from all its parts")
  how.add_argument("--runner", help="a runner of Apache Beam, with its own flags as --name=value")

  made = command("plan", _plan, "what a run needs, how fast it can be, whether it fits")
  made.add_argument("--config", action="append", metavar="FILE", help=CONFIG_HELP)
  made.add_argument("--topology", help="TPUs (v5e:4x4, v5p:4x4x4) or GPUs (h200:8, h100:4x8)")
  made.add_argument("--mesh", help="such as fsdp=16,seq=4, instead of config.mesh")
  made.add_argument("--chip", help="with --mesh alone: v5p (default), v5e, v6e, h200 and others")
  made.add_argument(
    "--no-compile", dest="compile", action="store_false", help="with a topology: the estimate alone"
  )
  made.add_argument(
    "--table",
    choices=["memory"],
    help="only the size of each memory system's state, at these sizes",
  )
  made.add_argument("--json", metavar="FILE", help="also write the plan to this file")

  what = "convert pretrained weights to a run, or a run to a folder for transformers"
  conversion.add_arguments(command("convert", _convert, what))

  what = "train a config once for each combination of some fields' values"
  sweeping.add_sweep(command("sweep", sweeping.sweep, what))
  what = "a table of runs: in what their configs differ, and their figures, the best first"
  sweeping.add_compare(command("compare", sweeping.compare, what))

  made = command("report", _report, "one HTML page with runs and the results of their evaluations")
  made.add_argument(
    "--workdir", required=True, action="append", help="the folder of a run; give it again for more"
  )
  made.add_argument("--out", metavar="FILE", help="default: report.html there, or beside several")

  what = "compare a run, a store, a checkpoint or a saved state with the bytes that were written"
  made = command("verify", _verify, what)
  made.add_argument("path", metavar="PATH", help="its folder or file")

  made = command("generate", _generate, "read a text of any length, and continue it")
  made.add_argument("--workdir", help="the folder of the run")
  made.add_argument(
    "--load-state",
    metavar="FILE",
    help="start from a saved state; without --workdir, its own run is used",
  )
  made.add_argument("--save-state", metavar="FILE", help="save the state at the end to this file")
  prompt = made.add_mutually_exclusive_group()
  prompt.add_argument("--prompt", help="the text to continue")
  prompt.add_argument("--prompt-file", help="a file of text; - is standard input, of any length")
  prompt.add_argument("--prompt-document", help="SPLIT:NUMBER, a document of the run's own corpus")
  made.add_argument("--ask", help="a question, in the chat template of the model")
  made.add_argument("--ask-about", metavar="FILE", help="with --ask: a text, read before it")
  made.add_argument("--chat-template", default="own", help=TEMPLATE_HELP)
  made.add_argument("--prompt-tokens", type=int, help="read at most so many tokens of the prompt")
  made.add_argument(
    "--tokens", type=int, default=200, help="how many to write; 0: only read (default %(default)s)"
  )
  _add_sampling(made)
  made.add_argument(
    "--stop",
    action="append",
    default=[],
    help=r"text that ends it, not shown; may be repeated (\n, \t, \r as in Python, \\ a backslash)",
  )

  made = command("chat", _chat, "talk with a model in the terminal, also about files")
  made.add_argument("--workdir", required=True, help="the folder of the run")
  made.add_argument("--chat-template", default="own", help=TEMPLATE_HELP)
  made.add_argument(
    "--tokens", type=int, default=512, help="the most of an answer (default %(default)s)"
  )
  _add_sampling(made)
  return parser


def _add_sampling(made: argparse.ArgumentParser) -> None:
  made.add_argument(
    "--temperature", type=float, default=0.8, help="0 is greedy (default %(default)s)"
  )
  made.add_argument("--top-p", type=float, default=0.95, help="default %(default)s")
  made.add_argument(
    "--top-k", type=int, default=0, help="draw from the k likeliest tokens; 0: from all"
  )
  made.add_argument(
    "--repetition-penalty",
    type=float,
    default=1.0,
    help="above 1: the last 256 tokens are less likely",
  )
  made.add_argument("--seed", type=int, default=0)
  made.add_argument("--step", type=int, help=STEP_HELP)
  made.add_argument("--ema", action="store_true", help=EMA_HELP)


if __name__ == "__main__":
  program()
