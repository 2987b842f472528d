"""One update, as a pure function: `(state, batch) -> (state, metrics)`."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from infini_jax.config import Config, original
from infini_jax.models import abstract_params, bind, init
from infini_jax.models.mixers.summaries import random_borders
from infini_jax.models.states import auxiliary, fast_forward, of_microbatch
from infini_jax.ops.lanes import where_lane
from infini_jax.ops.loss import divergence, weighted_loss
from infini_jax.parallel import shard
from infini_jax.training import optimizer
from infini_jax.training.health import memory_metrics
from infini_jax.training.trainable import join, split

Batch = dict[str, jax.Array]
HOW = ("reset_BS", "mask_BT", "times_BT", "shift_BS")  # arrays of a batch that the model reads


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything that a run keeps between steps, which is the content of a checkpoint.

  `step` is the number of updates taken: batch k makes step k + 1.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  memory: Any  # the states of the lanes, if they are carried; else None
  warm: Any  # the states of the companions, if memories start warm; else None
  norm: Any = None  # the running mean of the gradient norm, with `guard.spike`; else None
  ema: Any = None  # the moving average of the trained parameters, float32, if it is on; else None


def abstract_state(config: Config, tx: optax.GradientTransformation, mesh: Any) -> TrainState:
  """The shapes, types and shardings of the state, without allocating it."""
  params = abstract_params(config.model, mesh)
  state = jax.eval_shape(lambda p: _assemble(config, tx, p), params)

  def place(x):  # traced on the abstract mesh, needed on this mesh
    spec = PartitionSpec() if x.sharding is None else x.sharding.spec
    return x.update(sharding=NamedSharding(mesh, spec))

  return jax.tree.map(place, state)


def abstract_teacher(config: Config, mesh: Any) -> tuple[Any, ...]:
  """The shapes, types and shardings of the original's parameters; () if the update has none."""
  return (abstract_params(original(config.model), mesh),) if config.train.distill_weight else ()


def initial_state(config: Config, tx: optax.GradientTransformation, mesh: Any) -> TrainState:
  """A new state; every array is made directly with its sharding."""
  key = jax.random.key(config.train.seed)
  shardings = jax.tree.map(lambda x: x.sharding, abstract_params(config.model, mesh))
  make = jax.jit(init, static_argnums=0, out_shardings=shardings)
  # It runs once, so on a CPU optimizing this code takes longer than running it unoptimized.
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  options: dict[str, str | bool] = {"xla_backend_optimization_level": "0"} if on_cpu else {}
  return first_state(config, tx, make.lower(config.model, key).compile(options)(key))


def first_state(config: Config, tx: optax.GradientTransformation, params: Any) -> TrainState:
  """The state at step 0 with these parameters, which are not copied."""
  rest = jax.jit(lambda p: dataclasses.replace(_assemble(config, tx, p), params=None))(params)
  return dataclasses.replace(rest, params=params)


