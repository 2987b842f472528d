"""Every mesh gives the same numbers and the planned shardings; refusals name a remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from infini_jax.config import SYSTEMS, InputError, MeshConfig
from infini_jax.models import bind
from infini_jax.parallel import check_divisible, make_mesh, param_shardings, put_batch
from infini_jax.parallel.mesh import COMPUTE, STORAGE, spec
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import TrainState, abstract_state, make_train_step
from tests.tiny import changed, config, fake_params

MESHES = {
  **{"8x1x1": (8, 1, 1, 1), "4x2x1": (4, 2, 1, 1), "2x2x2": (2, 2, 1, 2), "seq": (2, 1, 2, 2)},
  "fsdp-seq": (1, 2, 2, 2),
}


MODEL = {"segment_length": 8, "vocab_size": 32, "heads": 4, "kv_heads": 2, "gate_init": 0.5}


SUMS = ("loss", "grad_norm", "tokens", "answer_accuracy")


def batches(c, steps, seed=0):
  rng = np.random.default_rng(seed)
  B, S, N = c.data.lanes, c.data.segments, c.model.segment_length
  for _ in range(steps):
    batch = {
      "tokens_BT": rng.integers(0, c.model.vocab_size, (B, S * N)).astype(np.int32),
      "targets_BT": rng.integers(0, c.model.vocab_size, (B, S * N)).astype(np.int32),
      "mask_BT": rng.random((B, S * N)) < 0.9,
      "reset_BS": rng.random((B, S)) < 0.3,
    }
    if c.warm.share:  # a batch with all possible arrays
      read = next(batches(changed(c, warm=changed(c.warm, share=0.0)), 1, seed + 1))
      names = ("tokens_BT", "mask_BT", "reset_BS")
      batch |= {f"warm_{name}": read[name] for name in names}
      batch["warm_B"] = rng.random(B) < 0.5
      batch["weights_BT"] = (batch["mask_BT"] * rng.random((B, S * N))).astype(np.float32)
      batch["asked_BT"] = rng.random((B, S * N)) < 0.5
    yield batch


def run(c, sizes, steps=3):
  """The losses of some train steps, and the state after them."""
  devices = jax.devices()[: int(np.prod(sizes))]
  mesh = make_mesh(MeshConfig(*sizes), devices)
  check_divisible(c, mesh)
  tx = make_optimizer(c)
  losses = []
  with jax.set_mesh(mesh):
    params = fake_params(c.model)
    params = jax.device_put(params, param_shardings(params, mesh))
    memory = jax.jit(lambda p: bind(c.model, p).state(c.data.lanes))(params)
    warm = jax.tree.map(jnp.copy, memory) if c.warm.share else None
    state = TrainState(jnp.zeros((), jnp.int32), params, jax.jit(tx.init)(params), memory, warm)
    update = jax.jit(make_train_step(c, tx))
    for batch in batches(c, steps):
      state, metrics = update(state, put_batch(batch, mesh, c.data.lanes))
      losses.append([float(metrics[k]) for k in SUMS if k in metrics])
  return np.array(losses), state, mesh


def experiment(optimizer, model=None, **sections):
  return config(
    model={**MODEL, "rule": "delta", **(model or {})},
    optimizer={"name": optimizer},
    **sections,
  )


# Features of pretrained families besides Llama's, with layers that differ.
FAMILY = {
  **{"attention_bias": True, "qk_norm": True, "norm_plus_one": True, "post_norms": True},
  **{"embed_scale": 4.0, "query_scale": 0.5, "attention_softcap": 5.0, "logit_softcap": 5.0},
  **{"rope_scaling": (4.0, 0.1, 2.0, 64.0, 1.2)},
  **{"window": 8, "global_every": 2, "window_theta": 10.0, "write_gate": True},
  "adapter_rank": 2,
}
WARM = {"warm": {"share": 0.5, "segments": 2}}


def whole(optimizer):
  """The experiment of an optimizer: AdamW's starts warm, Adafactor's has all family features."""
  return experiment(optimizer, **(WARM if optimizer == "adamw" else {"model": FAMILY}))


@pytest.fixture(scope="module")
def alone(request):
  c = whole(request.param)
  losses, state, _ = run(c, (1, 1, 1, 1))
  return c, losses, jax.device_get(state)


# The fast test divides lanes, width, the sequence and heads.
FAST = {("adamw", "fsdp-seq")}


@pytest.mark.parametrize(
  "alone,sizes",
  [
    pytest.param(
      optimizer,
      sizes,
      id=f"{optimizer}-{name}",
      marks=[pytest.mark.slow] * ((optimizer, name) not in FAST),
    )
    for optimizer in ("adamw", "adafactor")
    for name, sizes in MESHES.items()
  ],
  indirect=["alone"],
)
def test_same_training_on_every_mesh(alone, sizes):
  c, losses, expected = alone
  got, state, mesh = run(c, sizes)
  np.testing.assert_allclose(
    got, losses, rtol=2e-5, err_msg="the mesh changes the numbers: look for a missing reduction"
  )
  for name in ("params", "memory", "warm"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(jax.device_get(a), b, rtol=1e-3, atol=1e-4),
      getattr(state, name),
      getattr(expected, name),
    )
  # Parameters and moments keep their storage sharding; the memory is divided over lanes and heads.
  planned = param_shardings(state.params, mesh)
  jax.tree.map(
    lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or fail(x, s), state.params, planned
  )
  want = jax.sharding.NamedSharding(mesh, spec("LBKEU", COMPUTE))
  for carried in filter(None, (state.memory, state.warm)):
    memory = carried.M_BKEU
    assert memory.sharding.is_equivalent_to(want, memory.ndim), memory.sharding
  with jax.set_mesh(mesh):
    abstract = abstract_state(c, make_optimizer(c), mesh)
  for real, planned in zip(*map(jax.tree.leaves, (state, abstract)), strict=True):
    assert (real.shape, real.dtype) == (planned.shape, planned.dtype)


def fail(x, sharding):
  raise AssertionError(f"{x.sharding} of shape {x.shape}, stored as {sharding} was planned")


def traced(c, sizes):
  """The abstract state before and after one step on a mesh: shapes and shardings."""
  devices = jax.devices()[: int(np.prod(sizes))]
  mesh, tx = make_mesh(MeshConfig(*sizes), devices), make_optimizer(c)
  check_divisible(c, mesh)
  with jax.set_mesh(mesh):
    state = abstract_state(c, tx, mesh)
    batch = put_batch(next(batches(c, 1)), mesh, c.data.lanes)
    after, _ = jax.eval_shape(make_train_step(c, tx), state, batch)
  return state, after


def places(tree):
  return jax.tree.map(lambda x: x.sharding.spec, tree)


@pytest.mark.parametrize(
  "sizes",
  [
    (2, 2, 1, 2),
    *(
      pytest.param(s, marks=pytest.mark.slow)
      for s in [(4, 2, 1, 1), (8, 1, 1, 1), (2, 2, 1, 1), (1, 1, 1, 1)]
    ),
  ],
  ids=str,
)
def test_microbatches_stay_spread_over_the_mesh(sizes):
  """16 lanes in 2 microbatches: each has at least as many lanes as devices."""
  c = experiment("adamw", data={"lanes": 16}, train={"accumulate": 2})
  before, after = traced(c, sizes)
  assert places(after.memory) == places(before.memory), "a step moves the memory"
  assert places(after.params) == places(before.params), "a step moves parameters"


# Fast tests have three kinds of state, each with one of the layouts.
FAST = (("infini", 0), ("memorizing", 1), ("rmt", 2))
LAYOUTS = [(2, 1, (4, 2, 1, 1)), (4, 2, (2, 2, 1, 2)), (8, 4, (4, 1, 1, 2))]


@pytest.mark.parametrize(
  "mixer,heads,kv_heads,sizes",
  [
    pytest.param(mixer, *layout, marks=[pytest.mark.slow] * ((mixer, j) not in FAST))
    for mixer in SYSTEMS
    for j, layout in enumerate(LAYOUTS)
  ],
  ids=str,
)
def test_every_mixer_is_laid_out_with_shared_heads(mixer, heads, kv_heads, sizes):
  """One key/value head, as many as devices, and more."""
  c = experiment("adamw", data={"carry_state": mixer != "full"})
  small = {"summary_tokens": 2, "summary_steps": 2}
  small |= {"knn_layers": (1,), "knn_memory": 16, "compression_rate": 2, "compressed_memory": 8}
  small |= FAMILY if mixer in ("infini", "local", "full") else {}
  c = changed(c, model=changed(c.model, mixer=mixer, heads=heads, kv_heads=kv_heads, **small))
  before, after = traced(c, sizes)
  assert places(after.params) == places(before.params)


@pytest.mark.slow
@pytest.mark.parametrize(
  "pattern,carry,sizes",
  [(("infini", "full"), False, (2, 2, 1, 2)), (("local", "infini"), True, (2, 1, 2, 2))],
)
def test_a_pattern_trains_the_same_on_a_mesh(pattern, carry, sizes):
  c = experiment("adafactor", {**FAMILY, "pattern": pattern}, data={"carry_state": carry})
  losses, expected, _ = run(c, (1, 1, 1, 1))
  got, state, _ = run(c, sizes)
  np.testing.assert_allclose(got, losses, rtol=2e-5)
  close = lambda a, b: np.testing.assert_allclose(*jax.device_get((a, b)), rtol=1e-3, atol=1e-4)
  jax.tree.map(close, (state.params, state.memory), (expected.params, expected.memory))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 2, 1, 2), (1, 2, 2, 2)], ids=str)
def test_a_base_width_trains_the_same_on_a_mesh(sizes):
  c = experiment("adamw", {"width": 32, "width_base": 8, "lora_rank": 2, "write_gate": True})
  losses, expected, _ = run(c, (1, 1, 1, 1))
  plain, _, _ = run(experiment("adamw", {"width": 32, "lora_rank": 2, "write_gate": True}), sizes)
  got, state, _ = run(c, sizes)
  assert np.abs(plain - losses).max() > 1e-3, "the width changes nothing: a weak test"
  np.testing.assert_allclose(got, losses, rtol=2e-5)
  close = lambda a, b: np.testing.assert_allclose(*jax.device_get((a, b)), rtol=1e-3, atol=1e-4)
  jax.tree.map(close, state.params, expected.params)


@pytest.mark.parametrize("name", [pytest.param("adamw", marks=pytest.mark.slow), "adafactor"])
def test_a_pattern_is_laid_out_as_its_systems(name):
  c = experiment(name, data={"carry_state": False})
  model = changed(c.model, pattern=("infini", "full"), write_gate=True, kv_heads=2, heads=4)
  before, after = traced(changed(c, model=model), (2, 2, 1, 2))
  assert places(after.params) == places(before.params)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_large_moments_and_parameters_are_divided_over_fsdp(optimizer):
  c = whole(optimizer)
  mesh = make_mesh(MeshConfig(1, 4, 1, 2))
  with jax.set_mesh(mesh):
    state = abstract_state(c, make_optimizer(c), mesh)
  params = state.params["blocks"]["attention"]
  assert params["w_q_DHE"].sharding.spec == P(None, ("fsdp", "seq"), "tensor", None)
  undivided = [
    jax.tree_util.keystr(path)
    for path, x in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state))
    if x.size >= 1024 and not any(x.sharding.spec)
  ]
  assert not undivided, f"kept whole on every device: {undivided}"


@pytest.mark.parametrize(
  "sections,sizes,field,remedy",
  [
    ({"model": {"heads": 3, "kv_heads": 3}}, (4, 1, 1, 2), "config.model.heads=3", "make it 4"),
    ({"model": {"heads": 4, "kv_heads": 1}}, (4, 1, 1, 2), "config.model.kv_heads=1", "make it 2"),
    ({"model": {"ffn": 33}}, (4, 1, 1, 2), "config.model.ffn=33", "make it 34"),
    ({"model": {"vocab_size": 265}}, (4, 1, 1, 2), "config.model.vocab_size=265", "make it 266"),
    ({"model": {"width": 18}}, (2, 4, 1, 1), "config.model.width=18", "make it 20"),
    ({"data": {"segments": 3}}, (4, 1, 2, 1), "config.data.segments=3", "make it 4"),
    ({"evaluation": {"segments": 5}}, (4, 1, 2, 1), "config.evaluation.segments=5", "make it 6"),
    ({"data": {"lanes": 6}}, (8, 1, 1, 1), "config.data.lanes", "make it 8"),
    ({"train": {"accumulate": 2}}, (8, 1, 1, 1), "config.train.accumulate=4", "make it 8"),
    ({"evaluation": {"lanes": 4}}, (8, 1, 1, 1), "config.evaluation.lanes=4", "make it 8"),
  ],
  ids=str,
)
def test_sizes_that_do_not_divide_are_refused(sections, sizes, field, remedy):
  mesh = make_mesh(MeshConfig(*sizes))
  with pytest.raises(InputError) as error:
    check_divisible(config(**sections), mesh)
  assert field in str(error.value) and remedy in str(error.value)
  assert "\n" not in str(error.value)


def test_mesh_must_hold_all_devices():
  with pytest.raises(InputError, match="does not fit 8 devices.*must be 8 .*data=-1"):
    make_mesh(MeshConfig(3, 1, 1, 2))
  with pytest.raises(InputError, match="does not fit 8 devices"):
    make_mesh(MeshConfig(-1, 3, 1, 1))
  assert dict(make_mesh(MeshConfig(-1, 2, 1, 2)).shape) == {
    **{"dcn": 1, "data": 2, "fsdp": 2, "seq": 1, "tensor": 2}
  }


def test_two_dimensions_on_one_axis_are_refused():
  assert spec("DHE", STORAGE) == P(("fsdp", "seq"), "tensor", None)
  with pytest.raises(ValueError, match="two dimensions of BD are divided over the same mesh axis"):
    spec("BD", STORAGE)
  with pytest.raises(ValueError, match="two dimensions of HF"):
    spec("HF", COMPUTE)
