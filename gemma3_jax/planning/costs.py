"""What one step of a compiled program costs each device: multiplications, and bytes over the links of the mesh."""

import functools
import math
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

from gemma3_jax import sharding
from gemma3_jax.planning import hlo

# Calls in TPU programs that compute nothing: XLA's own notes to itself (libtpu 0.0.42). Any other is reported.
_NOTES = {
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "AsyncCollectiveDone",
    "AsyncCollectiveStart",
    "ConcatBitcast",
    "GatherScatterIndicesBitpacked",
    "SliceId",
}


class CustomCall(NamedTuple):
    """A call of something that is not HLO, a Pallas kernel say: its operations have a formula of their own."""

    target: str  # tpu_custom_call: a Pallas kernel
    name: str
    num_times: int  # in a step
    operands: tuple[hlo.Shape, ...]
    results: tuple[hlo.Shape, ...]
    estimated_flops: int | None  # of one call, where its author gave a cost estimate


class Flops(NamedTuple):
    """Operations of one device in one step."""

    matmul_flops: int  # two for each multiply-add of matrix products and convolutions; nothing else counts
    matmul_flops_by_dtype: dict[str, int]  # by the dtype of the left operand, which sets the speed
    custom_calls: tuple[CustomCall, ...]
    runs: hlo.Runs


def flops(module: hlo.Module) -> Flops:
    """What each device multiplies in a step, everything that is computed twice included.

    Sizes are those of the program: where XLA pads an operand, the padding is multiplied, and counts.
    """
    runs = hlo.count_runs(module)
    by_dtype: Counter[str] = Counter()
    calls = []
    for computation, num_times in _computations(module, runs):
        for instruction in computation.instructions.values():
            match instruction.opcode:
                case "dot" | "convolution":
                    operands = _operand_shapes(computation, instruction)
                    count = _dot_flops if instruction.opcode == "dot" else _convolution_flops
                    by_dtype[operands[0].dtype] += num_times * count(instruction, *operands)
                case "custom-call":
                    call = _custom_call(computation, instruction, num_times)
                    calls += [] if call.target in _NOTES else [call]
    return Flops(by_dtype.total(), dict(by_dtype), tuple(calls), runs)


def _computations(module: hlo.Module, runs: hlo.Runs):
    return ((module.computations[name], num_times) for name, num_times in runs.times.items())


def _operand_shapes(computation: hlo.Computation, instruction: hlo.Instruction) -> tuple[hlo.Shape, ...]:
    return tuple(shape for name in instruction.operands for shape in computation.instructions[name].shapes)


def _custom_call(computation: hlo.Computation, instruction: hlo.Instruction, num_times: int) -> CustomCall:
    target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    estimate = re.search(r'"cost_estimate":\{"flops":"?(\d+)', instruction.attributes)
    operands = _operand_shapes(computation, instruction)
    found = int(estimate[1]) if estimate else None
    return CustomCall(target[1] if target else "", instruction.name, num_times, operands, instruction.shapes, found)


def _integers(name: str, instruction: hlo.Instruction) -> list[int]:
    found = re.search(rf", {name}=\{{?([\d,]*)", instruction.attributes)
    return [int(number) for number in found[1].split(",") if number] if found else []


def _dot_flops(instruction: hlo.Instruction, left: hlo.Shape, _: hlo.Shape) -> int:
    contracted = math.prod(left.dims[dim] for dim in _integers("lhs_contracting_dims", instruction))
    return 2 * instruction.shapes[0].num_elements * contracted