def make_train_step(
  config: Config, tx: optax.GradientTransformation
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """The update for this config, a pure function to compile once.

  The loss is the mean over all real tokens of the batch, independent of the microbatches; targets
  of a task have weights. With `data.carry_state`, weights of less than 1 in total are not scaled up
  for the update, so a piece of a long document weighs as little as it should. Metrics: `loss`, that
  mean in nats per token, `tokens`, `grad_norm`, for a task `answer_accuracy`, with lanes of text
  `text_loss`, and those of `health.memory_metrics`.

  With `config.train.distill_weight` the update takes a third argument, the parameters of the
  original; `distillation` is the mean divergence from it, in nats per token.
  """
  t = config.train
  in_microbatch = of_microbatch(config.model, t.accumulate)

  def loss_fn(trained, frozen, teacher, memory, batch, total):
    model = bind(in_microbatch, join(trained, frozen))
    how = {name: batch[name] for name in HOW if name in batch}
    hidden_BTD, memory = model(batch["tokens_BT"], memory, **how)
    scores = (hidden_BTD, model.head(), batch["targets_BT"])
    options: dict[str, Any] = {"chunk": t.loss_chunk, "softcap": config.model.family.logit_softcap}
    weight_BT = _weights(batch) / total
    if teacher is None:
      loss, (nll_BT, right_BT) = weighted_loss(*scores, weight_BT, z_loss=t.z_loss, **options)
      sums = {"loss": (nll_BT * weight_BT).sum()}
    else:
      told = _as_the_original(config, teacher, batch)
      nll_BT, log_z_BT, right_BT, apart_BT = divergence(*scores, *told, **options)
      sums = {"loss": (nll_BT * weight_BT).sum(), "distillation": (apart_BT * weight_BT).sum()}
      loss = sums["loss"] + t.z_loss * (log_z_BT**2 * weight_BT).sum()
      loss += t.distill_weight * sums["distillation"]
    if "asked_BT" in batch:
      sums["right"] = (right_BT & batch["asked_BT"]).sum().astype(jnp.float32)
    if "text_B" in batch:
      sums["text"] = (nll_BT * _text(batch)).sum()
    loss += auxiliary(config.model, memory) / t.accumulate
    return loss, (sums, memory)

  def gradients(params, teacher, memory, batch, total):
    trained, frozen = split(config, params)
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if t.accumulate == 1:
      (_, (sums, memory)), grads = grad_fn(trained, frozen, teacher, memory, batch, total)
      return sums, memory, grads

    def body(carry, xs):
      (_, (sums, memory)), grads = grad_fn(trained, frozen, teacher, *xs, total)
      return jax.tree.map(jnp.add, carry, (sums, grads)), memory

    parts = (_split(memory, 1, t.accumulate), _split(batch, 0, t.accumulate))
    names = ["loss", *["distillation"] * (teacher is not None), *["right"] * ("asked_BT" in batch)]
    names += ["text"] * ("text_B" in batch)
    empty = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), trained)
    zero = (dict.fromkeys(names, jnp.zeros(())), empty)
    (sums, grads), memory = jax.lax.scan(body, zero, parts)
    return sums, _join(memory, 1), grads

  def train_step(
    state: TrainState, batch: Batch, teacher: Any = None
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    assert (teacher is not None) == bool(t.distill_weight)
    memory = state.memory
    if memory is None:
      memory = bind(config.model, state.params).state(config.data.lanes)
    warm = state.warm
    if warm is not None:
      memory = where_lane(batch["warm_B"], warm, memory, axis=1)
      warm = _read_along(config, state.params, warm, batch)
    batch = {name: rows for name, rows in batch.items() if not name.startswith("warm")}
    key = jax.random.fold_in(jax.random.key(t.seed), state.step)
    if config.model.memory.moves_borders:
      batch["shift_BS"] = random_borders(config.model, key, batch["reset_BS"], batch["mask_BT"])
    weight = _weights(batch).sum()
    weight = jnp.where(weight == 0, 1.0, weight)  # a chunk of a long question has no targets
    total = jnp.maximum(weight, 1.0) if config.data.carry_state else weight
    sums, memory, grads = gradients(state.params, teacher, memory, batch, total)
    to_mean = total / weight
    grad_norm = optax.tree.norm(optimizer.in_float32(grads))
    is_good, norm = _is_good(config, (sums["loss"], grad_norm, memory), state.norm)
    kept = _kept(is_good) if config.guard.in_a_row else lambda new, old: new
    with jax.named_scope("optimizer"):
      trained, frozen = split(config, state.params)
      updates, opt_state = tx.update(grads, state.opt_state, trained)
      trained = kept(optimizer.apply(trained, updates, key), trained)
      params, opt_state = join(trained, frozen), kept(opt_state, state.opt_state)
      ema = state.ema
      if ema is not None:
        ema = kept(optimizer.averaged(config, ema, trained, state.step), ema)
    tokens = batch["mask_BT"].sum().astype(jnp.float32)
    metrics = {
      "loss": sums["loss"] * to_mean,
      "tokens": tokens,
      "grad_norm": grad_norm,
      "skipped": ~is_good,
    }
    if "asked_BT" in batch:
      metrics["answer_accuracy"] = sums["right"] / jnp.maximum(1, batch["asked_BT"].sum())
    if "text" in sums:
      metrics["text_loss"] = sums["text"] / jnp.maximum(1.0, _text(batch).sum())
    if "distillation" in sums:
      metrics["distillation"] = sums["distillation"] * to_mean
    metrics |= memory_metrics(config.model, params, grads, memory)
    metrics = jax.tree.map(lambda x: shard(x, "_" * x.ndim), metrics)  # every host can read these
    memory = None if state.memory is None else kept(memory, state.memory)
    warm = None if warm is None else kept(warm, state.warm)
    return TrainState(state.step + 1, params, opt_state, memory, warm, norm, ema), metrics

  return train_step


def _is_good(config: Config, numbers: Any, norm: Any) -> tuple[jax.Array, Any]:
  """Whether a step may change the state, and the running mean of the gradient norm after it.

  Args:
    config: the config of the run.
    numbers: the loss, the norm of the gradient, the memory: all must be finite.
    norm: the running mean before the step; 0 before the first; None without `guard.spike`.
  """
  floating = [x for x in jax.tree.leaves(numbers) if jnp.issubdtype(x.dtype, jnp.floating)]
  is_good = jnp.stack([jnp.isfinite(x).all() for x in floating]).all()
  if norm is None:
    return is_good, None
  now = numbers[1]
  is_good &= (norm == 0) | (now <= config.guard.spike * norm)
  mean = jnp.where(norm == 0, now, norm + (now - norm) / config.guard.horizon)
  return is_good, jnp.where(is_good, mean, norm)


def _kept(is_good: jax.Array) -> Callable[[Any, Any], Any]:
  """Returns a function that takes the new floating-point arrays of a good step, and the old ones of
  a bad step. Counts of steps are always the new ones."""

  def one(new, old):
    return jnp.where(is_good, new, old) if jnp.issubdtype(new.dtype, jnp.floating) else new

  return lambda new, old: jax.tree.map(one, new, old)


def _assemble(config, tx, params):
  def empty(wanted):
    state = bind(config.model, params).state(config.data.lanes)
    return state if wanted and jax.tree.leaves(state) else None

  memory, warm = empty(config.data.carry_state), empty(config.warm.share)
  trained, _ = split(config, params)
  opt_state = tx.init(trained)  # frozen parameters have no moments
  norm = jnp.zeros(()) if config.guard.spike else None
  ema = None
  if config.optimizer.ema:  # copies: a step is given both, and writes into both
    ema = jax.tree.map(jnp.copy, optimizer.in_float32(trained))
  return TrainState(jnp.zeros((), jnp.int32), params, opt_state, memory, warm, norm, ema)


def _as_the_original(config, teacher, batch):
  """The last hidden states of the original, and its head; each chunk starts from an empty state."""
  with jax.named_scope("original"):
    model = bind(original(config.model), teacher)
    state = model.state(len(batch["tokens_BT"]))
    how = {name: batch[name] for name in ("reset_BS", "mask_BT")}
    return model(batch["tokens_BT"], state, **how)[0], model.head()


def _weights(batch):
  """The loss weight of each target: that of the task, or 1 for every real token."""
  weights_BT = batch.get("weights_BT", batch["mask_BT"])
  return weights_BT.astype(jnp.float32)


def _text(batch):
  """1 for the real tokens of the lanes of text in the batch of a task, (B, T)."""
  return (batch["text_B"][:, None] & batch["mask_BT"]).astype(jnp.float32)


def _read_along(config, params, warm, batch):
  """The states of the companions after they have read their next text, without gradient.

  The text counts `warm_times_B` times, if the batch has this array.
  """
  with jax.named_scope("warm"):
    _, after = bind(config.model, params)(
      batch["warm_tokens_BT"],
      warm,
      reset_BS=batch["warm_reset_BS"],
      mask_BT=batch["warm_mask_BT"],
      state_only="warm_times_B" in batch,
    )
    if "warm_times_B" not in batch:
      return after
    anew_B = batch["warm_reset_BS"][:, 0]
    before = where_lane(anew_B, jax.tree.map(jnp.zeros_like, warm), warm, axis=1)
    return fast_forward(config.model, before, after, batch["warm_times_B"])


def _split(tree: Any, axis: int, parts: int) -> Any:
  """Divides lanes into microbatches, a new first axis. Lane i goes to microbatch i % parts, so that
  the lanes of each microbatch are on all devices."""

  def one(x):
    shape = (*x.shape[:axis], x.shape[axis] // parts, parts, *x.shape[axis + 1 :])
    where = jax.typeof(x).sharding.spec
    return jnp.moveaxis(
      _reshape(x, shape, where[: axis + 1], (None,), where[axis + 1 :]), axis + 1, 0
    )

  return jax.tree.map(one, tree)


def _join(tree: Any, axis: int) -> Any:
  """Undoes `_split`."""

  def one(x):
    x = jnp.moveaxis(x, 0, axis + 1)
    shape = (*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])
    where = jax.typeof(x).sharding.spec
    return _reshape(x, shape, where[: axis + 1], where[axis + 2 :])

  return jax.tree.map(one, tree)


def _reshape(x: jax.Array, shape: tuple[int, ...], *where: Any) -> jax.Array:
  """Reshapes with an explicit sharding of the lanes, which JAX cannot always infer."""
  in_mesh = not jax.sharding.get_abstract_mesh().empty
  spec = PartitionSpec(*itertools.chain(*where)) if in_mesh else None
  return jnp.reshape(x, shape, out_sharding=spec)
