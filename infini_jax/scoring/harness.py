"""lm-evaluation-harness: the model `infini-jax`, and its command. The only file with `lm_eval`.

The harness finds models in a list of its own, to which no other package can add from outside. So
the class is registered by `register`, and `infini-jax lm-eval` calls the harness's own command
after it.
"""

import argparse
import contextlib
import functools
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from infini_jax.config import InputError
from infini_jax.inference import open_run
from infini_jax.inference.arguments import whole
from infini_jax.progress import make_console, track
from infini_jax.runs.workdir import Workdir
from infini_jax.scoring.requests import Continuation, Scorer

NAME = "infini-jax"  # `--model infini-jax`
COMMANDS = ("run", "ls", "validate")  # of the harness
AUTO = 8  # contexts side by side, with --batch_size auto
ARGUMENTS = ("workdir", "step", "ema", "add_bos_token", "chat_template", "empty")


def command(args: argparse.Namespace, rest: list[str]) -> None:
  """Runs the harness's own command with this package's model.

  Raises:
    InputError: the package is missing, or there is no run.
  """
  register()
  from lm_eval.__main__ import cli_evaluate

  words = rest if rest[:1] and rest[0] in COMMANDS else ["run", *rest]
  if words[0] == "run":
    given = {name: getattr(args, name) for name in ("workdir", "step")}
    given |= {"ema": args.ema or None, "empty": args.empty or None}
    own = [f"{name}={value}" for name, value in given.items() if value is not None]
    words += ["--model_args", *own] if own else []
    words += [] if {"--model", "-M"} & set(rest) else ["--model", NAME]
  before, sys.argv = sys.argv, ["lm-eval", *words]
  try:
    cli_evaluate()
  except (KeyError, ValueError) as error:
    if isinstance(error, InputError) or not _is_its_own(error):
      raise
    raise InputError(f"lm_eval says: {' '.join(str(error).split())[:400]}") from None
  finally:
    sys.argv = before


def _is_its_own(error: BaseException) -> bool:
  """Whether the harness itself has raised an error."""
  frames = traceback.extract_tb(error.__traceback__)
  return "lm_eval" in Path(frames[-1].filename).parts


def scorer_of(given: Mapping[str, Any], batch: Any = None) -> Scorer:
  """The model that the arguments of `--model_args` name.

  Args:
    given: the arguments, as numbers and flags or as text.
    batch: `--batch_size`: a number, `auto`, or nothing.

  Raises:
    InputError: an argument is not known, or there is no such run.
  """
  for name, value in given.items():
    if name not in ARGUMENTS:
      raise InputError(
        f"--model_args {name}={value}: there is no such argument; choose some of "
        f"{', '.join(ARGUMENTS)}"
      )
  if not given.get("workdir"):
    raise InputError("--model_args workdir=RUN is missing: the folder of a run")
  flag = lambda name, usual: str(given.get(name, usual)).lower() in ("true", "1")
  Workdir(given["workdir"], "workdir").config()  # raises if there is no run
  step = None if given.get("step") is None else _whole("step", given["step"])
  size = (
    AUTO if str(batch).startswith("auto") else _whole("batch_size", 1 if batch is None else batch)
  )
  run = open_run(str(given["workdir"]), step, flag("ema", False))
  template = str(given.get("chat_template", "own"))
  return Scorer(run, size, flag("add_bos_token", True), template, flag("empty", False))


def _whole(name: str, value: Any) -> int:
  return whole(name, int(value) if str(value).isdecimal() else value)


@contextlib.contextmanager
def _progress(name: str, total: int, hidden: bool) -> Iterator[Callable[[int], None]]:
  """Shows progress on standard error. Yields a function that adds to what is done."""
  if hidden:
    yield lambda more: None
    return
  with track(make_console(stderr=True), name, total) as show:
    done = 0

    def advance(more: int) -> None:
      nonlocal done
      done += more
      show(done)

    yield advance


@functools.lru_cache(1)
def register() -> type:
  """The model class, registered with the harness as `infini-jax`.

  Raises:
    InputError: the package is missing.
  """
  if importlib.util.find_spec("lm_eval") is None:
    raise InputError("needs the package lm_eval: pip install -e '.[eval]'")
  from lm_eval.api.model import TemplateLM
  from lm_eval.api.registry import register_model

  @register_model(NAME)
  class InfiniLM(TemplateLM):
    """A run as a model of the harness; contexts are streamed, and never cut."""

    def __init__(self, batch_size: Any = None, device: Any = None, **given: Any):
      """`device` and the largest batch size are those of other models, and are not read."""
      super().__init__()
      given.pop("max_batch_size", None)
      self.scorer = scorer_of(given, batch_size)
      self.batch_size = self.scorer.lanes

    @property
    def eot_token_id(self) -> int:
      return self.scorer.run.tokenizer.eos

    @property
    def prefix_token_id(self) -> int:
      return self.scorer.run.tokenizer.bos

    @property
    def tokenizer_name(self) -> str:
      return f"{NAME}-{self.scorer.run.tokenizer.fingerprint}"

    def tok_encode(
      self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
      return self.scorer.encode(string, add_special_tokens)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
      return self.scorer.template_text() if chat_template else None

    def apply_chat_template(
      self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
      return self.scorer.render(chat_history, add_generation_prompt)

    def _loglikelihood_tokens(
      self, requests: Sequence[Any], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
      asked = [Continuation(context, tokens) for _, context, tokens in requests]
      with _progress("log-likelihoods", len(asked), disable_tqdm) as advance:
        found = self.scorer.continuations(asked, advance)
      for (pair, *_), one in zip(requests, found, strict=True):
        self.cache_hook.add_partial("loglikelihood", pair, one)
      return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
      asked = [request.args[0] for request in requests]
      with _progress("texts", len(asked), disable_tqdm) as advance:
        found = self.scorer.texts(asked, advance)
      for text, one in zip(asked, found, strict=True):
        self.cache_hook.add_partial("loglikelihood_rolling", (text,), one)
      return found

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
      kinds: dict[str, list[int]] = {}
      for i, request in enumerate(requests):
        kinds.setdefault(repr(sorted(request.args[1].items(), key=str)), []).append(i)
      found = [""] * len(requests)
      with _progress("texts to write", len(requests), disable_tqdm) as advance:
        for indices in kinds.values():
          how = requests[indices[0]].args[1]
          asked = [requests[i].args[0] for i in indices]
          for i, text in zip(indices, self.scorer.generate(asked, how, 0, advance), strict=True):
            found[i] = text
            self.cache_hook.add_partial("generate_until", requests[i].args, text)
      return found

  return InfiniLM
