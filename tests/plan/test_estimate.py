"""The estimate, compared with real arrays on eight devices and with other estimates."""

import dataclasses

import jax
import pytest

from infini_jax.config import MeshConfig
from infini_jax.parallel import make_mesh
from infini_jax.parallel.chips import CHIPS
from infini_jax.parallel.mesh import AXES
from infini_jax.plan.estimate import estimate
from infini_jax.plan.traffic import leaves_island, sent
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import initial_state
from tests.tiny import config

V5E = CHIPS["v5e"]
MODEL = {"heads": 4, "kv_heads": 4, "vocab_size": 64}
MESHES = {
  "data": {"data": 8},
  "fsdp and seq": {"data": 1, "fsdp": 4, "seq": 2},
  "all": {"data": 1, "fsdp": 2, "seq": 2, "tensor": 2},
}


def sizes(**axes):
  return {**dict.fromkeys(AXES, 1), **axes}


# Fast tests have each optimizer and each mesh.
OPTIMIZERS = [
  *[("adamw", 0, "float32"), ("adafactor", 0, "bfloat16")],
  *[("muon", 0.9, "bfloat16"), ("lion", 0.9, "float32")],
]


@pytest.mark.parametrize(
  "mesh,optimizer,ema,dtype",
  [
    pytest.param(
      MESHES[name],
      *how,
      id=f"{name}-{how[0]}",
      marks=[pytest.mark.slow] * (i % len(OPTIMIZERS) != j % len(MESHES)),
    )
    for i, name in enumerate(MESHES)
    for j, how in enumerate(OPTIMIZERS)
  ],
)
def test_resting_bytes_are_those_of_real_arrays(mesh, optimizer, ema, dtype):
  fields = {"name": optimizer, "ema": ema}
  c = config(mesh=mesh, optimizer=fields, model=MODEL | {"param_dtype": dtype})
  real = make_mesh(MeshConfig(**mesh))
  with jax.set_mesh(real):
    state = initial_state(c, make_optimizer(c), real)
  device = jax.devices()[0]

  def on_it(tree):
    shards = (s for x in jax.tree.leaves(tree) for s in x.addressable_shards)
    return sum(s.data.nbytes for s in shards if s.device == device)

  made = estimate(c, sizes(**mesh), V5E)
  assert made.resting == {
    "parameters": on_it(state.params),
    "optimizer": on_it(state.opt_state),
    "memory state": on_it((state.memory, state.warm)),
    **({"moving average": on_it(state.ema)} if ema else {}),
  }
  assert sum(p.chip_bytes for p in made.parameters) == made.resting["parameters"]


def test_a_pattern_costs_what_its_layers_cost():
  nothing = {"carry_state": False, "segments": 8}
  whole = made({"fsdp": 4}, model={"layers": 4, "pattern": ("infini", "full")}, data=nothing)
  each = [
    made({"fsdp": 4}, model={"layers": 4, "mixer": name}, data=nothing)
    for name in ("infini", "full")
  ]
  for name in ("model", "executed", "full attention"):
    want = sum(one.flops[name] for one in each) / 2
    assert whole.flops[name] == pytest.approx(want, rel=1e-9), name
  low, high = sorted(one.total for one in each)
  assert 0.9 * low <= whole.total <= high


def made(mesh=None, chip=V5E, **sections):
  mesh = mesh or {"fsdp": 4, "seq": 2}
  sections["model"] = {**MODEL, "remat": "full", **sections.get("model", {})}
  return estimate(config(mesh={"data": 1, **mesh}, **sections), sizes(**mesh), chip)


def test_rematerialization_trades_activations_for_work():
  policies = ("offload", "full", "dots", "none")
  offload, full, dots, none = (made(model={"remat": r}) for r in policies)
  kept = "activations kept for the gradient"
  assert offload.working[kept] < full.working[kept] < dots.working[kept] < none.working[kept]
  assert full.flops["executed"] > dots.flops["executed"] > none.flops["executed"]
  assert full.flops["executed"] == offload.flops["executed"]
  assert full.flops["model"] == none.flops["model"]


def test_bfloat16_halves_parameters_and_leaves_statistics_and_sums_of_gradients():
  whole, half = (
    made(model={"param_dtype": t}, train={"accumulate": 2}, data={"lanes": 16})
    for t in ("float32", "bfloat16")
  )
  assert half.resting["parameters"] < 0.51 * whole.resting["parameters"], "gates are float32"
  assert half.resting["optimizer"] == whole.resting["optimizer"]
  assert half.working["gradients"] > 0.7 * whole.working["gradients"], "their sum is float32"


def test_muon_and_lion_have_one_moment_and_an_average_is_a_float32_copy():
  adamw, muon, lion = (made(optimizer={"name": n}).resting for n in ("adamw", "muon", "lion"))
  assert muon["optimizer"] < 0.75 * adamw["optimizer"] and lion["optimizer"] < muon["optimizer"]
  assert lion["optimizer"] == pytest.approx(adamw["optimizer"] / 2, rel=0.02)
  half = made(optimizer={"ema": 0.9}, model={"param_dtype": "bfloat16"}).resting
  assert half["moving average"] == adamw["parameters"] and "moving average" not in adamw


