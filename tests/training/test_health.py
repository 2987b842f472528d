"""Health metrics equal plain arithmetic, and name the place of a fault."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax import cli
from infini_jax.ops.memory import MemoryState, read
from infini_jax.runs.metrics import read_metrics
from infini_jax.training.health import check_finite, log_values, memory_metrics
from tests.tiny import CONFIG_FILE, RUN, array, model_config, patterned

L, B, K, H, E, U = 3, 4, 2, 4, 6, 6


def memory(rng):
  """Random memories; one head of one layer is empty in every lane, another only in one lane."""
  M = rng.standard_normal((L, B, K, E, U)).astype(np.float32) * 10
  z = rng.uniform(0.1, 9, (L, B, K, E)).astype(np.float32)
  for place in ((1, slice(None), 0), (2, 0, 1)):
    M[place], z[place] = 0, 0
  return M, z


def metrics(rng, M, z, **model):
  config = model_config(layers=L, heads=H, kv_heads=K, **model)
  beta, grad = (rng.standard_normal((L, H)).astype(np.float32) * 3 for _ in range(2))
  tree = lambda x: {"blocks": {"attention": {"mixer": {"beta_H": array(x)}}}}
  state = MemoryState(array(M), array(z))
  found = memory_metrics(config, tree(beta), tree(grad), state)
  return jax.device_get(found), beta, grad


def step(rng, **more):
  M, z = memory(rng)
  return {"loss": np.float32(2), "grad_norm": np.float32(1), **metrics(rng, M, z)[0], **more}


def test_metrics_equal_plain_arithmetic(rng):
  M, z = memory(rng)
  got, beta, grad = metrics(rng, M, z)
  np.testing.assert_allclose(got["gates_LH"], 1 / (1 + np.exp(-beta)), rtol=1e-5)
  np.testing.assert_array_equal(got["gate_grad_LH"], grad)
  np.testing.assert_allclose(got["memory_L"], [(m**2).mean() ** 0.5 for m in M], rtol=1e-5)
  np.testing.assert_allclose(got["z_L"], [x.mean() for x in z], rtol=1e-5)
  for layer in range(L):
    for head in range(K):
      m, x = M[layer, :, head], z[layer, :, head]
      rows = [abs(m[b, e]).max() / x[b, e] for b in range(B) for e in range(E) if x[b, e] > 0]
      for name, want in (
        ("memory_max_LK", abs(m).max()),
        ("z_max_LK", x.max()),
        ("readout_max_LK", max(rows, default=0)),
        ("empty_LK", not x.any()),
      ):
        np.testing.assert_allclose(got[name][layer, head], want, rtol=1e-5, err_msg=name)
  hard, beta, _ = metrics(rng, M, z, gate="hard_sigmoid")
  np.testing.assert_allclose(hard["gates_LH"], np.clip(beta / 6 + 0.5, 0, 1), atol=1e-6)


def test_no_query_reads_more_than_the_bound(rng):
  M, z = memory(rng)
  got, *_ = metrics(rng, M, z)
  worst = np.zeros((L, K))
  for scale in (0.1, 3.0, 100.0):  # a large scale selects one row, and comes near the bound
    q = array(rng.standard_normal((B, 300, K, E)) * scale, jnp.float32)
    for layer in range(L):
      found = np.asarray(read(q, MemoryState(array(M[layer]), array(z[layer]))))
      worst[layer] = np.maximum(worst[layer], abs(found).max((0, 1, 3)))
  assert (worst <= got["readout_max_LK"] * 1.0001).all(), "a query reads more than readout_max_LK"
  assert (worst >= got["readout_max_LK"] * 0.1).all(), "the bound is far from what is read"


def test_other_mixers_have_no_metrics_and_can_still_be_checked(rng):
  assert memory_metrics(model_config(mixer="local"), {}, {}, ()) == {}
  plain = {"loss": np.float32(3), "grad_norm": np.float32(1), "tokens": np.float32(9)}
  check_finite(4, plain)
  assert log_values(plain) == {"grad_norm": 1.0}
  with pytest.raises(FloatingPointError, match=r"^step 4: loss nan, gradient norm 1: lower config"):
    check_finite(4, {**plain, "loss": np.float32(np.nan)})


def test_of_a_pattern_the_metrics_stand_in_their_layers(rng):
  c = patterned(("full", "infini", "local"), 9, heads=H, kv_heads=K, head_dim=E)
  M, z = memory(rng)
  alone, beta, grad = metrics(rng, M, z)
  tree = lambda x: {"blocks": {"attention": {"mixer": {"infini": {"beta_H": array(x)}}}}}
  state = {"infini": MemoryState(array(M), array(z)), "full": None, "local": ()}
  found = jax.device_get(memory_metrics(c, tree(beta), tree(grad), state))
  np.testing.assert_array_equal(found.pop("remembers_L"), [False, True, False] * 3)
  for name, x in alone.items():
    np.testing.assert_allclose(found[name][1::3], x, rtol=1e-5)
    assert not found[name][::3].any(), "a layer without a memory has 0"
  whole = {"loss": np.float32(2), "grad_norm": np.float32(1), **found}
  good = {"loss": np.float32(2), "grad_norm": np.float32(1), **alone}
  mask = {"remembers_L": np.array([False, True, False] * 3)}
  assert log_values(whole | mask)["dead_heads"] == log_values(good)["dead_heads"]
  bad = np.array(found["z_max_LK"])
  bad[7, 1] = np.nan
  with pytest.raises(FloatingPointError, match="the normalizer z of layer 8, head 2 is nan"):
    check_finite(1, {**whole, "z_max_LK": bad})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_layer_and_the_head_of_a_fault_are_named(rng, value):
  names = {
    "z_max_LK": "the normalizer z",
    "memory_max_LK": "the memory M",
    "readout_max_LK": "the read-out",
    "gate_grad_LH": "the gradient of the gate",
    "gates_LH": "the gate",
  }
  good = step(rng)
  check_finite(9, good)
  faults = dict(good)
  for name, what in reversed(names.items()):  # the first cause is added last, and must be named
    bad = np.array(good[name])
    layer, head = rng.integers(bad.shape[0]), rng.integers(bad.shape[1])
    bad[layer, head] = value
    where = f"; {what} of layer {layer + 1}, head {head + 1} is {bad[layer, head]}: lower config."
    faults[name] = bad
    for planted in ({**good, name: bad}, faults):
      with pytest.raises(FloatingPointError) as error:
        check_finite(9, planted)
      message = str(error.value)
      assert where in message and message.startswith("step 9: loss 2, gradient norm 1;")
      assert "config.optimizer.learning_rate or gate_learning_rate" in message
      assert "the checkpoints are of earlier steps" in message and "\n" not in message
  for name in ("loss", "grad_norm"):
    with pytest.raises(FloatingPointError, match="step 9"):
      check_finite(9, {**good, name: np.float32(value)})
  all_bad = {**good, "gates_LH": np.full((L, H), np.nan)}
  with pytest.raises(FloatingPointError, match=r"layer 1, head 1 is nan \(12 of 12 are\)"):
    check_finite(9, all_bad)


def test_a_fault_in_the_arrays_reaches_the_metrics(rng):
  """The maximum of numbers with a NaN must be NaN."""
  for index in range(2):
    arrays = memory(rng)
    arrays[index][0, 3, 1, 2] = np.nan
    found, *_ = metrics(rng, *arrays)
    with pytest.raises(FloatingPointError, match=f"the {('memory M', 'normalizer z')[index]} of la"
                                                 "yer 1, head 2 is nan"):  # fmt: skip
      check_finite(1, {"loss": np.float32(2), "grad_norm": np.float32(1), **found})


def test_what_is_logged_is_by_layer_and_counts_dead_heads(rng):
  good = step(rng, answer_accuracy=np.float32(0.25))
  gates = rng.uniform(0.02, 1, (L, H)).astype(np.float32)
  gates[0, 2] = 0.005  # shut; both query heads of kv head 0 in layer 2 read nothing too
  values = log_values({**good, "gates_LH": gates})
  json.dumps(values)
  assert values["dead_heads"] == pytest.approx(3 / (L * H))
  assert values["answer_accuracy"] == 0.25
  for layer in range(L):
    counts = values["gate_histogram"][layer]
    want = [((gates[layer] >= i / 10) & (gates[layer] < (i + 1) / 10)).sum() for i in range(10)]
    assert counts == want, f"the gates of layer {layer + 1} are {gates[layer]}"
  np.testing.assert_allclose(values["gates_LH"], gates, atol=1e-6)
  assert np.shape(values["readout_max_LK"]) == (L, K) and np.shape(values["memory_L"]) == (L,)


@pytest.mark.slow
def test_a_run_that_blows_up_ends_with_status_1_and_keeps_its_checkpoints(texts, tmp_path, capsys):
  sections = {**RUN, "data": {**RUN["data"], "path": str(texts)}}
  sections["optimizer"] = {"learning_rate": 1e30, "warmup_steps": 0}
  sections["train"] = {**RUN["train"], "checkpoint_every": 1}
  (tmp_path / "config.py").write_text(CONFIG_FILE.format(sections=sections))
  run = tmp_path / "run"
  status = cli.main(["train", f"--config={tmp_path / 'config.py'}", f"--workdir={run}"])
  error = capsys.readouterr().err
  assert status == 1 and error.count("\n") == 1, error
  steps = [int(p.name) for p in (run / "checkpoints").iterdir()]
  assert steps and "3 bad steps in a row, training went back 3 times; loss " in error, error
  assert re.search(r" of layer \d, head \d is (nan|inf)", error), error
  assert "lower config.optimizer.learning_rate" in error
  assert [line["step"] for line in read_metrics(run)] == list(range(1, max(steps) + 1))
