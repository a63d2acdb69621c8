"""Cycles of TPU instructions that the compiler does not estimate: scatters, gathers, sorts, reshapes, kernels.

`bundles.json` says how many bundles (instruction words) libtpu makes of each, by element or row, from small programs
of every generation (experiments/benchmarks/tpu_bundles.py). A bundle is a cycle if nothing stalls. An array that does
not fit the vector memory also has to pass between it and HBM: the longer of the two counts. Nothing has been measured
on a TPU.
"""

import functools
import importlib.metadata
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from gemma3_jax import chips, sharding
from gemma3_jax.planning import costs, hlo, kernels

PATH = pathlib.Path(__file__).with_name("bundles.json")
# Bytes of vector memory of a chip, both its cores (JAX's pallas.tpu.get_tpu_info).
_VECTOR_MEMORY = {"v4": 2 * (16 << 20), "v5e": 128 << 20, "v5p": 2 * (64 << 20)}
_DECIDING = "scatter", "gather", "sort"  # in a fusion. The table's scatters gather their rows in order, inside.
_LONGEST_SORTED_AT_ONCE = 128  # numbers of a row


class BundleEstimate(NamedTuple):
    """Our estimate of one run of an instruction."""

    cycles: int
    reason: str


@functools.cache
def table() -> Mapping:
    """Returns the table: `jax` and `libtpu` it holds for, and of each chip in `chips` bundles by kind."""
    return json.loads(PATH.read_text())


def installed() -> dict[str, str]:
    """Returns the installed versions of what makes the programs; of libtpu, `none` if there is none."""
    versions = {"jax": importlib.metadata.version("jax"), "libtpu": "none"}
    try:
        versions["libtpu"] = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        pass
    return versions


def version_note() -> str:
    """Returns a line for the user if the table is of another libtpu than the one that compiles; else an empty one."""
    made, used = table()["libtpu"], installed()["libtpu"]
    if made == used:
        return ""
    return (
        f"estimates of scatters, gathers, sorts, reshapes and kernels are for libtpu {made}; {used} is installed: "
        "python experiments/benchmarks/tpu_bundles.py makes its table"
    )


def sort_stages(length: int) -> float:
    """Steps of comparing and exchanging all numbers that a bitonic sort of rows of this length takes."""
    bits = max(1, math.ceil(math.log2(max(length, 1))))
    return bits * (bits + 1) / 2


