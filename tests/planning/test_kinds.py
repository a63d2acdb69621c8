"""Kinds of work and call stacks, on programs that a hand wrote."""

import pytest

from gemma3_jax.planning import call_stacks, hlo, kinds

PROGRAM = """HloModule jit_f, is_scheduled=true

FileNames
1 "/home/me/gemma3_jax/gemma3_jax/model/layers.py"
2 "/env/lib/python3.11/site-packages/optax/_src/update.py"
3 "/home/me/script.py"

FunctionNames
1 "RMSNorm.__call__"
2 "apply_updates"
3 "<module>"

FileLocations
1 {file_name_id=1 function_name_id=1 line=25 end_line=25 column=1 end_column=2}
2 {file_name_id=2 function_name_id=2 line=7 end_line=7 column=1 end_column=2}
3 {file_name_id=3 function_name_id=3 line=1 end_line=1 column=1 end_column=2}

StackFrames
1 {file_location_id=3 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}
3 {file_location_id=2 parent_frame_id=2}

%fused_product (p: bf16[8,8], q: bf16[8,8]) -> f32[8] {
  %p = bf16[8,8]{1,0} parameter(0)
  %q = bf16[8,8]{1,0} parameter(1)
  %dot = f32[8,8]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %zero = f32[] constant(0)
  ROOT %sum = f32[8]{0} reduce(%dot, %zero), dimensions={1}, to_apply=%add
}

%fused_cast (p.1: bf16[8,8]) -> f32[8,8] {
  %p.1 = bf16[8,8]{1,0} parameter(0)
  %slice = bf16[8,8]{1,0} slice(%p.1), slice={[0:8], [0:8]}
  ROOT %convert = f32[8,8]{1,0} convert(%slice)
}

%fused_done (p.2: bf16[8,8]) -> bf16[8,8] {
  %p.2 = bf16[8,8]{1,0} parameter(0)
  %gathered = bf16[8,8]{1,0} all-gather(%p.2), dimensions={0}
  ROOT %end = bf16[8,8]{1,0} custom-call(%gathered), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: bf16[8,8]) -> f32[8] {
  %a = bf16[8,8]{1,0:T(8,128)} parameter(0), metadata={op_name="a" stack_frame_id=2}
  %moved = bf16[8,8]{1,0:T(8,128)S(1)} copy(%a), metadata={op_name="b" stack_frame_id=3}
  %turned = bf16[8,8]{0,1:T(8,128)} copy(%a)
  %flat = bf16[64]{0} reshape(%a)
  %sent = bf16[8,8]{1,0} all-gather-start(%a), dimensions={0}
  %received = bf16[8,8]{1,0} all-gather-done(%sent)
  %fetched = bf16[8,8]{1,0} fusion(%a), kind=kCustom, calls=%fused_done
  %cast = f32[8,8]{1,0} fusion(%a), kind=kLoop, calls=%fused_cast
  %kernel = bf16[8,8]{1,0} custom-call(%a), custom_call_target="tpu_custom_call"
  %buffer = bf16[8,8]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %top = bf16[8,8]{1,0} custom-call(%a), custom_call_target="TopK"
  %sorted = bf16[8,8]{1,0} sort(%a), dimensions={1}
  ROOT %product = f32[8]{0} fusion(%a, %a), kind=kOutput, calls=%fused_product
}
"""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a", None),
        ("moved", "copy"),  # to another memory, in the same layout
        ("turned", "layout"),
        ("flat", "layout"),
        ("sent", "collective"),
        ("received", None),
        ("fetched", None),  # waits for what another fusion started
        ("cast", "elementwise"),
        ("kernel", "kernel"),
        ("buffer", None),
        ("top", "scatter/gather/sort"),
        ("sorted", "scatter/gather/sort"),
        ("product", "product"),
    ],
)
def test_an_instruction_has_the_kind_of_the_dearest_work_in_it(name, kind):
    module = hlo.read(PROGRAM)
    main = module.computations[module.entry]
    assert kinds.of(module, main, main.instructions[name]) == kind


def test_a_call_stack_has_the_innermost_call_first_and_no_paths_of_this_machine():
    stacks, main = call_stacks.read(PROGRAM), hlo.read(PROGRAM).computations["main"]
    script = call_stacks.Frame("script.py", "<module>", 1)
    norm = call_stacks.Frame("gemma3_jax/model/layers.py", "RMSNorm.__call__", 25)
    assert call_stacks.of(main.instructions["a"], stacks) == (norm, script)
    update = call_stacks.Frame("optax/_src/update.py", "apply_updates", 7)
    assert call_stacks.of(main.instructions["moved"], stacks) == (update, script)
    assert call_stacks.of(main.instructions["flat"], stacks) == ()


def test_a_program_without_tables_has_no_call_stacks():
    assert call_stacks.read(PROGRAM[PROGRAM.index("%fused_product") :]) == {}
