"""The kind of work of an instruction. A fusion has the first kind of KINDS that is in it: products hide the rest."""

import re
from collections.abc import Iterator

from gemma3_jax.planning import costs, hlo

PRODUCT, KERNEL, COLLECTIVE, SCATTER = "product", "kernel", "collective", "scatter/gather/sort"
REDUCTION, ELEMENTWISE, LAYOUT, COPY = "reduction", "elementwise", "layout", "copy"
KINDS = (PRODUCT, KERNEL, COLLECTIVE, SCATTER, REDUCTION, ELEMENTWISE, LAYOUT, COPY)

_COLLECTIVE = re.compile(
    r"(all-gather|all-reduce|reduce-scatter|(ragged-)?all-to-all|collective-\w+?|send|recv)(-start)?$"
)
_KIND_OF_OPCODE = {
    **dict.fromkeys(("dot", "convolution"), PRODUCT),
    **dict.fromkeys(("scatter", "gather", "sort", "topk", "select-and-scatter"), SCATTER),
    **dict.fromkeys(("reduce", "reduce-window"), REDUCTION),
    **dict.fromkeys(("reshape", "transpose", "reverse"), LAYOUT),
    **dict.fromkeys(("slice", "dynamic-slice", "dynamic-update-slice", "concatenate", "pad"), COPY),
    **dict.fromkeys(("copy-start", "slice-start", "dynamic-slice-start", "dynamic-update-slice-start"), COPY),
}
# These run nothing by themselves: what they call has its own instructions, and what they wait for was started before.
_FREE = set("parameter constant get-tuple-element tuple bitcast while conditional call call-start async-start".split())
_FREE |= set("async-update after-all opt-barrier optimization-barrier add-dependency partition-id replica-id".split())
_SORTS = ("TopK", "Sort")  # in the targets of custom calls


def of(module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction) -> str | None:
    """Returns one of KINDS; None if the instruction does no work."""
    if instruction.opcode == "fusion":
        kinds = {_of_one(*one) for one in _fused(module, instruction)}
        waits = any('"AsyncCollectiveDone"' in one.attributes for _, one in _fused(module, instruction))
        return next((kind for kind in KINDS if kind in kinds and not (waits and kind == COLLECTIVE)), None)
    return _of_one(computation, instruction)


def _fused(module: hlo.Module, instruction: hlo.Instruction) -> Iterator[tuple[hlo.Computation, hlo.Instruction]]:
    for _, callee in instruction.called:
        computation = module.computations[callee]
        for one in computation.instructions.values():
            if one.opcode == "fusion":
                yield from _fused(module, one)
            else:
                yield computation, one


def fused_instructions(module: hlo.Module, instruction: hlo.Instruction) -> Iterator[hlo.Instruction]:
    """Yields the instructions that a fusion computes, those of fusions in it too; nothing for other instructions."""
    return (one for _, one in _fused(module, instruction)) if instruction.opcode == "fusion" else iter(())


def _of_one(computation: hlo.Computation, instruction: hlo.Instruction) -> str | None:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return None
    if _COLLECTIVE.match(opcode):
        return COLLECTIVE
    if opcode == "copy":
        [operand] = (computation.instructions[name] for name in instruction.operands)
        return COPY if operand.layout == instruction.layout else LAYOUT
    if opcode == "custom-call":
        return _of_custom_call(instruction)
    return _KIND_OF_OPCODE.get(opcode, ELEMENTWISE)


def _of_custom_call(instruction: hlo.Instruction) -> str | None:
    match = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    target = match[1] if match else ""
    if target in costs.BOOKKEEPING_TARGETS:
        return None
    return SCATTER if any(name in target for name in _SORTS) else KERNEL
