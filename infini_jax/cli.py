"""The command `infini-jax`: train, eval, report and more. A wrong input gives exit status 2."""

import argparse
import contextlib
import functools
import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

from rich.console import Console

from infini_jax import buckets, cpu
from infini_jax.arguments import make_parser
from infini_jax.config import SYSTEMS, Config, InputError, load_config
from infini_jax.convert import command as conversion
from infini_jax.failures import status_of
from infini_jax.paths import folder_to_write, local
from infini_jax.progress import make_console
from infini_jax.quiet import ignore_late_answers
from infini_jax.sweep import command as sweeping
from infini_jax.training.stop_signal import STOPPED, StopSignal

AUTO = "auto"  # of `config.run.compilation_cache`: the user's own folder
END_SECONDS = 5  # how long the threads of libraries may take to end


def program(argv: list[str] | None = None) -> NoReturn:
  """Runs one command as the whole process, and ends it with the command's exit status.

  After a failed save, threads of Orbax wait for minutes for parts that never come, and Python waits
  for threads. Nothing is left to do then.
  """
  for name in ("stdout", "stderr"):
    if getattr(sys, name) is None:  # closed, as by a shell's >&-
      setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
  ignore_late_answers()
  status = main(argv, alone=True)
  sys.stdout.flush()
  sys.stderr.flush()
  late = threading.Timer(END_SECONDS, os._exit, (status,))
  late.daemon = True
  late.start()
  sys.exit(status)


def main(argv: list[str] | None = None, alone: bool = False) -> int:
  """Runs one command; returns its exit status.

  Args:
    argv: the arguments; by default those of this process.
    alone: whether the command is the whole process, so that it may set XLA's flags.
  """
  parser = make_parser(COMMANDS)
  argv = sys.argv[1:] if argv is None else argv
  if not argv:
    parser.print_help()
    return 0
  args, rest = parser.parse_known_args(argv)
  args.typed, args.alone = shlex.join(["infini-jax", *argv]), alone
  if "config" in args:
    rest = [*(f"--config={file}" for file in args.config or ()), *rest]
  elif rest and not (getattr(args, "runner", "") or "passes" in args):  # flags of Beam and lm_eval
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
  with StopSignal() as stop, _all_processes(args, console) as check_alike:
    from infini_jax import processes
    from infini_jax.training.branch import branch_of
    from infini_jax.training.loop import train

    stop.end = processes.stop_all
    branch = branch_of(args.branch, args.step)
    config = load_config(rest, branch and branch.config(), _notice(console))
    _set_up(args, config)
    check_alike(config)

    if config.model.run.remat == "auto":
      from infini_jax.plan.remat import settled_here

      config = settled_here(config, _notice(console))
    state = train(config, args.workdir, console, branch)
    status = 0 if int(state.step) >= config.train.steps else STOPPED
  return status


def _eval(args: argparse.Namespace, rest: list[str], console: Console) -> None:
  with _all_processes(args, console) as check_alike:
    from infini_jax.evaluation.evaluate import evaluate
    from infini_jax.evaluation.tasks import datasets_of
    from infini_jax.runs.workdir import Workdir

    tasks = [name for name in (args.task or "").replace(" ", "").split(",") if name]
    config = load_config(
      rest, Workdir(args.workdir).config_here(), _notice(console), datasets_of(tasks)
    )
    _set_up(args, config)
    check_alike(config)
    evaluate(config, args.workdir, console, args.step, tasks, args.typed, args.ema)


def _notice(console: Console) -> Callable[[str], None]:
  """Returns a function that prints a line as it is."""
  return lambda line: console.print(line, soft_wrap=True, highlight=False)


def _set_up(args: argparse.Namespace, config: Config | None) -> None:
  """Sets XLA's flags, and keeps compiled programs for later commands, as a config says.

  Only a process that is nothing but this command sets flags. A command without a run has no config.
  """
  if config is None:
    return
  if args.alone:
    cpu.set_flags(os.environ, config.model.run.compute_dtype)
  name = config.model.run.compilation_cache
  if not name or (name == AUTO and os.environ.get("JAX_COMPILATION_CACHE_DIR")):
    return
  if name == AUTO:
    folder = cpu.programs(os.environ)
    if folder is None:  # there is nowhere to write them
      return
  else:
    folder = folder_to_write(name, "config.run.compilation_cache")
  import jax

  jax.config.update("jax_compilation_cache_dir", str(folder))


def _config(args: argparse.Namespace) -> Config | None:
  """The config of the run of a command, or of the run that its state names.

  None if there is no run: the command reports it, after it has checked its flags.
  """
  from infini_jax.inference.saved import config_of
  from infini_jax.runs.workdir import Workdir

  state = getattr(args, "load_state", None)
  if args.workdir:
    with contextlib.suppress(InputError):
      return Workdir(args.workdir).config_here()
    return None
  return config_of(state) if state else None


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


def _card(args: argparse.Namespace, rest: list[str], console: Console) -> None:
  from infini_jax.report.card import write

  write(args.path, args.out, console)


def _verify(args: argparse.Namespace, rest: list[str], console: Console) -> int:
  from infini_jax.runs.verify import verify

  return 0 if verify(local(args.path, "PATH"), console) else 1


def _generate(args: argparse.Namespace, rest: list[str], console: Console) -> None:
  from infini_jax.inference.command import generate

  _set_up(args, _config(args))
  generate(args, console)


def _serve(args: argparse.Namespace, rest: list[str], console: Console) -> int:
  from infini_jax.runs.workdir import Workdir

  try:
    from infini_jax.serve.command import serve
  except ImportError as error:
    missing = error.name or "a package"
    raise InputError(f"serve needs {missing}: pip install 'infini-jax[serve]'") from None

  _set_up(args, Workdir(args.workdir).config_here())
  return serve(args, console)


def _score(args: argparse.Namespace, rest: list[str], console: Console) -> None:
  from infini_jax.scoring.command import score

  _set_up(args, _config(args))
  score(args, console)


def _lm_eval(args: argparse.Namespace, rest: list[str], console: Console) -> None:
  from infini_jax.scoring import harness

  _set_up(args, _config(args))
  harness.command(args, rest)


def _chat(args: argparse.Namespace, rest: list[str], console: Console) -> None:
  from infini_jax.inference.terminal import chat

  _set_up(args, _config(args))
  chat(args, console)


COMMANDS: dict[str, Callable[..., int | None]] = {
  "train": _train,
  "eval": _eval,
  "prepare": _prepare,
  "plan": _plan,
  "convert": _convert,
  "report": _report,
  "card": _card,
  "verify": _verify,
  "generate": _generate,
  "serve": _serve,
  "score": _score,
  "lm-eval": _lm_eval,
  "chat": _chat,
  "sweep": sweeping.sweep,
  "compare": sweeping.compare,
}


if __name__ == "__main__":
  program()
