"""Configs with random values in random fields: refused in one line, or a step that traces."""

import dataclasses
import typing
from pathlib import Path

import jax
import numpy as np

from infini_jax import config as config_lib
from infini_jax.config import Config, InputError, from_json
from infini_jax.config.schema import SECTIONS
from infini_jax.models.machine import check_machine
from infini_jax.parallel import abstract_batch, check_divisible, make_mesh
from infini_jax.plan.compiled import example_batch
from infini_jax.training.optimizer import make_optimizer
from infini_jax.training.step import abstract_state, abstract_teacher, make_train_step
from tests.tiny import CONFIG_FILE, RUN

SMALL = 10_000_000  # parameters, and tokens of a batch, of a step that is traced
TEXTS = (
  *("", "0", "1", "-1", "2", "3", "7", "64", "1000", "0.5", "-0.5", "1e-3", "1e30", "nan", "inf"),
  *("-inf", "True", "False", "None", "()", "(1,)", "(1, 2)", "(0.5,)", "[1]", "'a'", "a b", "é\n"),
  *("2147483648", "9223372036854775808", "1" * 400, "__import__('os')", "../..", "/", "\0", "1_0"),
  *("0x10", "1e400", "--1", "=", "infini", "delta", "passkey", "parallel", "{}", "(", "1,2"),
)


def case(rng: np.random.Generator, folder: Path) -> str:
  """A few fields with values of a fitting or a foreign type, given as flags."""
  file = folder / "config.py"
  if not file.exists():
    sections = {name: dict(fields) for name, fields in RUN.items()} | {"mesh": {"data": 1}}
    file.write_text(CONFIG_FILE.format(sections=sections))
  given = [flag(rng) for _ in range(rng.integers(1, 5))]
  try:
    config = config_lib.load_config([f"--config={file}", *given])
  except InputError as error:
    assert "\n" not in str(error), f"{given}: several lines: {error}"
    return "refused"
  again = from_json(config.to_json())
  assert again == config, f"{given}: what run.json holds is another config"
  return step(config, given)


def flag(rng: np.random.Generator) -> str:
  """A field and a value for it."""
  section = str(rng.choice(list(SECTIONS)))
  field = rng.choice(dataclasses.fields(SECTIONS[section]))
  if rng.random() < 0.4:
    return f"--config.{section}.{field.name}={rng.choice(TEXTS)}"
  choices = field.metadata.get("choices")
  if choices:
    return f"--config.{section}.{field.name}={rng.choice(list(choices))}"
  kind = typing.get_type_hints(SECTIONS[section])[field.name]
  value = {
    bool: lambda: bool(rng.random() < 0.5),
    int: lambda: int(rng.choice([0, 1, 2, 3, 4, 8, 16, 100])),
    float: lambda: float(rng.choice([0, 0.1, 0.5, 1, 2, 100, 1e-8])),
  }.get(kind, lambda: rng.choice(TEXTS))()
  return f"--config.{section}.{field.name}={value}"


def step(config: Config, given: list[str]) -> str:
  """Traces the first step, if it is small."""
  m, d = config.model, config.data
  per_layer = m.width * (2 * (m.heads + m.kv_heads) * m.head_dim + 3 * m.ffn)
  parameters = m.layers * per_layer + 2 * m.width * m.vocab_size
  if max(parameters, d.lanes * d.segments * m.segment_length) > SMALL:
    return "accepted, large"
  try:
    check_machine(config)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    check_divisible(config, mesh)
    with jax.set_mesh(mesh):
      tx = make_optimizer(config)
      state = abstract_state(config, tx, mesh)
      batch = abstract_batch(example_batch(config), mesh)
      update = make_train_step(config, tx)
      _, metrics = jax.eval_shape(update, state, batch, *abstract_teacher(config, mesh))
  except InputError as error:
    assert "\n" not in str(error), f"{given}: several lines: {error}"
    return "refused for the machine"
  assert metrics["loss"].shape == (), given
  return "traced"