def num_tiles(width: int) -> int:
    """Lane tiles of a row."""
    return -(-width // sharding.LANES)


class _Work(NamedTuple):
    """What the cost of an instruction follows from."""

    kind: str  # in the table
    features: dict[str, float]  # what its bundles are proportional to
    num_bytes: int  # read from HBM and written to it, if its arrays do not fit the vector memory
    about: str


def estimate(
    module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction, chip: chips.Chip, clock_hz: float
) -> BundleEstimate | None:
    """Estimates one run of an instruction, in cycles of `clock_hz`; None if its cost is unknown.

    Meant for what has no estimate of the compiler's: of others it does not know better.
    """
    fitted = table()["chips"].get(chip.name)
    work = next((_WORK[one.opcode](place, one) for place, one in _main(module, computation, instruction)), None)
    if not fitted or not work or work.kind not in fitted:
        return None
    coefficients = fitted[work.kind]["bundles"]
    bundles = math.fsum(coefficients[name] * number for name, number in work.features.items())
    reason = f"{work.about}: {bundles:.3g} bundles"
    arrays = sum(shape.num_bytes for shape in (*costs.operand_shapes(computation, instruction), *instruction.shapes))
    transfer = work.num_bytes / chip.hbm_bytes_per_second * clock_hz
    if arrays > _VECTOR_MEMORY[chip.name] and transfer > bundles:
        return BundleEstimate(round(transfer), f"{reason}, less than {work.num_bytes:.3g} bytes of memory traffic take")
    return BundleEstimate(round(bundles), reason)


def _main(module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction) -> list[tuple]:
    """Returns the instruction, or those in a fusion, that decide its cost, each with its computation."""
    if instruction.opcode != "fusion":
        return [(computation, instruction)] if instruction.opcode in _WORK else []
    inside = [(place, one) for place, one in _inside(module, instruction) if one.opcode in _DECIDING]
    return sorted(inside, key=lambda found: _DECIDING.index(found[1].opcode))


def _inside(module: hlo.Module, fusion: hlo.Instruction) -> Iterator[tuple[hlo.Computation, hlo.Instruction]]:
    """Yields the instructions of a fusion, those of fusions in it as well, each with its computation."""
    for _, callee in fusion.called:
        for one in module.computations[callee].instructions.values():
            yield module.computations[callee], one
            if one.opcode == "fusion":
                yield from _inside(module, one)


def _scatter(computation: hlo.Computation, instruction: hlo.Instruction) -> _Work:
    shapes = costs.operand_shapes(computation, instruction)
    updates = shapes[len(shapes) // 2 + 1]  # n arrays, their indices, n updates
    window = math.prod(updates.dims[dim] for dim in costs.int_list(instruction, "update_window_dims"))
    return _rows("scatter", updates, window)


def _gather(computation: hlo.Computation, instruction: hlo.Instruction) -> _Work:
    return _rows("gather", instruction.shapes[0], math.prod(costs.int_list(instruction, "slice_sizes")))


def _rows(verb: str, moved: hlo.Shape, window: int) -> _Work:
    num = moved.num_elements // max(window, 1)
    num_bytes = 2 * moved.num_bytes
    if window == 1:
        return _Work(f"{verb}_elements", {"elements": num}, num_bytes, f"{verb} of {num} elements")
    features = {"rows": num, "tiles": num * num_tiles(window)}
    return _Work(f"{verb}_rows", features, num_bytes, f"{verb} of {num} rows of {window}")


def _sort(computation: hlo.Computation, instruction: hlo.Instruction) -> _Work:
    """A sort in HBM reads and writes all rows in each of its passes, of which each doubles what is sorted.

    The passes are those of libtpu 0.0.42: 1, 3, 6, ... 28 for rows of up to 256, 512, 1,024, ... 16,384.
    """
    first = instruction.shapes[0]
    [dim] = costs.int_list(instruction, "dimensions")
    length, elements = first.dims[dim], first.num_elements
    of_pairs = len(instruction.shapes) / 2  # the table is of keys and one value each
    doublings = max(1, math.ceil(math.log2(max(length, 2) / _LONGEST_SORTED_AT_ONCE)))
    num_bytes = doublings * (doublings + 1) // 2 * 2 * sum(shape.num_bytes for shape in instruction.shapes)
    return _Work(
        "sort_flat" if elements == length else "sort_rows",
        {"elements": elements * of_pairs, "stages": elements * of_pairs * sort_stages(length)},
        num_bytes,
        f"sort of {elements // length} rows of {length}",
    )


def _reshape(computation: hlo.Computation, instruction: hlo.Instruction) -> _Work | None:
    """The table is of reshapes; transposes and copies, which the compiler seldom leaves out, count as they do."""
    [result] = instruction.shapes
    kind = {"f32": "reshape_f32", "s32": "reshape_f32", "u32": "reshape_f32", "bf16": "reshape_bf16"}.get(result.dtype)
    if not kind or result.num_elements == 1:
        return None
    elements = result.num_elements
    return _Work(kind, {"elements": elements}, 2 * result.num_bytes, f"new layout of {elements} elements")


def _custom_call(computation: hlo.Computation, instruction: hlo.Instruction) -> _Work | None:
    if '"TopK"' in instruction.attributes:
        [operand, *_] = costs.operand_shapes(computation, instruction)
        return _top_k(operand, instruction.shapes[0].dims[-1])
    call = costs.custom_call(computation, instruction)
    return _kernel(call) if call.target == kernels.TARGET else None


def _kernel(call: costs.CustomCall) -> _Work | None:
    num_bytes = sum(shape.num_bytes for shape in (*call.operands, *call.results))
    flops = kernels.flops(call, busiest=True)
    if kind := kernels.kind(call):
        features = {"flops": flops, "scores": kernels.num_scores(call).most}
        return _Work(f"splash_{kind}", features, num_bytes, f"splash attention ({kind}) of {flops:.3g} FLOPs")
    elements = max(shape.num_elements for shape in call.operands)  # the logits
    if kind := kernels.drawing(call):
        return _Work(kind, {"elements": elements}, num_bytes, f"{kind} of {elements} logits")
    if kernels.LISTS in call.name:
        drawn, exact = (elements * number for number in kernels.num_slots(call))
        features = {"elements": elements, "drawn": drawn, "exact": exact}
        return _Work(kernels.LISTS, features, num_bytes, f"{kernels.LISTS} of {elements} logits")
    if kernels.FEW_IDS in call.name:
        features = {"elements": elements, "flops": flops}
        return _Work(kernels.FEW_IDS, features, num_bytes, f"{kernels.FEW_IDS} over {elements} logits")
    return None


def _top_k(operand: hlo.Shape, k: int) -> _Work | None:
    """TopK has one kernel for k up to 64 and one for 128; what it does between them has not been looked at."""
    elements, about = operand.num_elements, f"TopK of {k} of {operand.dims[-1]}"
    if k == 128:
        return _Work("top_k_128", {"elements": elements}, operand.num_bytes, about)
    if k > 64:
        return None
    features = {"elements": elements, "choices": elements // operand.dims[-1] * k, "comparisons": elements * k}
    return _Work("top_k", features, operand.num_bytes, about)


_WORK: Mapping[str, Callable[[hlo.Computation, hlo.Instruction], _Work | None]] = {
    "scatter": _scatter,
    "gather": _gather,
    "sort": _sort,
    "reshape": _reshape,
    "transpose": _reshape,
    "copy": _reshape,
    "custom-call": _custom_call,
}
