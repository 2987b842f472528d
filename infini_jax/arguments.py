"""The arguments of each command of `infini-jax`. Importing this imports no JAX."""

import argparse
import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import infini_jax
from infini_jax.convert import command as conversion
from infini_jax.scoring import arguments as scoring
from infini_jax.serve import arguments as serving
from infini_jax.sweep import command as sweeping

ABOUT = "The command `infini-jax`: train, eval, report and more. A wrong input gives exit status 2."
CONFIG_HELP = "a Python file with get_config(); any field is set by --config.section.field=value"
TASK_HELP = (
  "some of perplexity, passkey, needle, recall, summarization, chat, ruler, babilong, gates, "
  "knockout (the run's own task with every ablation), surgery (what it cost to adapt an original); "
  "default: the task of the training, and the gates"
)
BRANCH_HELP = "begin a new workdir from a checkpoint (--step) of this run (docs/optimizers.md)"
STEP_HELP = "which checkpoint; the newest by default"
TEMPLATE_HELP = "own, plain, file:FILE (default %(default)s; docs/chat.md)"
EMA_HELP = "the moving average of the parameters (config.optimizer.ema), not their last values"

PROCESS_FLAGS = (
  ("--coordinator", "HOST:PORT", "with many processes: where process 0 can be reached"),
  ("--processes", "N", "how many; auto: as many as the cluster says (a Slurm step, TPU hosts)"),
  ("--process", "I", "the number of this process, from 0"),
)


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


def make_parser(runs: Mapping[str, Callable[..., int | None]]) -> argparse.ArgumentParser:
  """The parser of all commands.

  Args:
    runs: the function of each command, which takes the arguments, the rest and the console.
  """
  parser = _Parser(prog="infini-jax", description=ABOUT, allow_abbrev=False)
  parser.add_argument("--version", action=_Version, nargs=0, help="print the versions, and exit")
  commands = parser.add_subparsers(dest="command", required=True)

  def command(name, description):
    made = commands.add_parser(name, help=description, description=description, allow_abbrev=False)
    made.set_defaults(run=runs[name])
    return made

  for name, what in (
    ("train", "train a config, or continue the run in its workdir"),
    ("eval", "perplexity of documents, or recall of a task, with the memory and without"),
  ):
    made = command(name, what)
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

  made = command("prepare", "tokenize a corpus once, and write a store for training")
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
  how.add_argument(
    "--part", metavar="PART/PARTS", help="on several machines: write one part alone, such as 1/4"
  )
  how.add_argument("--join", action="store_true", help="complete the store from all its parts")
  how.add_argument("--runner", help="a runner of Apache Beam, with its own flags as --name=value")

  made = command("plan", "what a run needs, how fast it can be, whether it fits")
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
  conversion.add_arguments(command("convert", what))

  what = "train a config once for each combination of some fields' values"
  sweeping.add_sweep(command("sweep", what))
  what = "a table of runs: in what their configs differ, and their figures, the best first"
  sweeping.add_compare(command("compare", what))

  made = command("report", "one HTML page with runs and the results of their evaluations")
  made.add_argument(
    "--workdir", required=True, action="append", help="the folder of a run; give it again for more"
  )
  made.add_argument("--out", metavar="FILE", help="default: report.html there, or next to several")

  what = "a page in Markdown that says what a run is, and what was measured of it"
  made = command("card", what)
  made.add_argument("path", metavar="WORKDIR", help="the folder of the run")
  made.add_argument("--out", metavar="FILE", help="default: README.md there")

  what = "compare a run, a store, a checkpoint or a saved state with the bytes that were written"
  made = command("verify", what)
  made.add_argument("path", metavar="PATH", help="its folder or file")

  what = "log-probabilities of texts of any length, as JSON lines"
  scoring.add_arguments(command("score", what))

  what = "lm-evaluation-harness with the model of a run (docs/scoring.md)"
  scoring.add_harness(command("lm-eval", what))

  made = command("generate", "read a text of any length, and continue it")
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

  made = command("chat", "talk with a model in the terminal, also about files")
  made.add_argument("--workdir", required=True, help="the folder of the run")
  made.add_argument("--chat-template", default="own", help=TEMPLATE_HELP)
  made.add_argument(
    "--tokens", type=int, default=512, help="the most of an answer (default %(default)s)"
  )
  _add_sampling(made)

  what = "answer requests over HTTP: sessions that are read once and used by many requests"
  serving.add_serve_arguments(command("serve", what))
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
  made.add_argument("--seed", type=int, default=0, help="of the draws (default %(default)s)")
  made.add_argument("--step", type=int, help=STEP_HELP)
  made.add_argument("--ema", action="store_true", help=EMA_HELP)
