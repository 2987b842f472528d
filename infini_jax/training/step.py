"""One update, as a pure function: `(state, batch) -> (state, metrics)`."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from infini_jax.config import Config
from infini_jax.models import abstract_params, bind, init
from infini_jax.ops.loss import cross_entropy
from infini_jax.parallel import shard

Batch = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that a run carries from step to step, and all that a checkpoint holds.

  `step` is the number of updates taken: batch k makes step k + 1.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  memory: Any  # the lanes' states, when they are carried; else None


def abstract_state(config: Config, tx: optax.GradientTransformation, mesh: Any) -> TrainState:
  """Shapes, types and shardings of the state, without making it."""
  params = abstract_params(config.model, mesh)
  state = jax.eval_shape(lambda p: _assemble(config, tx, p), params)

  def place(x):  # it was traced on the abstract mesh and is wanted on this one
    spec = PartitionSpec() if x.sharding is None else x.sharding.spec
    return x.update(sharding=NamedSharding(mesh, spec))

  return jax.tree.map(place, state)


def initial_state(config: Config, tx: optax.GradientTransformation, mesh: Any) -> TrainState:
  """A fresh state, every array made in its place."""
  key = jax.random.key(config.train.seed)
  shardings = jax.tree.map(lambda x: x.sharding, abstract_params(config.model, mesh))
  make = jax.jit(lambda k: init(config.model, k), out_shardings=shardings)
  # It runs once: on a CPU, optimizing the code of so many random numbers takes far longer than it.
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  options: dict[str, str | bool] = {"xla_backend_optimization_level": "0"} if on_cpu else {}
  params = make.lower(key).compile(options)(key)
  return jax.jit(lambda p: _assemble(config, tx, p))(params)


def make_train_step(
  config: Config, tx: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """The update for this config, to be compiled once.

  The loss is the mean over all real tokens of the batch, however the lanes are divided into
  microbatches. Metrics: `loss` in nats per token, `tokens`, `grad_norm`, `learning_rate` is the
  loop's; for a mixer with gates `gates_LH` and `gate_grad_LH`, and `memory_L`, `z_L`.
  """
  t = config.train

  def loss_fn(params, memory, batch, total):
    model = bind(config.model, params)
    hidden_BTD, memory = model(
      batch["tokens_BT"], memory, reset_BS=batch["reset_BS"], mask_BT=batch["mask_BT"]
    )
    nll_BT, log_z_BT = cross_entropy(
      hidden_BTD, model.head(), batch["targets_BT"], chunk=t.loss_chunk
    )
    weight_BT = batch["mask_BT"].astype(jnp.float32) / total
    nll = (nll_BT * weight_BT).sum()
    return nll + t.z_loss * (log_z_BT**2 * weight_BT).sum(), (nll, memory)

  def gradients(params, memory, batch):
    total = batch["mask_BT"].sum().astype(jnp.float32)
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if t.accumulate == 1:
      (_, (nll, memory)), grads = grad_fn(params, memory, batch, total)
      return nll, memory, grads, total

    def body(carry, xs):
      (_, (nll, memory)), grads = grad_fn(params, *xs, total)
      return jax.tree.map(jnp.add, carry, (nll, grads)), memory

    split = (_split(memory, 1, t.accumulate), _split(batch, 0, t.accumulate))
    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    (nll, grads), memory = jax.lax.scan(body, zero, split)
    return nll, _join(memory, 1), grads, total

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    memory = state.memory
    if memory is None:
      memory = bind(config.model, state.params).state(config.data.lanes)
    nll, memory, grads, total = gradients(state.params, memory, batch)
    with jax.named_scope("optimizer"):
      updates, opt_state = tx.update(grads, state.opt_state, state.params)
      params = optax.apply_updates(state.params, updates)
    metrics = {"loss": nll, "tokens": total, "grad_norm": optax.tree.norm(grads)}
    metrics |= _memory_metrics(config, params, grads, memory)
    metrics = jax.tree.map(lambda x: shard(x, "_" * x.ndim), metrics)  # every host can read them
    kept = None if state.memory is None else memory
    return TrainState(state.step + 1, params, opt_state, kept), metrics

  return train_step


def _assemble(config, tx, params):
  memory = None
  if config.data.carry_state:
    memory = bind(config.model, params).state(config.data.lanes)
    memory = memory if jax.tree.leaves(memory) else None
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), memory)


def _memory_metrics(config, params, grads, memory):
  if config.model.mixer != "infini":
    return {}
  beta = lambda tree: tree["blocks"]["attention"]["mixer"]["beta_H"]
  axes = (1, 2, 3)
  return {
    "gates_LH": jax.nn.sigmoid(beta(params)),
    "gate_grad_LH": beta(grads),
    "memory_L": jnp.sqrt(jnp.mean(memory.M_BKEU**2, axis=(*axes, 4))),
    "z_L": jnp.mean(memory.z_BKE, axis=axes),
  }


def _split(tree: Any, axis: int, parts: int) -> Any:
  """Lanes into microbatches, in front: lane i goes to microbatch i % parts, so that each of them
  stays spread over all devices."""

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
  """Reshapes, telling where the lanes lie: with as many lanes as devices JAX would guess wrong."""
  in_mesh = not jax.sharding.get_abstract_mesh().empty
  spec = PartitionSpec(*itertools.chain(*where)) if in_mesh else None
  return jnp.reshape(x, shape, out_sharding=spec)
