"""XLA's flags for CPUs."""

import importlib.util

import pytest

from infini_jax import cpu

NAME = "--xla_cpu_experimental_ynn_fusion_type"


@pytest.mark.parametrize(
  "environ,plugin,expected",
  [
    ({}, None, f"{NAME}=dot"),
    ({"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--a=1"}, "libtpu", f"--a=1 {NAME}=dot"),
    ({"XLA_FLAGS": f"{NAME}="}, None, f"{NAME}="),
    ({}, "libtpu", None),
    ({"JAX_PLATFORMS": "cuda"}, None, None),
  ],
)
def test_flags_are_set_where_a_cpu_computes(monkeypatch, environ, plugin, expected):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name == plugin else None)
  cpu.set_flags(environ)
  assert environ.get("XLA_FLAGS") == expected
