"""Bytes between a chip and its HBM, counted in XLA's text."""

import jax
import jax.numpy as jnp
import pytest

from infini_jax.plan.hbm import arrays, moved

# Shortened text of XLA for TPUs: a loop of 3 that slices a stack of layers and updates another.
PROGRAM = """\
HloModule step, is_scheduled=true

%sliced (p: f32[3,8,128], i: s32[]) -> f32[8,128] {
  %p = STACK parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %z = s32[]{:T(128)} constant(0)
  %d = f32[1,8,128]{2,1,0:TILED} dynamic-slice(%p, %i, %z, %z), dynamic_slice_sizes={1,8,128}
  ROOT %b = f32[8,128]{1,0:TILED} bitcast(%d)
}

%updated (p: f32[3,8,128], x: f32[8,128], i: s32[]) -> f32[3,8,128] {
  %p = STACK parameter(0)
  %x = f32[8,128]{1,0:TILED} parameter(1)
  %i = s32[]{:T(128)} parameter(2)
  %z = s32[]{:T(128)} constant(0)
  %b = f32[1,8,128]{2,1,0:TILED} bitcast(%x)
  ROOT %u = STACK dynamic-update-slice(%p, %b, %i, %z, %z)
}

%product (a: f32[8,128], w: f32[128,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:TILED} parameter(0)
  %w = f32[128,128]{1,0:TILED} parameter(1)
  ROOT %c = f32[8,128]{1,0:TILED} convolution(%a, %w), metadata={op_name="jit(f)/ffn/dot"}
}

%body (t: TUPLE) -> TUPLE {
  %t = TUPLE parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %s = STACK get-tuple-element(%t), index=1
  %o = STACK get-tuple-element(%t), index=2
  %x = f32[8,128]{1,0:TILED} fusion(%s, %i), kind=kLoop, calls=%sliced
  %u = STACK fusion(%o, %x, %i), kind=kLoop, calls=%updated
}

%condition (t: TUPLE) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (a: f32[8,128], w: f32[128,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:TILED} parameter(0)
  %w = f32[128,128]{1,0:TILED} parameter(1)
  %l = TUPLE while(%k), condition=%condition, body=%body
  %v = f32[8,128]{1,0:TILEDS(1)} copy(%a)
  %y = f32[8,128]{1,0:TILED} fusion(%v, %w), calls=%product, config={"estimated_cycles":"3000"}
  %n = f32[8,1]{1,0:TILED} custom-call(%y), custom_call_target="kernel", data={op_name="f/memory"}
}
"""
for short, long in (
  ("TUPLE", "(s32[], STACK, STACK)"),
  ("STACK", "f32[3,8,128]{2,1,0:TILED}"),
  ("TILED", "T(8,128)"),
):
  PROGRAM = PROGRAM.replace(short, long)
TILE = 4 * 8 * 128  # bytes


def test_slices_updates_loops_and_what_stays_on_the_chip():
  rows = moved(PROGRAM, clock=1e9)
  found = [(one.op, one.times, one.read, one.written) for one in rows]
  index = 4 * 128  # a scalar takes a tile of its own, 512 bytes
  assert [(op, times) for op, times, *_ in found] == [
    ("fusion", 3),
    ("fusion", 3),
    ("copy", 1),
    ("fusion", 1),
    ("kernel", 1),
  ]
  sliced, updated, copy, product, kernel = ((read, written) for *_, read, written in found)
  assert sliced[0] == pytest.approx(3 * TILE, abs=3 * index), "a layer of the stack, not all of it"
  assert sliced[1] == 3 * TILE
  assert updated[0] == pytest.approx(3 * TILE, abs=3 * index), "the stack is updated in place"
  assert updated[1] == 3 * TILE
  assert copy == (TILE, 0), "a copy to the vector memory writes no HBM"
  assert product == (4 * 128 * 128, TILE), "nor does the product read it from there"
  assert kernel == (TILE, TILE), "a column of numbers is padded to a tile"


def test_scopes_products_and_estimates():
  rows = moved(PROGRAM, clock=1e9)
  product, kernel = rows[-2:]
  assert product.multiplies and product.scope == "jit(f)/ffn/dot", "the name is inside the fusion"
  assert product.seconds == pytest.approx(3e-6)
  assert not kernel.multiplies and kernel.seconds == 0 and "memory" in kernel.scope


@pytest.mark.parametrize(
  "type_, bytes_",
  [
    ("f32[8,128]{1,0:T(8,128)}", [4096]),
    ("bf16[5,100]{1,0:T(8,128)(2,1)}", [2 * 8 * 128]),
    ("bf16[5,100]{0,1:T(8,128)(2,1)}", [2 * 104 * 128]),
    ("pred[3]{0}", [3]),
    ("(f32[2,3]{1,0}, s8[7]{0:T(128)})", [24, 128]),
    ("f8e4m3fn[4,4]{1,0}", [16]),
    ("f32[]", [4]),
  ],
)
def test_arrays_with_the_padding_of_their_tiles(type_, bytes_):
  assert [array.bytes for array in arrays(type_)] == bytes_


def test_a_program_of_this_machine_moves_at_least_its_arguments_and_results(rng):
  """XLA's own text, of a product and a sum."""
  a, b = (jnp.asarray(rng.standard_normal((64, 64)), jnp.float32) for _ in range(2))
  text = jax.jit(lambda a, b: a @ b + a).lower(a, b).compile().as_text()
  rows = moved(text)
  array = 4 * 64 * 64
  assert any(one.multiplies for one in rows)
  assert 3 * array <= sum(one.bytes for one in rows) <= 7 * array
