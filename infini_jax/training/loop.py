"""The training loop, read from top to bottom.

`step` is the number of updates taken: batch k makes step k + 1. The order of the loop is fixed:
stop? -> save -> evaluate -> next batch -> step -> log the previous step. So the device never waits
for a log line, a checkpoint always holds complete steps, and an evaluation never delays a save.

A signal to stop is noticed at the top of the loop, between the chunks of a validation, and while
the loop waits for data. What cannot be interrupted is a compilation. The state is saved before one,
and until it is done a SIGTERM ends the process at once, as before the first step.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from infini_jax import processes
from infini_jax.config import Config, InputError, stage_at
from infini_jax.data import Store
from infini_jax.data.lanes.loader import train_batches
from infini_jax.evaluation.validation import Validation
from infini_jax.models import costs
from infini_jax.models.machine import check_machine
from infini_jax.parallel import check_divisible, local_rows, make_mesh, put_batch
from infini_jax.progress import track
from infini_jax.runs.checkpoints import Checkpoints
from infini_jax.runs.goodput import Goodput
from infini_jax.runs.metrics import last_logged, read_metrics
from infini_jax.runs.workdir import Workdir, open_inputs
from infini_jax.tasks import mixture_shares, train_lanes
from infini_jax.training.branch import Branch, begin_branch
from infini_jax.training.ending import tell_end, tell_rates
from infini_jax.training.guard import Guard, Hang, PassedOver, Passing
from infini_jax.training.log import Log
from infini_jax.training.optimizer import check_matrices, make_optimizer
from infini_jax.training.schedule import make_schedule
from infini_jax.training.start import check_start, differences, original_params, start_state
from infini_jax.training.step import TrainState, abstract_state, make_train_step
from infini_jax.training.stop_signal import Stopped, StopSignal
from infini_jax.training.trainable import split

GATE_TRAVEL = 4.0  # sigmoid(4) = 0.98: the distance that beta needs to open or shut a gate
SAMPLED = 100_000  # the most steps whose learning rates are computed for a mean


def train(config: Config, path: str, console: Console, branch: Branch | None = None) -> TrainState:
  """Trains until `config.train.steps`, from the newest checkpoint in the workdir, if there is one.

  Args:
    config: the config of the run.
    path: the workdir.
    console: for progress.
    branch: the checkpoint of another run that a new workdir continues from.

  Raises:
    InputError: a wrong input; only the prepared corpus has been written.
    FloatingPointError: too many steps are bad (`training.guard`); the checkpoints are unchanged.
  """
  d, t = config.data, config.train
  began = Goodput()

  # ---- Inputs: everything that the user may have set wrong.
  with processes.first_alone("inputs"):
    check_start(config)
    check_matrices(config)
    if branch:
      begin_branch(config, path, branch)
    workdir, dataset = open_inputs(config, path, console)
  processes.check_same_inputs(workdir.path, workdir.standing(), [dataset])
  lanes = train_lanes(config, dataset)
  mesh = make_mesh(config.mesh)
  check_divisible(config, mesh)
  check_machine(config)

  with (
    StopSignal(processes.stop_all) as stopped,
    workdir.alone(),
    jax.set_mesh(mesh),
    Checkpoints(workdir, t.keep_checkpoints) as saved,
    processes.guard(),
  ):
    validation = Validation(config, mesh, dataset) if t.eval_every else None
    with processes.first_alone("checkpoint"):  # process 0 moves damaged checkpoints away
      alone = jax.process_index() == 0
      say = lambda line: console.print(line, soft_wrap=True, highlight=False)
      start = step = (saved.newest_whole(say) if alone else saved.latest()) or 0
    if step <= t.steps:
      workdir.claim(config, dataset.fingerprint, dataset.tokenizer.fingerprint)
      if jax.process_index() == 0:
        dataset.tokenizer.save(workdir.tokenizer)
        workdir.keep_original()

    # ---- State: that of the newest checkpoint of this run, or a new one.
    tx = make_optimizer(config)
    processes.check_shared(workdir.path / "run.json")
    if step:
      state = saved.restore(step, abstract_state(config, tx, mesh))
    else:
      state = start_state(config, tx, mesh)
    teacher = (original_params(config, mesh),) if t.distill_weight else ()
    stage = stage_at(config, step)
    _describe(stage.config, state, mesh, dataset, step, console)
    _warn_of_stuck_gates(config, console)
    logged = last_logged(workdir.path, step)
    tell_rates(config, step, logged, console)
    missed = validation is not None and _is_missing(config, workdir, step)
    if step >= t.steps and not missed:
      tell_end(config, path, dataset, step, logged["loss"] if logged else None, console)
      return state

    # ---- Compile once, or once for each stage, before its first batch.
    rows = local_rows(mesh, d.lanes)
    passed = PassedOver(workdir.path)
    guard, lanes = Guard(config, lanes, passed), Passing(lanes, passed)
    first = put_batch(lanes.batch(step, rows), mesh, d.lanes)

    def compiled(config, *arguments):
      with track(console, "compile"):
        step = jax.jit(make_train_step(config, tx), donate_argnums=0).lower(*arguments).compile()
        processes.wait("compiled")  # devices wait 30 s for each other, and a host may be slower
      console.print(f"a step needs {_step_bytes(step) / 2**30:,.2f} GiB a device")
      return step

    began.started()
    with began.spent("compile"):
      update = compiled(stage.config, state, first, *teacher)
    anyone = processes.Anyone(mesh)

    # ---- The loop.
    batches = train_batches(lanes, step, t.steps, rows, d.prefetch, d.patience)
    with (
      Log(config, workdir, mesh, console, guard) as log,
      Hang(config.guard.hang) as hang,
      _profiler(config, workdir.path / "profile") as profile,
      track(console, "train", t.steps, step) as bar,
    ):
      log.start(step)
      log.goodput.include(began)
      log.stage(stage.config, _step_bytes(update))
      compiles = True  # the first validation
      stopped.listen()

      def show(_, text):
        hang.alive()
        stopped.listen()  # the first chunk is computed, so all is compiled
        bar(None, f"validation: {text}")
        if anyone(stopped.is_set()):
          raise Stopped

      def save(needed):
        """Saves the state. A failed save ends the training only if it is needed."""
        failures = {}
        with log.goodput.spent("save"):
          for is_last_try in (False, True):  # the first may fail because of the save before
            try:
              saved.save(step, state)
              if needed:
                saved.wait()
              break
            except InputError as error:
              if processes.joined() or (needed and is_last_try):
                raise
              failures[str(error)] = step
        for failure in failures:
          line = f"warning: a save failed: {failure}; training continues"
          console.print(line, soft_wrap=True, highlight=False)

      while True:
        hang.alive()
        if guard.goes_back:  # too many bad steps in a row
          saved.wait()
          bad, step, state = step, saved.latest() or 0, None
          passed.add(step, bad, jax.process_index() == 0)
          console.print(f"going back to step {step}; batches up to step {bad} are passed over")
          abstract = abstract_state(config, tx, mesh)
          state = saved.restore(step, abstract) if step else start_state(config, tx, mesh)
          batches = train_batches(lanes, step, t.steps, rows, d.prefetch, d.patience)
          log.back(step)
        last, told = step >= t.steps, anyone(stopped.is_set())
        due = not told and _is_due(config, step) and (step > start or missed)
        validates = validation is not None and due
        if step > start and (
          last or told or step % t.checkpoint_every == 0 or (validates and compiles)
        ):
          log.flush(last or told)  # a bad step is known before anything is saved
          if guard.goes_back:
            continue
          if last or not guard.in_streak:
            save(needed=last or told)
          if not (last or told):
            log.saved(step)
        if validation and validates:
          log.flush(last)  # the time of a validation is not part of the step
          try:
            if compiles:
              _settled(saved)
              stopped.end_at_once()
              hang.rest()
            with log.goodput.spent("evaluation"):
              log.evaluation(step, *validation.run(state.params, show))
            compiles = False
            stopped.listen()
          except Stopped:
            told = True
            console.print(f"step {step}: told to stop, so its validation is left out")
            if step > start and not guard.in_streak:
              save(needed=True)
        if last:
          bar(step, log.text)
        if last or told:
          with log.goodput.spent("save"):
            saved.close()  # wait for the save while a first signal does not end the process
          if guard.in_streak and not last:
            bad, step = step, saved.latest() or 0
            console.print(
              f"step {bad} was bad: no step after {step} is saved, and they are repeated"
            )
          log.saved(step)
          log.tell_goodput()
          break
        try:
          with stopped.during_wait(not processes.joined()), log.waiting():
            mine = next(batches)
        except Stopped:
          continue
        batch = put_batch(mine, mesh, d.lanes)
        stage = stage_at(config, step)
        if step == stage.first > start:
          log.flush()
          if not guard.in_streak:
            save(needed=False)
          _settled(saved)
          stopped.end_at_once()
          hang.rest()
          with log.goodput.spent("compile"):
            update = compiled(stage.config, state, batch, *teacher)
          stopped.listen()
          log.stage(stage.config, _step_bytes(update))
        log.mixture(step, mixture_shares(config, dataset, passed.batch_of(step)))
        profile(step - start)
        state, metrics = update(state, batch, *teacher)
        step += 1
        log.previous(step, metrics)
        if step < t.steps:
          bar(step, log.text)
  tell_end(config, path, dataset, step, log.loss, console)
  return state


def _settled(saved: Checkpoints) -> None:
  """Waits for the save in progress, and leaves its error to the next one."""
  with contextlib.suppress(InputError):
    saved.wait()


def _is_due(config: Config, step: int) -> bool:
  """Whether a validation follows this step."""
  every = config.train.eval_every
  return every > 0 and (step >= config.train.steps or step % every == 0)


def _is_missing(config: Config, workdir: Workdir, step: int) -> bool:
  """Whether the process was killed after this step was saved, before its validation was logged."""
  logged = {line["step"] for line in read_metrics(workdir.path, "validation")}
  return step > 0 and _is_due(config, step) and step not in logged


def _step_bytes(update: Any) -> int:
  """The bytes that XLA needs on a device for a step: arguments, results and temporary buffers."""
  m = update.memory_analysis()
  kept = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
  return kept + m.temp_size_in_bytes


def _describe(config, state, mesh, dataset, step, console) -> None:
  """Prints lines about the model, the devices and the data; `config` is that of the stage."""
  devices = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
  sizes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
  parameters = costs.parameter_count(state.params)
  c = config
  T = c.data.segments * c.model.segment_length
  console.print(
    f"{c.model.title}: {parameters:,} parameters on {devices} ({sizes}); "
    f"{costs.flops_per_token(c.model, T, c.train.part) / 1e6:,.1f} MFLOP a token"
  )
  text = f"task {c.task.name}"
  if isinstance(dataset, Store):
    text = f"{dataset.split('train').tokens.sum():,} training tokens"
  console.print(
    f"{text}; a step reads {c.data.lanes} lanes x "
    f"{T:,} tokens" + (f"; continuing from step {step}" if step else "")
  )
  if c.train.part != "all":
    trained = costs.parameter_count(split(c, state.params)[0])
    console.print(f"trained: {c.train.part}, {trained:,} parameters; the others stay as they are")
  others = [f"{name}={there!r} there, {here!r} here" for name, there, here in differences(c)]
  if others:
    console.print(f"{c.train.start_from} has {'; '.join(others)}")


def _warn_of_stuck_gates(config: Config, console: Console) -> None:
  """Warns if gates cannot move enough: Adam moves beta by about the learning rate at each step."""
  if not config.model.memory.gated:
    return
  rate, steps = make_schedule(config, config.optimizer.gate_learning_rate), config.train.steps
  some = np.linspace(0, steps - 1, min(steps, SAMPLED))  # all steps, unless there are very many
  way = float(rate(some).mean()) * steps
  if way < GATE_TRAVEL:
    console.print(
      f"warning: the gates can move by {way:.2f} in total, and need about {GATE_TRAVEL:g} to open "
      f"or shut: raise config.optimizer.gate_learning_rate or config.train.steps"
    )


@contextlib.contextmanager
def _profiler(config: Config, folder: Path) -> Iterator[Callable[[int], None]]:
  """Yields a function of the steps taken, which starts and stops the profiler at the right step."""
  first, last = config.log.profile_start, config.log.profile_start + config.log.profile_steps
  running = False

  def at(taken: int) -> None:
    nonlocal running
    if running != (first <= taken < last):
      running = not running
      jax.profiler.start_trace(str(folder)) if running else jax.profiler.stop_trace()

  try:
    yield at
  finally:
    at(last)
