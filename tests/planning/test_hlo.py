"""How often a step runs each computation: trip counts from the loop, from XLA's note, and unknown ones."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from gemma3_jax.planning import hlo

X = jax.ShapeDtypeStruct((8, 8), jnp.float32)


def text_of(f, *shapes):
    return jax.jit(f).lower(*shapes).compile().as_text()


def trips_of(text):
    """[(times entered, trips)] of every loop; None: unknown."""
    loops = hlo.count_runs(hlo.read(text)).loops
    return sorted(((loop.num_entered, loop.num_trips) for loop in loops), key=str)


def without_notes(text):
    """The text as a TPU program has it: without XLA's notes on trip counts."""
    return re.sub(r'"known_\w+":\{[^}]*\},?', "", text)


def product(x, _=None):
    return jnp.tanh(x @ x), None


def counting(start, goes_on, step):
    """A loop over (counter, x) that ends by its counter."""
    return lambda x: lax.while_loop(lambda s: goes_on(s[0]), lambda s: (step(s[0]), product(s[1])[0]), (start, x))[1]


def nested(x):
    def outer(x, _):
        return lax.scan(product, x, length=5)[0], None

    return lax.scan(product, lax.scan(outer, x, length=3)[0], length=7)[0]


LOOPS = {  # name -> (function of x, [(times entered, trips)])
    "nested": (nested, [(1, 3), (1, 7), (3, 5)]),
    "three deep": (lambda x: lax.fori_loop(0, 2, lambda _, x: nested(x), x), [(1, 2), (2, 3), (2, 7), (6, 5)]),
    "backward": (lambda x: lax.scan(product, x, length=6, reverse=True)[0], [(1, 6)]),
    "from 3 to 20": (lambda x: lax.fori_loop(3, 20, lambda i, x: product(x)[0] + i, x), [(1, 17)]),
    "by threes": (counting(0, lambda i: i < 10, lambda i: i + 3), [(1, 4)]),
    "to 10 and with it": (counting(0, lambda i: i <= 10, lambda i: i + 1), [(1, 11)]),
    "down": (counting(9, lambda i: i > 0, lambda i: i - 2), [(1, 5)]),
    "down, unsigned": (counting(jnp.uint32(9), lambda i: i > 1, lambda i: i - 1), [(1, 8)]),
    "constant first": (counting(0, lambda i: 10 > i, lambda i: i + 1), [(1, 10)]),
    "until equal": (counting(0, lambda i: i != 12, lambda i: i + 4), [(1, 3)]),
    "counter ahead": (counting(0, lambda i: i + 2 < 10, lambda i: i + 1), [(1, 8)]),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_over_constants_is_counted_with_and_without_notes(name):
    f, expected = LOOPS[name]
    text = text_of(f, X)
    assert trips_of(text) == expected
    assert "known_trip_count" not in without_notes(text) and trips_of(without_notes(text)) == expected


def test_a_loop_that_ends_by_its_data_is_reported_and_counted_once():
    def f(x):
        def until_large(x, _):
            return lax.while_loop(lambda x: jnp.sum(x) < 100, lambda x: product(x)[0], x), None

        return lax.scan(until_large, x, length=4)[0]

    module = hlo.read(text_of(f, X))
    runs = hlo.count_runs(module)
    [unknown] = runs.unknown_loops
    assert unknown.num_entered == 4 and runs.times[unknown.body] == 4
    assert re.search(r"while/body/(closed_call|eval_jaxpr)/while$", unknown.source)  # of jax 0.10, of jax 0.12
    assert len(runs.loops) == 2


def test_a_loop_whose_bound_another_loop_changes_is_unknown():
    def f(x):  # the inner one takes i trips
        return lax.fori_loop(0, 5, lambda i, x: lax.fori_loop(0, i, lambda _, x: product(x)[0], x), x)

    assert (5, None) in trips_of(text_of(f, X))


def test_every_branch_of_a_conditional_counts_and_is_named():
    def f(x, i):
        return lax.switch(i, [lambda x: product(x)[0], lambda x: nested(x), lambda x: x + 1], x)

    runs = hlo.count_runs(hlo.read(text_of(f, X, jax.ShapeDtypeStruct((), jnp.int32))))
    assert len(runs.conditionals) == 1
    assert {(loop.num_entered, loop.num_trips) for loop in runs.loops} == {(1, 3), (1, 7), (3, 5)}


# As libtpu prints a product in pieces that go around a ring: constants stand in the state of the loop, which counts by
# twos, and come into it through that of the loop around it, through copies that are started and awaited.
TPU = """HloModule jit_one, is_scheduled=true, num_partitions=16, frontend_attributes={a="{"}

FileNames
1 "model.py"

%fused_computation.1 (param_0: u32[], param_1: u32[]) -> u32[] {
  %param_0 = u32[]{:T(128)} parameter(0)
  %param_1 = u32[]{:T(128)} parameter(1)
  ROOT %add.1 = u32[]{:T(128)S(6)} add(%param_1, %param_0)
}

%ring (param.1: (bf16[8,256], u32[], u32[], /*index=3*/u32[])) -> (bf16[8,256], u32[], u32[], /*index=3*/u32[]) {
  %param.1 = (bf16[8,256]{1,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}, u32[]{:T(128)}, /*index=3*/u32[]{:T(128)}) parameter(0)
  %get.0 = bf16[8,256]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%param.1), index=0
  %get.1 = u32[]{:T(128)} get-tuple-element(%param.1), index=1
  %get.2 = u32[]{:T(128)} get-tuple-element(%param.1), index=2
  %get.3 = u32[]{:T(128)} get-tuple-element(%param.1), index=3
  %fusion.1 = u32[]{:T(128)} fusion(%get.2, %get.1), kind=kLoop, calls=%fused_computation.1, metadata={op_name="a, calls=%b"}
  ROOT %tuple.1 = (bf16[8,256]{1,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}, u32[]{:T(128)}, /*index=3*/u32[]{:T(128)}) tuple(%get.0, %fusion.1, %get.2, %get.3)
}

%ring_goes_on (param.2: (bf16[8,256], u32[], u32[], /*index=3*/u32[])) -> pred[] {
  %param.2 = (bf16[8,256]{1,0}, u32[]{:T(128)}, u32[]{:T(128)}, /*index=3*/u32[]{:T(128)}) parameter(0)
  %get.4 = u32[]{:T(128)} get-tuple-element(%param.2), index=1
  %get.5 = u32[]{:T(128)} get-tuple-element(%param.2), index=3
  ROOT %compare.1 = pred[]{:T(512)} compare(%get.4, %get.5), direction=LT
}

%layer (param.3: (s32[], bf16[8,256], u32[])) -> (s32[], bf16[8,256], u32[]) {
  %param.3 = (s32[]{:T(128)}, bf16[8,256]{1,0}, u32[]{:T(128)}) parameter(0)
  %get.6 = s32[]{:T(128)} get-tuple-element(%param.3), index=0
  %get.7 = bf16[8,256]{1,0} get-tuple-element(%param.3), index=1
  %get.8 = u32[]{:T(128)} get-tuple-element(%param.3), index=2
  %constant.1 = u32[]{:T(128)} constant(0)
  %constant.2 = u32[]{:T(128)} constant(2)
  %constant.3 = s32[]{:T(128)} constant(1)
  %copy-start.1 = (u32[]{:T(128)}, u32[]{:T(128)S(6)}, u32[]{:S(2)}) copy-start(%get.8), cross_program_prefetch_index=0
  %copy-done.1 = u32[]{:T(128)} copy-done(%copy-start.1)
  %tuple.2 = (bf16[8,256]{1,0}, u32[]{:T(128)}, u32[]{:T(128)}, /*index=3*/u32[]{:T(128)}) tuple(%get.7, %constant.1, %constant.2, %copy-done.1)
  %while.1 = (bf16[8,256]{1,0}, u32[]{:T(128)}, u32[]{:T(128)}, /*index=3*/u32[]{:T(128)}) while(%tuple.2), condition=%ring_goes_on, body=%ring
  %get.9 = bf16[8,256]{1,0} get-tuple-element(%while.1), index=0
  %add.2 = s32[]{:T(128)} add(%get.6, %constant.3)
  ROOT %tuple.3 = (s32[]{:T(128)}, bf16[8,256]{1,0}, u32[]{:T(128)}) tuple(%add.2, %get.9, %get.8)
}

%layers_go_on (param.4: (s32[], bf16[8,256], u32[])) -> pred[] {
  %constant.4 = s32[]{:T(128)} constant(26)
  %param.4 = (s32[]{:T(128)}, bf16[8,256]{1,0}, u32[]{:T(128)}) parameter(0)
  %get.10 = s32[]{:T(128)} get-tuple-element(%param.4), index=0
  ROOT %compare.2 = pred[]{:T(512)} compare(%get.10, %constant.4), direction=LT
}

ENTRY %main (param.5: bf16[8,256]) -> bf16[8,256] {
  %param.5 = bf16[8,256]{1,0:T(8,128)(2,1)} parameter(0), sharding={devices=[16,1]<=[16]}
  %constant.5 = s32[]{:T(128)} constant(0)
  %constant.6 = u32[]{:T(128)} constant(16)
  %tuple.4 = (s32[]{:T(128)}, bf16[8,256]{1,0}, u32[]{:T(128)}) tuple(%constant.5, %param.5, %constant.6)
  %while.2 = (s32[]{:T(128)}, bf16[8,256]{1,0}, u32[]{:T(128)}) while(%tuple.4), condition=%layers_go_on, body=%layer, metadata={op_name="jit(one)/while" stack_frame_id=2}, backend_config={"flag_configs":[]}
  ROOT %get.11 = bf16[8,256]{1,0} get-tuple-element(%while.2), index=1
}
"""  # noqa: E501


def test_a_loop_of_a_tpu_finds_its_constants_in_the_state_of_those_around_it():
    runs = hlo.count_runs(hlo.read(TPU))
    assert runs.loops == (
        hlo.Loop("while.2", "layer", 26, 1, "jit(one)/while"),
        hlo.Loop("while.1", "ring", 8, 26, ""),
    )
    assert runs.times == {
        "main": 1, "layer": 26, "layers_go_on": 27, "ring": 208, "ring_goes_on": 26 * 9, "fused_computation.1": 208,
    }  # fmt: skip


def test_a_bound_may_stand_on_either_side():
    mirrored = TPU.replace("compare(%get.4, %get.5), direction=LT", "compare(%get.5, %get.4), direction=GT")
    assert mirrored != TPU and trips_of(mirrored) == trips_of(TPU) == [(1, 26), (26, 8)]


@pytest.mark.parametrize(
    "was, becomes",
    [
        ("constant(16)", "multiply(%constant.6, %constant.6)"),  # not an addition
        ("tuple(%add.2, %get.9, %get.8)", "tuple(%add.2, %get.9, %constant.2)"),  # no longer the same in every run
        ("tuple(%get.0, %fusion.1, %get.2, %get.3)", "tuple(%get.0, %fusion.1, %fusion.1, %get.3)"),  # no fixed step
        ("compare(%get.4, %get.5), direction=LT", "compare(%get.4, %get.5), direction=EQ"),  # no bound
    ],
)
def test_a_loop_whose_numbers_are_not_all_constant_is_unknown(was, becomes):
    assert was in TPU
    [unknown] = hlo.count_runs(hlo.read(TPU.replace(was, becomes))).unknown_loops or [None]
    assert unknown and unknown.name == "while.1" and unknown.num_entered == 26


def test_the_note_of_xla_counts_where_the_loop_has_no_constants():
    note = 'backend_config={"known_trip_count":{"n":"5"}}'
    text = TPU.replace("constant(16)", "multiply(%constant.6, %constant.6)")
    text = text.replace("condition=%ring_goes_on, body=%ring", f"condition=%ring_goes_on, body=%ring, {note}")
    assert trips_of(text) == [(1, 26), (26, 5)]


def test_an_instruction_is_read_with_its_shapes_operands_and_rest():
    ring = hlo.read(TPU).computations["ring"]
    assert ring.root == "tuple.1"
    state = ring.instructions["param.1"]
    assert state.opcode == "parameter" and state.literal == "0" and state.operands == ()
    assert state.shapes == (hlo.Shape("bf16", (8, 256)), *[hlo.Shape("u32", ())] * 3)
    fusion = ring.instructions["fusion.1"]
    assert fusion.operands == ("get.2", "get.1") and fusion.called == (("calls", "fused_computation.1"),)
    assert hlo.source(fusion) == "a, calls=%b"
    assert hlo.read(TPU).num_partitions == 16


@pytest.mark.parametrize(
    "dtype, num_bytes", [("f32", 24), ("bf16", 12), ("f8e4m3fn", 6), ("pred", 6), ("s4", 3), ("c64", 48), ("token", 0)]
)
def test_a_shape_knows_its_bytes(dtype, num_bytes):
    assert hlo.Shape(dtype, (2, 3)).num_bytes == num_bytes


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match=r"no ENTRY computation; pass what `compiled\.as_text\(\)` returns"):
        hlo.read("HloModule jit_f")
