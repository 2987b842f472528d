"""XLA's flags for CPUs."""

import importlib.util
import os

import pytest

from infini_jax import cpu

NAME = "--xla_cpu_experimental_ynn_fusion_type"


@pytest.mark.parametrize(
  "environ,plugin,dtype,expected",
  [
    ({}, None, "float32", f"{NAME}=dot"),
    ({"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--a=1"}, "libtpu", "float32", f"--a=1 {NAME}=dot"),
    ({"XLA_FLAGS": f"{NAME}="}, None, "float32", f"{NAME}="),
    ({}, None, "bfloat16", None),  # slower with the flag
    ({"XLA_FLAGS": "--a=1"}, None, "bfloat16", "--a=1"),
    ({}, "libtpu", "float32", None),
    ({"JAX_PLATFORMS": "cuda"}, None, "float32", None),
  ],
)
def test_flags_are_set_where_a_cpu_computes(monkeypatch, environ, plugin, dtype, expected):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name == plugin else None)
  cpu.set_flags(environ, dtype)
  assert environ.get("XLA_FLAGS") == expected


def test_programs_of_another_processor_are_kept_apart(monkeypatch, tmp_path):
  environ = {"XDG_CACHE_HOME": str(tmp_path)}
  here = cpu.programs(environ)
  assert here.is_dir() and here == cpu.programs(environ) and here.is_relative_to(tmp_path)
  (here / "old").touch()
  (here / "new").touch()
  os.utime(here / "old", (0, 0))
  cpu.programs(environ)
  assert [file.name for file in here.iterdir()] == ["new"], "programs are kept for a month"
  assert here.stat().st_mode & 0o077 == 0, "JAX loads what lies there: nobody else may write it"
  monkeypatch.setattr(cpu, "_processor", lambda: "another")
  assert cpu.programs(environ) != here


def test_without_a_place_for_them_no_programs_are_kept(tmp_path):
  (tmp_path / "file").touch()
  assert cpu.programs({"XDG_CACHE_HOME": str(tmp_path / "file")}) is None
