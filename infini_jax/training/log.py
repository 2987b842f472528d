"""The log of a training: metrics of steps, validations, bad steps, and the goodput."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
from rich.console import Console

from infini_jax.config import Config, tokens_read
from infini_jax.models import costs
from infini_jax.parallel.chips import peak_flops
from infini_jax.runs.goodput import KIND, Goodput, in_words, summary
from infini_jax.runs.metrics import MetricWriter, read_metrics
from infini_jax.runs.workdir import Workdir
from infini_jax.training.guard import Guard
from infini_jax.training.health import check_finite, log_values
from infini_jax.training.schedule import make_schedule


class Log:
  """Logs each step after the next one has started.

  Attributes:
    text: the text of the progress bar, from the last step that was logged.
    loss: the loss of that step.
  """

  def __init__(self, config: Config, workdir: Workdir, mesh: Any, console: Console, guard: Guard):
    self._config, self._console, self._guard = config, console, guard
    self._folder, self.goodput, self._session = workdir.path, Goodput(), int(time.time())
    self._writer: MetricWriter | None = None
    self._rate = make_schedule(config, config.optimizer.learning_rate)
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    self._peak = peak * mesh.size if peak else None
    self._waiting: tuple[int, Any] | None = None  # the step that was just dispatched
    self._left_out: tuple[int, Any] | None = None  # the last one that was not due to be logged
    self._tokens, self._since = 0.0, time.perf_counter()
    self._last = self._since  # the end of the last step, skipped or not
    self._shares: dict[str, float] = {}
    self.text = ""
    self.loss: float | None = None

  def stage(self, config: Config, step_bytes: int) -> None:
    """Sets the config and the device memory, in bytes, of the steps that follow."""
    self.flush()
    tokens = config.data.segments * config.model.segment_length
    self._flops = costs.flops_per_token(config.model, tokens, config.train.part)
    self._step_bytes = step_bytes
    self._since, self._tokens = time.perf_counter(), 0.0

  def mixture(self, step: int, shares: dict[str, float]) -> None:
    """Sets the shares of the stores of a mixture after `step` steps, and logs a change."""
    if shares != self._shares:
      self.flush()
      self._shares = shares
      told = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
      self._console.print(f"step {step}: new documents are {told}", soft_wrap=True, highlight=False)

  def previous(self, step: int, metrics: Any) -> None:
    """Takes a step that was just dispatched, and logs the one before, if it is due."""
    self._write()
    self._waiting = (step, metrics)

  def flush(self, always: bool = False) -> None:
    """Waits for the last step, and logs it if it is due, or `always`."""
    self._write(always)

  def back(self, step: int) -> None:
    """Training goes back to a step: the lines of later ones are removed."""
    self._guard.goes_back, self._waiting, self._left_out = False, None, None
    self.goodput.add("lost", self._later(step))
    if self._writer:
      self._writer.close()
      self._writer = MetricWriter(self._folder, self._config, step)
    self._since, self._tokens = time.perf_counter(), 0.0

  def evaluation(self, step: int, text: str, figures: dict[str, float]) -> None:
    """Logs a validation, and restarts the clock of the steps."""
    if self._writer:
      self._writer.write(step, figures, "validation")
    self._console.print(f"step {step}: validation {text}")
    self._since, self._tokens = time.perf_counter(), 0.0

  def start(self, step: int) -> None:
    """Opens the outputs of a training that starts at this step. Lines of later steps are removed;
    the time of these steps is lost."""
    self.goodput = Goodput(self._later(step))
    if jax.process_index() == 0:
      self._writer = MetricWriter(self._folder, self._config, step)
    self._since, self._tokens = time.perf_counter(), 0.0

  def _later(self, step: int) -> float:
    """The seconds of the logged steps after this one."""
    lines = [line for line in read_metrics(self._folder) if line["step"] > step]
    if not lines or not (speed := lines[-1].get("tokens_per_second")):
      return 0.0
    tokens = tokens_read(self._config, lines[-1]["step"]) - tokens_read(self._config, step)
    return tokens / speed

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Counts the time of the body as waiting for data, if the device has nothing to compute."""
    idle = self._waiting is None or self._waiting[1]["loss"].is_ready()
    with self.goodput.spent("input") if idle else contextlib.nullcontext():
      yield

  def saved(self, step: int) -> None:
    """Logs how the time was spent up to a save. The last line of a process counts."""
    if self._writer:
      self._writer.write(step, {"session": self._session, **self.goodput.values()}, KIND)

  def tell_goodput(self) -> None:
    """Prints the goodput of the run so far, over all its processes."""
    if shares := summary(read_metrics(self._folder, KIND)):
      self._console.print(in_words(shares), highlight=False)

  def __enter__(self) -> "Log":
    return self

  def __exit__(self, *error: Any) -> None:
    if error[0] is None:
      self._write()
    if self._writer:
      self._writer.close()

  def _write(self, always: bool = False) -> None:
    c = self._config
    if self._waiting is not None:
      (step, metrics), self._waiting = self._waiting, None
      if not c.guard.in_a_row:
        check_finite(step, metrics)
      elif said := self._guard.seen(step, metrics):
        self._console.print(said, soft_wrap=True, highlight=False)
        if self._writer:
          self._writer.write(step, {"why": said}, "skipped")
        self.goodput.add("lost", time.perf_counter() - self._last)
        self._last = time.perf_counter()
        return
      self._last = time.perf_counter()
      self._tokens += float(metrics["tokens"])
      self._left_out = step, metrics
      always |= step % c.train.log_every == 0 or step == c.train.steps
    if not always or self._left_out is None:
      return
    (step, metrics), self._left_out = self._left_out, None
    loss = float(metrics["loss"])
    seconds = time.perf_counter() - self._since
    per_second = self._tokens / seconds
    self._since, self._tokens = time.perf_counter(), 0.0
    self.loss, self.text = loss, f"loss {loss:.3f}  {per_second:,.0f} tokens/s"
    if "answer_accuracy" in metrics:
      self.text += f"  answers {float(metrics['answer_accuracy']):.0%}"
    if "text_loss" in metrics:
      self.text += f"  text {float(metrics['text_loss']):.3f}"
    if self._writer is None:
      return
    speed = {
      "learning_rate": float(self._rate(step - 1)),
      "tokens_per_second": per_second,
      "model_flops_per_second": per_second * self._flops,
      "mfu": per_second * self._flops / self._peak if self._peak else None,
      "step_bytes": self._step_bytes,  # the most of any device, from XLA
    }
    seen: dict[str, float] = {"tokens_seen": tokens_read(c, step)}
    seen |= {f"mixture/{name}": share for name, share in self._shares.items()}
    self._writer.write(step, {"loss": loss} | seen | speed | log_values(metrics))