def _convolution_flops(instruction: hlo.Instruction, left: hlo.Shape, right: hlo.Shape) -> int:
    """Two for each product of an element of the input, not of a hole or of what is padded, with one of the kernel.

    TPU programs have every matrix product as a convolution. Its batch dims are spatial ones with windows as large as
    they are, dilated so that each position meets one element (`size=16 stride=15 lhs_dilate=16`): counting all
    positions of the window would give a product of all pairs.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    sizes = [
        dict(zip(label, shape.dims, strict=True))
        for label, shape in zip(labels.groups(), (left, right, instruction.shapes[0]), strict=True)
    ]
    [num_groups] = _integers("batch_group_count", instruction) or [1]
    per_position = (sizes[0]["b"] // num_groups) * sizes[1]["o"] * sizes[1]["i"]  # `i` is of one feature group
    spatial = sorted(set(labels[1]) - {"b", "f"})
    found = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    window = dict(part.split("=") for part in found[1].split()) if found else {}

    def of_dims(field: str, default: int) -> list[int]:  # pad=3_0x0_0 is before_after, by dim
        given = [int(part.split("_")[0]) for part in window.get(field, "").split("x") if part]
        return given or [default] * len(spatial)

    per_dim = zip(
        *([size[dim] for dim in spatial] for size in sizes),
        *(of_dims(*field) for field in (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))),
        strict=True,
    )
    return 2 * per_position * math.prod(_num_meetings(*numbers) for numbers in per_dim)


@functools.lru_cache(maxsize=4096)
def _num_meetings(num_inputs: int, num_kernel: int, num_outputs: int, *of_window: int) -> int:
    """Pairs of an output and a kernel position of one dim at which an element of the input stands."""
    stride, pad_before, input_dilation, kernel_dilation = of_window
    outputs = np.arange(num_outputs) * stride - pad_before
    last = (num_inputs - 1) * input_dilation
    pairs = 0
    for kernel in range(num_kernel):
        place = outputs + kernel * kernel_dilation
        pairs += int(np.count_nonzero((place >= 0) & (place <= last) & (place % input_dilation == 0)))
    return pairs


class Transfer(NamedTuple):
    """All exchanges of one kind along the same axes of the mesh."""

    kind: str  # all-gather, all-reduce, reduce-scatter, all-to-all, collective-permute, ...
    axes: tuple[str, ...]  # along which the devices that exchange differ, in the mesh's order
    crosses_slices: bool  # over the network between slices (DCN), not the links of a slice
    received_bytes: float  # by a device in a step
    num_times: int  # in a step


class Traffic(NamedTuple):
    transfers: tuple[Transfer, ...]  # most bytes first
    runs: hlo.Runs


# What a device receives where n devices exchange operands of so many bytes: the least that any algorithm moves, and
# what a ring does. Latency, and how many links serve it, are for whoever counts time.
_RECEIVED = {
    "all-gather": lambda num_bytes, n: num_bytes * (n - 1),  # (n - 1) / n of the result
    "all-reduce": lambda num_bytes, n: 2 * num_bytes * (n - 1) / n,
    "reduce-scatter": lambda num_bytes, n: num_bytes * (n - 1) / n,
    "all-to-all": lambda num_bytes, n: num_bytes * (n - 1) / n,
    "ragged-all-to-all": lambda num_bytes, n: num_bytes * (n - 1) / n,  # of the buffer; how much is used, data decide
    "collective-permute": lambda num_bytes, n: num_bytes,
    "collective-broadcast": lambda num_bytes, n: num_bytes,
}


def traffic(module: hlo.Module, mesh: sharding.AnyMesh, *, num_slices: int = 1) -> Traffic:
    """Bytes a device receives in a step, by kind and mesh axes. What it has already does not count:

    of n devices, (n - 1) / n of the result of an all-gather, and of the operand of a reduce-scatter or an all-to-all;
    twice that of an all-reduce; all of a permutation. Of permutations that leave devices out, and of groups of several
    sizes, the busiest device counts. A product that XLA cut into pieces which go around a ring, instead of a gather
    before it or a reduce-scatter after it, counts as the permutations that it became.

    The program's numbers for devices are their places in `mesh.devices`, flattened. A TPU program over slices is that
    of one slice, and has what goes between them as transfers by its host, each between the devices at one place in
    every slice: along `replica`.
    Raises: ValueError if the program is not one for this mesh, or writes groups of devices in an unknown form.
    """
    _check(module, mesh, num_slices)
    slice_size = mesh.size // num_slices  # devices are numbered slice by slice, as `replica` is the first axis
    runs = hlo.count_runs(module)
    fused = {
        callee
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode == "fusion"
        for _, callee in instruction.called
    }
    received: Counter[tuple] = Counter()
    counts: Counter[tuple] = Counter()
    for computation, num_times in _computations(module, runs):
        for instruction in computation.instructions.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind in _RECEIVED and not _is_continued(computation, instruction):
                groups = _groups(instruction, module.num_partitions)
                num_devices, axes, crosses = _exchange(groups, mesh, slice_size)
            elif kind == "send" and (asked := _TRANSFER.search(instruction.attributes)):
                kind, num_devices, axes, crosses = _MEGASCALE[asked[1]], num_slices, (sharding.AXES[0],), True
            else:
                continue
            if kind == "all-reduce" and computation.name in fused and _has(computation, "dynamic-slice"):
                kind = "reduce-scatter"
            if axes:
                shapes = _operand_shapes(computation, instruction)
                # Of a ragged exchange, and of one by the host, the first operand alone is what is sent.
                is_first = kind == "ragged-all-to-all" or instruction.opcode == "send"
                num_bytes = sum(shape.num_bytes for shape in (shapes[:1] if is_first else shapes))
                received[kind, axes, crosses] += num_times * _RECEIVED[kind](num_bytes, num_devices)
                counts[kind, axes, crosses] += num_times
    found = [Transfer(*key, num_bytes, counts[key]) for key, num_bytes in received.most_common()]
    return Traffic(tuple(found), runs)


_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_MEGASCALE = {
    "ALL_GATHER": "all-gather",
    "ALL_REDUCE": "all-reduce",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
    "REDUCE_SCATTER": "reduce-scatter",
}


def _has(computation: hlo.Computation, opcode: str) -> bool:
    return any(instruction.opcode == opcode for instruction in computation.instructions.values())


def _is_continued(computation: hlo.Computation, instruction: hlo.Instruction) -> bool:
    """Whether it is one of the places at which a TPU goes on with an exchange that it began in another fusion.

    A TPU splits an exchange over the products that run beside it: the same instruction stands in a fusion that
    begins it (where AsyncCollectiveStart takes it), in each that carries it on, and in one that ends it.
    """
    return '"async_collective_fusion_config"' in instruction.attributes and not any(
        instruction.name in other.operands and '"AsyncCollectiveStart"' in other.attributes
        for other in computation.instructions.values()
    )


def _check(module: hlo.Module, mesh: sharding.AnyMesh, num_slices: int) -> None:
    sharding.check_mesh(mesh)
    replica = mesh.shape[sharding.AXES[0]]
    if replica % num_slices or module.num_partitions not in (mesh.size, mesh.size // num_slices):
        raise ValueError(
            f"the program is for {module.num_partitions} devices, the mesh has {mesh.size} in {num_slices} slices with "
            f"replica {replica}; give the mesh it was compiled for, and slices along replica"
        )


def _groups(instruction: hlo.Instruction, num_devices: int) -> list[list[int]]:
    """Which devices exchange with each other; of a permutation, each that sends with the one that receives."""
    if found := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", instruction.attributes):
        return [_numbers(pair) for pair in re.findall(r"\{([\d,]+)\}", found[1])]
    found = re.search(r"replica_groups=(.*)", instruction.attributes)
    return replica_groups(found[1] if found else "{}", num_devices)


def _exchange(groups: list[list[int]], mesh: sharding.AnyMesh, slice_size: int) -> tuple[int, tuple[str, ...], bool]:
    """How many devices a group has, along which axes those of any group differ, and whether their slices do."""
    axes: set[str] = set()
    crosses = False
    for size in {len(group) for group in groups}:
        devices = np.array([group for group in groups if len(group) == size])
        places = np.unravel_index(devices, tuple(mesh.shape.values()))
        axes |= {axis for axis, place in zip(mesh.axis_names, places, strict=True) if np.any(place != place[:, :1])}
        crosses |= bool(np.any(devices // slice_size != devices[:, :1] // slice_size))
    return max(map(len, groups), default=1), tuple(axis for axis in mesh.axis_names if axis in axes), crosses


_NUMBERS = r"[\d,]+"
_LISTS = re.compile(r"\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(rf"\[({_NUMBERS})\]<=\[({_NUMBERS})\](?:T\(({_NUMBERS})\))?")
_AXES = re.compile(
    rf"mesh\[([^\]]*)\](?:, device_ids=\((?:\[({_NUMBERS})\](?:T\(({_NUMBERS})\))?|({_NUMBERS}))\))? \{{([^}}]*)\}}"
)


def replica_groups(text: str, num_devices: int) -> list[list[int]]:
    """The groups of devices that `replica_groups=` begins with: each exchanges among itself.

    Lists `{{0,1},{2,3}}` (`{}`: all together); `[2,4]<=[4,2]T(1,0)`, a count of all devices, folded, transposed and cut
    into rows; and axes of a mesh of the compiler's own, `mesh['a'=2,'b'=4] {'b'}`, of which `'b':(2)2` is the part of
    size 2 that is left when the first 2 of `b` are folded away, and whose `device_ids` may be listed, or be a count.
    Raises: ValueError if it is none of these.
    """
    if found := _LISTS.match(text):
        groups = [_numbers(group) for group in re.findall(r"\{([\d,]*)\}", found[1])]
        return [group for group in groups if group] or [list(range(num_devices))]
    if found := _IOTA.match(text):
        shape, folded, order = (_numbers(part) for part in found.groups())
        return _counted(folded, order).reshape(shape).tolist()
    if found := _AXES.match(text):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", found[1])}
        folded, order, listed = (_numbers(part) for part in found.groups()[1:4])
        ids = np.array(listed) if listed else _counted(folded or list(sizes.values()), order)
        return _along(ids, sizes, re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", found[5])).tolist()
    raise ValueError(
        f"replica_groups={text[:60]} is of an unknown form; compile with versions of jax that setup.cfg allows, or add "
        "the form to planning/costs.py"
    )


def _numbers(text: str | None) -> list[int]:
    return [int(number) for number in (text or "").split(",") if number]


def _counted(folded: list[int], order: list[int]) -> np.ndarray:
    ids = np.arange(math.prod(folded)).reshape(folded)
    return (ids.transpose(order) if order else ids).reshape(-1)


def _along(ids: np.ndarray, sizes: dict[str, int], parts: list[tuple[str, str, str]]) -> np.ndarray:
    """[groups, devices] of a mesh of these ids: each group along these axes, or parts (name, before, size) of them."""
    shape: list[int] = []
    grouped: dict[tuple[str, int], int] = {}  # (axis, where its part begins) -> dim
    for axis, size in sizes.items():
        cuts = {1, size}
        for _, before, of_part in (part for part in parts if part[0] == axis and part[1]):
            cuts |= {int(before), int(before) * int(of_part)}
        ordered = sorted(cuts) if size > 1 else [1, 1]
        for before, after in zip(ordered, ordered[1:], strict=False):
            grouped[axis, before] = len(shape)
            shape.append(after // before)
    dims = [
        dim
        for name, before, size in parts
        for (axis, begin), dim in grouped.items()
        if axis == name and (not before or int(before) <= begin < int(before) * int(size))
    ]
    others = [dim for dim in range(len(shape)) if dim not in dims]
    num_grouped = math.prod(shape[dim] for dim in dims)
    return ids.reshape(shape).transpose(others + dims).reshape(-1, num_grouped)
