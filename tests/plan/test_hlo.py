"""Kinds, groups and loops read from XLA's text, and the compiled weak scaling of the memory."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from infini_jax.plan.hlo import communication

ROOT = Path(__file__).parent.parent.parent

# Shortened text of XLA: a loop of 3 whose body runs a fusion, and each notation of a group.
PROGRAM = """\
HloModule step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %s = f32[] add(%x, %y)
}

%inner (p: f32[2,8]) -> f32[16,8] {
  ROOT %g = f32[16,8]{1,0:T(8,128)} all-gather(%p), channel_id=1, replica_groups=[2,8]<=[16]
}

%body (t: (s32[], f32[2,8])) -> (s32[], f32[2,8]) {
  %f = f32[16,8]{1,0} fusion(%q), kind=kCustom, calls=%inner
  %r = bf16[100]{0} all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

%condition (t: (s32[], f32[2,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3), metadata={op_name="jit(f)"}
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (a: f32[2,8]) -> f32[2,8] {
  %w = (s32[], f32[2,8]) while(%t), condition=%condition, body=%body
  %m = f32[25]{0} reduce-scatter(%v), replica_groups=mesh['a'=4,'b'=4] {'a'}, to_apply=%add
  %c = (f32[10]{0}, f32[10]{0}) collective-permute-start(%v), source_target_pairs={{0,1},{1,2}}
  %d = f32[10]{0} collective-permute-done(%c)
  %k = f32[64]{0} all-gather(%v), channel_id=9, replica_groups=[4,4]<=[16], chain_id="1"
  %l = f32[64]{0} all-gather(%v), channel_id=9, replica_groups=[4,4]<=[16], chain_id="1"
}
"""


def test_collectives_of_every_form_times_the_loops_around_them():
  found = communication(PROGRAM, 16)
  assert not found.unknown_loops
  parts = {(p.kind, p.dtype, p.devices): (p.times, p.bytes) for p in found.parts}
  assert parts == {
    ("all-gather", "f32", 8): (3, 3 * 512 * 7 / 8),
    ("all-reduce", "bf16", 4): (3, 3 * 2 * 200 * 3 / 4),
    ("reduce-scatter", "f32", 4): (1, 100 * 3),
    ("permute", "f32", 16): (1, 40),
    ("all-gather", "f32", 4): (1, 256 * 3 / 4),
  }


STARTED = """\
ENTRY %main (a: f32[2,8]) -> f32[2,8] {
  %g = (s32[1,512]{1,0}, s32[4,512]{1,0}) all-gather-start(%p), replica_groups=[1,4]<=[4]
  %h = s32[4,512]{1,0} all-gather-done(%g)
  %r = ((f32[64,8]{0,1}), f32[64,2]{0,1}) reduce-scatter-start(%q), replica_groups=[1,4]<=[4]
  %s = f32[64,2]{0,1} reduce-scatter-done(%r)
  %e = ((bf16[4,8]{1,0}), bf16[4,8]{1,0}) all-to-all-start(%x), replica_groups=[1,4]<=[4]
  %f = bf16[4,8]{1,0} all-to-all-done(%e)
  %y = f32[6]{0} all-reduce-start(%b), replica_groups=[1,4]<=[4]
  %z = f32[6]{0} all-reduce-done(%y)
}
"""


def test_the_operands_of_a_started_collective_are_not_counted():
  """The forms of XLA for GPUs."""
  parts = {p.kind: (p.times, p.bytes) for p in communication(STARTED, 4).parts}
  assert parts == {
    "all-gather": (1, 4 * 512 * 4 * 3 / 4),
    "reduce-scatter": (1, 64 * 8 * 4 * 3 / 4),
    "exchange": (1, 4 * 8 * 2 * 3 / 4),
    "all-reduce": (1, 2 * 6 * 4 * 3 / 4),
  }


def test_loops_of_unknown_length_are_counted():
  found = communication(PROGRAM.replace("constant(3)", "parameter(0)"), 16)
  assert found.unknown_loops == 1


@pytest.fixture(scope="module")
def scaling(tmp_path_factory):
  """Bytes that a chip sends in the compiled program, for each rule, axis and two lengths."""
  file = tmp_path_factory.mktemp("scaling") / "bytes.json"
  script = [sys.executable, "benchmarks/weak_scaling.py", "--axes=8,16,32", f"--json={file}"]
  done = subprocess.run(script, cwd=ROOT, text=True, capture_output=True, timeout=500)
  assert done.returncode == 0, done.stderr
  return {(row["rule"], row["chips"]): row["bytes"] for row in json.loads(file.read_text())}


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_what_the_memory_sends_does_not_grow_with_t(scaling, rule):
  for chips in (8, 16, 32):
    short, long = scaling[rule, chips]
    assert short == long > 0


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_what_the_memory_sends_grows_at_most_like_the_logarithm_of_the_axis(scaling, rule):
  for few, many in ((8, 16), (16, 32), (8, 32)):
    grown = scaling[rule, many][0] / scaling[rule, few][0]
    assert grown <= math.log2(many) / math.log2(few)