def test_a_base_width_costs_nothing_but_a_count_of_steps():
  plain, scaled = (made(model={"width": 32, "width_base": base}) for base in (0, 16))
  for field in ("collectives", "flops", "tokens", "parameters", "working"):
    assert getattr(scaled, field) == getattr(plain, field), field
  more = {name: scaled.resting[name] - plain.resting[name] for name in plain.resting}
  assert 0 < more.pop("optimizer") <= 16 and not any(more.values())


def test_muon_needs_whole_matrices_of_the_layers_that_a_device_computes():
  """The width is so large that the update needs most. Layers that no axis divides are repeated."""
  size = {"width": 512, "ffn": 2048, "vocab_size": 64}

  def held(layers, name="muon", **mesh):
    found = made(mesh, model=size | {"layers": layers}, optimizer={"name": name})
    return found.working.get("whole matrices", 0)

  assert not held(4, "adamw", fsdp=4)
  assert held(4, fsdp=4) == held(8, fsdp=4) / 2 == held(2, fsdp=2)
  assert held(3, fsdp=4) == 3 * held(4, fsdp=4), "no axis divides three layers"
  assert held(4, fsdp=4, tensor=2) == held(4, fsdp=4), "two axes would leave half a layer"
  numbers = 512 * 32 * 4 + 512 * 2048 * 3
  assert held(4, fsdp=4) == 5 * 4 * numbers and held(1, data=1) == 2 * 4 * numbers


def test_muon_sends_whole_matrices_to_devices_and_back():
  sent_by = lambda **how: {c.what: c for c in made(**how).collectives}
  (plain, muon) = (sent_by(optimizer={"name": name}) for name in ("adamw", "muon"))
  assert muon.keys() - plain.keys() == {"matrices of layers"}
  assert muon["matrices of layers"].kind == "exchange"
  alone = sent_by(mesh={"data": 1}, optimizer={"name": "muon"})
  assert "matrices of layers" not in alone


def test_work_that_is_divided_further_takes_less_of_everything():
  few, many = made({"fsdp": 2}), made({"fsdp": 4, "seq": 2})
  assert many.total < few.total
  assert many.seconds["compute"] == pytest.approx(few.seconds["compute"] / 4)


def test_what_is_carried_does_not_depend_on_the_length():
  """The bytes sent for the memory are those of states. Ring attention would send T keys."""
  by_length = [made(data={"segments": s}) for s in (2, 64)]
  memories = [[c for c in m.collectives if c.what.startswith("memories")] for m in by_length]
  assert memories[0]
  assert memories[0] == memories[1]


@pytest.mark.parametrize("rule, states", [("linear", 1), ("delta", 2)])
def test_memories_grow_with_the_logarithm_of_a_long_axis(rule, states):
  def memory(seq):
    c = {"model": {"rule": rule, "width": 256}, "data": {"segments": seq}}
    found = made({"seq": seq}, **c, evaluation={"segments": seq}).collectives
    return sum(x.bytes for x in found if x.what.startswith("memories"))

  state = 2 * 3 * 8 * 4 * (8 * 9) * 4  # layers, passes, lanes, heads, E (E + 1) floats
  assert memory(64) - memory(32) < 1.2 * states * state
  assert memory(256) - memory(32) < 1.2 * states * 3 * state


def test_sharing_nothing_sends_nothing():
  assert made({"data": 1}).collectives == ()
  assert {c.what for c in made({"data": 8}).collectives} == {"gradients of copies"}


@pytest.mark.parametrize(
  "kind, part", [("all-gather", 3 / 4), ("reduce-scatter", 3 / 4), ("all-reduce", 6 / 4)]
)
def test_what_a_ring_sends(kind, part):
  assert sent(kind, 100, 4) == 100 * part
  assert sent(kind, 100, 1) == 0


def test_which_axes_leave_a_host_of_gpus():
  h200 = CHIPS["h200"]
  assert leaves_island(("fsdp",), sizes(fsdp=16), h200)
  assert leaves_island(("fsdp",), sizes(fsdp=4, seq=4), h200)
  assert not leaves_island(("seq",), sizes(fsdp=4, seq=4), h200)
  assert not leaves_island(("fsdp",), sizes(fsdp=64), V5E)
  assert leaves_island(("dcn",), sizes(dcn=2), V5E)


def test_the_bound_is_the_slowest_resource():
  e = made()
  slow = dataclasses.replace(V5E, link_rate=1.0)
  bound = made(chip=slow)
  assert max(bound.seconds, key=bound.seconds.get) == "interconnect"
  assert bound.bound < e.bound
  assert e.unoverlapped < e.bound <= e.flops["model"] / e.flops["executed"]


def test_adapting_a_part_needs_less_and_a_teacher_more():
  whole, lora = made(), made(model={"lora_rank": 2}, train={"part": "lora"})
  added = sum(p.numbers for p in lora.parameters) - sum(p.numbers for p in whole.parameters)
  # Adapters of queries, keys and values (16 to 32), and of the output, in two layers.
  assert added == 2 * 4 * 2 * (16 + 4 * 8)
  assert lora.resting["optimizer"] < 0.6 * whole.resting["optimizer"]
  assert lora.working["gradients"] < whole.working["gradients"]
  taught = made(train={"distill_weight": 0.5, "start_from": "RUN"}, mesh={"fsdp": 8})
  alone = made(mesh={"fsdp": 8})
  gates = 2 * 4 * 4  # bytes; the original has no gates
  assert taught.resting["original"] == taught.resting["parameters"] - gates
  assert taught.flops["executed"] > alone.flops["executed"]
  assert taught.flops["model"] == alone.flops["model"]
