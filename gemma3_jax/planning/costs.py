"""The cost of one step of a compiled program on each device: FLOPs of matrix products, and bytes of collectives."""

import functools
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gemma3_jax import sharding
from gemma3_jax.planning import hlo

# Custom calls of TPU programs that compute nothing (libtpu 0.0.42). Every other target is reported.
BOOKKEEPING_TARGETS = {
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "AsyncCollectiveDone",
    "AsyncCollectiveStart",
    "ConcatBitcast",
    "GatherScatterIndicesBitpacked",
    "SliceId",
}


class CustomCall(NamedTuple):
    """A call of code that is not HLO, such as a Pallas kernel: HLO does not show its FLOPs."""

    target: str  # "tpu_custom_call" is a Pallas kernel
    name: str
    num_times: int  # in a step
    operands: tuple[hlo.Shape, ...]
    results: tuple[hlo.Shape, ...]
    estimated_flops: int | None  # of one call, by the cost estimate of its author; None: there is none
    scopes: str = ""  # in which it was traced


class Flops(NamedTuple):
    """FLOPs of one device in one step."""

    matmul_flops: int  # of matrix products and convolutions alone, 2 for each multiply-add
    matmul_flops_by_dtype: dict[str, int]  # by the dtype of the left operand, which decides the speed
    custom_calls: tuple[CustomCall, ...]
    runs: hlo.Runs


def flops(module: hlo.Module) -> Flops:
    """Counts the FLOPs of a step on one device, with recomputation.

    Shapes are those of the compiled program: where XLA pads an operand, the padding counts.
    """
    runs = hlo.count_runs(module)
    by_dtype: Counter[str] = Counter()
    calls = []
    for computation, num_times in _computations(module, runs):
        for instruction in computation.instructions.values():
            match instruction.opcode:
                case "dot" | "convolution":
                    operands = operand_shapes(computation, instruction)
                    count = _dot_flops if instruction.opcode == "dot" else _convolution_flops
                    by_dtype[operands[0].dtype] += num_times * count(instruction, *operands)
                case "custom-call":
                    call = custom_call(computation, instruction, num_times)
                    calls += [] if call.target in BOOKKEEPING_TARGETS else [call]
    return Flops(by_dtype.total(), dict(by_dtype), tuple(calls), runs)


def _computations(module: hlo.Module, runs: hlo.Runs) -> Iterator[tuple[hlo.Computation, int]]:
    """Yields each computation that runs, and how often."""
    return ((module.computations[name], num_times) for name, num_times in runs.times.items())


def operand_shapes(computation: hlo.Computation, instruction: hlo.Instruction) -> tuple[hlo.Shape, ...]:
    """Returns the shapes of the operands, with all leaves of tuples, in order."""
    return tuple(shape for name in instruction.operands for shape in computation.instructions[name].shapes)


def custom_call(computation: hlo.Computation, instruction: hlo.Instruction, num_times: int = 1) -> CustomCall:
    """Parses a custom call that runs `num_times` in a step."""
    target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    estimate = re.search(r'"cost_estimate":\{"flops":"?(\d+)', instruction.attributes)
    return CustomCall(
        target=target[1] if target else "",
        name=instruction.name,
        num_times=num_times,
        operands=operand_shapes(computation, instruction),
        results=instruction.shapes,
        estimated_flops=int(estimate[1]) if estimate else None,
        scopes=hlo.source(instruction),
    )


def int_list(instruction: hlo.Instruction, attribute: str) -> list[int]:
    """Returns the numbers of an attribute such as `lhs_contracting_dims={1,2}`; [] if it is missing."""
    match = re.search(rf", {attribute}=\{{?([\d,]*)", instruction.attributes)
    return _parse_ints(match[1]) if match else []


def _dot_flops(instruction: hlo.Instruction, left: hlo.Shape, _: hlo.Shape) -> int:
    contracted = math.prod(left.dims[dim] for dim in int_list(instruction, "lhs_contracting_dims"))
    return 2 * instruction.shapes[0].num_elements * contracted


def _convolution_flops(instruction: hlo.Instruction, left: hlo.Shape, right: hlo.Shape) -> int:
    """Counts 2 for each product of an input element with a kernel element; products with padding or holes are none.

    TPU programs write every matrix product as a convolution. Batch dims of the product are spatial dims whose window
    has their full size, dilated so that each position holds one element (`size=16 stride=15 lhs_dilate=16`): counting
    every position of the window would count the products of all pairs.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    sizes = [
        dict(zip(label, shape.dims, strict=True))
        for label, shape in zip(labels.groups(), (left, right, instruction.shapes[0]), strict=True)
    ]
    [num_groups] = int_list(instruction, "batch_group_count") or [1]
    per_position = (sizes[0]["b"] // num_groups) * sizes[1]["o"] * sizes[1]["i"]  # `i` is of one feature group
    spatial = sorted(set(labels[1]) - {"b", "f"})
    match = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    window = dict(part.split("=") for part in match[1].split()) if match else {}

    def by_dim(field: str, default: int) -> list[int]:  # pad=3_0x0_0: before_after of each dim
        values = [int(part.split("_")[0]) for part in window.get(field, "").split("x") if part]
        return values or [default] * len(spatial)

    per_dim = zip(
        *([size[dim] for dim in spatial] for size in sizes),
        *(by_dim(*field) for field in (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))),
        strict=True,
    )
    return 2 * per_position * math.prod(_num_valid_taps(*sizes) for sizes in per_dim)


@functools.lru_cache(maxsize=4096)
def _num_valid_taps(num_inputs: int, num_kernel: int, num_outputs: int, *window: int) -> int:
    """Counts the pairs of an output and a kernel element, along one dim, that read an input element."""
    stride, pad_before, input_dilation, kernel_dilation = window
    outputs = np.arange(num_outputs) * stride - pad_before
    last = (num_inputs - 1) * input_dilation
    pairs = 0
    for kernel in range(num_kernel):
        inputs = outputs + kernel * kernel_dilation
        pairs += int(np.count_nonzero((inputs >= 0) & (inputs <= last) & (inputs % input_dilation == 0)))
    return pairs


class Collective(NamedTuple):
    """All collectives of one kind along the same mesh axes."""

    kind: str  # all-gather, all-reduce, reduce-scatter, all-to-all, collective-permute, ...
    axes: tuple[str, ...]  # along which the devices of a group differ, in the order of the mesh
    crosses_slices: bool  # over the network between slices (DCN), not the links of a slice (ICI)
    num_bytes: float  # that a device receives in a step
    num_times: int  # in a step


class Traffic(NamedTuple):
    """The collectives of a step, as one device sees them."""

    collectives: tuple[Collective, ...]  # most bytes first
    runs: hlo.Runs


# (bytes of the operands on a device, n devices) -> bytes that a device receives. This is the least that any algorithm
# moves, and what a ring moves.
_COLLECTIVE_BYTES = {
    "all-gather": lambda num_bytes, n: num_bytes * (n - 1),  # (n - 1) / n of the result
    "all-reduce": lambda num_bytes, n: 2 * num_bytes * (n - 1) / n,
    "reduce-scatter": lambda num_bytes, n: num_bytes * (n - 1) / n,
    "all-to-all": lambda num_bytes, n: num_bytes * (n - 1) / n,
    "ragged-all-to-all": lambda num_bytes, n: num_bytes * (n - 1) / n,  # of the whole buffer, used or not
    "collective-permute": lambda num_bytes, n: num_bytes,
    "collective-broadcast": lambda num_bytes, n: num_bytes,
}


def traffic(module: hlo.Module, mesh: sharding.AnyMesh, *, num_slices: int = 1) -> Traffic:
    """Counts the bytes that a device receives in a step, by kind of collective and mesh axes.

    In a group of n devices a device receives (n - 1) / n of the result of an all-gather and of the operand of a
    reduce-scatter or an all-to-all, twice that of an all-reduce, and all of a permutation. Where devices differ, the
    busiest one counts. A matrix product that XLA split into steps around a ring counts as its permutations.

    Device numbers in the program are indices into the flattened `mesh.devices`. A TPU program for several slices
    is the program of one slice: its hosts exchange what crosses slices, between equal positions, along `replica`.
    Raises: ValueError if the program is not for this mesh, or if the text of its device groups cannot be parsed.
    """
    check_mesh(module, mesh, num_slices)
    runs = hlo.count_runs(module)
    fused = hlo.fused(module)
    num_bytes: Counter[tuple] = Counter()
    counts: Counter[tuple] = Counter()
    for computation, num_times in _computations(module, runs):
        for instruction in computation.instructions.values():
            if is_continuation(computation, instruction):
                continue
            is_fused = computation.name in fused
            one = transfer(module, computation, instruction, mesh, num_slices=num_slices, is_fused=is_fused)
            if one and one.axes:
                num_bytes[one[:3]] += num_times * one.num_bytes
                counts[one[:3]] += num_times
    collectives = tuple(Collective(*key, total, counts[key]) for key, total in num_bytes.most_common())
    return Traffic(collectives, runs)


class Transfer(NamedTuple):
    """One run of a collective."""

    kind: str
    axes: tuple[str, ...]  # empty: every device is alone in its group, and nothing moves
    crosses_slices: bool
    num_devices: int  # of the largest group
    num_bytes: float  # that a device receives


def transfer(
    module: hlo.Module,
    computation: hlo.Computation,
    instruction: hlo.Instruction,
    mesh: sharding.AnyMesh,
    *,
    num_slices: int,
    is_fused: bool = False,
) -> Transfer | None:
    """Returns what one run of an instruction moves between devices; None if it is no collective, or the end of one.

    `is_fused` says that its computation is that of a fusion: an all-reduce of which a fusion keeps a slice is a
    reduce-scatter.
    """
    slice_size = mesh.size // num_slices  # devices are numbered slice by slice, as `replica` is the first axis
    kind = instruction.opcode.removesuffix("-start")
    if kind in _COLLECTIVE_BYTES:
        num_devices, axes, crosses = _group_extent(_groups(instruction, module.num_partitions), mesh, slice_size)
    elif kind == "send" and (match := _HOST_TRANSFER.search(instruction.attributes)):
        kind, num_devices, axes, crosses = _MEGASCALE[match[1]], num_slices, (sharding.AXES[0],), True
    else:
        return None
    if kind == "all-reduce" and is_fused and _has(computation, "dynamic-slice"):
        kind = "reduce-scatter"
    shapes = operand_shapes(computation, instruction)
    # The other operands of a ragged all-to-all, and of a send by the host, are not sent.
    has_one = kind == "ragged-all-to-all" or instruction.opcode == "send"
    operand_bytes = sum(shape.num_bytes for shape in (shapes[:1] if has_one else shapes))
    return Transfer(kind, axes, crosses, num_devices, _COLLECTIVE_BYTES[kind](operand_bytes, num_devices))


_HOST_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_MEGASCALE = {
    "ALL_GATHER": "all-gather",
    "ALL_REDUCE": "all-reduce",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
    "REDUCE_SCATTER": "reduce-scatter",
}


def _has(computation: hlo.Computation, opcode: str) -> bool:
    return any(instruction.opcode == opcode for instruction in computation.instructions.values())


def is_continuation(computation: hlo.Computation, instruction: hlo.Instruction) -> bool:
    """Whether the instruction continues a collective that another fusion started.

    A TPU program spreads a collective over the matrix products that it overlaps with: the same instruction stands in
    the fusion that starts it (where it is an operand of AsyncCollectiveStart), in those that continue it, and in the
    one that ends it.
    """
    return '"async_collective_fusion_config"' in instruction.attributes and not any(
        instruction.name in other.operands and '"AsyncCollectiveStart"' in other.attributes
        for other in computation.instructions.values()
    )


def check_mesh(module: hlo.Module, mesh: sharding.AnyMesh, num_slices: int) -> None:
    sharding.check_mesh(mesh)
    replica = mesh.shape[sharding.AXES[0]]
    if replica % num_slices or module.num_partitions not in (mesh.size, mesh.size // num_slices):
        raise ValueError(
            f"the program is for {module.num_partitions} devices, the mesh has {mesh.size} in {num_slices} slices with "
            f"replica {replica}; pass the mesh it was compiled for, with its slices along replica"
        )


def _groups(instruction: hlo.Instruction, num_devices: int) -> list[list[int]]:
    """Returns the groups of devices that communicate; for a permutation, the pairs (source, target)."""
    if match := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", instruction.attributes):
        return [_parse_ints(pair) for pair in re.findall(r"\{([\d,]+)\}", match[1])]
    match = re.search(r"replica_groups=(.*)", instruction.attributes)
    return replica_groups(match[1] if match else "{}", num_devices)


def _group_extent(
    groups: list[list[int]], mesh: sharding.AnyMesh, slice_size: int
) -> tuple[int, tuple[str, ...], bool]:
    """Returns the size of the largest group, the axes along which groups extend, and whether one crosses slices."""
    axes: set[str] = set()
    crosses = False
    for size in {len(group) for group in groups}:
        devices = np.array([group for group in groups if len(group) == size])
        indices = np.unravel_index(devices, tuple(mesh.shape.values()))
        axes |= {axis for axis, index in zip(mesh.axis_names, indices, strict=True) if np.any(index != index[:, :1])}
        crosses |= bool(np.any(devices // slice_size != devices[:, :1] // slice_size))
    return max(map(len, groups), default=1), tuple(axis for axis in mesh.axis_names if axis in axes), crosses


_INTS = r"[\d,]+"
_LISTS = re.compile(r"\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(rf"\[({_INTS})\]<=\[({_INTS})\](?:T\(({_INTS})\))?")
_AXES = re.compile(
    rf"mesh\[([^\]]*)\](?:, device_ids=\((?:\[({_INTS})\](?:T\(({_INTS})\))?|({_INTS}))\))? \{{([^}}]*)\}}"
)


def replica_groups(text: str, num_devices: int) -> list[list[int]]:
    """Parses the groups of devices that follow `replica_groups=`. XLA writes them in three forms:

    - lists: `{{0,1},{2,3}}`, where `{}` is one group of all devices;
    - iota: `[2,4]<=[4,2]T(1,0)`, all devices counted, reshaped to [4, 2], transposed, and reshaped to [2, 4];
    - axes of a mesh: `mesh['a'=2,'b'=4] {'b'}`, with optional `device_ids`, listed or iota. `'b':(2)2` is a part of
      axis `b`: the dim of size 2 that follows a dim of size 2.

    Raises: ValueError if the text has another form.
    """
    if match := _LISTS.match(text):
        groups = [_parse_ints(group) for group in re.findall(r"\{([\d,]*)\}", match[1])]
        return [group for group in groups if group] or [list(range(num_devices))]
    if match := _IOTA.match(text):
        shape, iota_shape, order = (_parse_ints(part) for part in match.groups())
        return _iota(iota_shape, order).reshape(shape).tolist()
    if match := _AXES.match(text):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", match[1])}
        iota_shape, order, listed = (_parse_ints(part) for part in match.groups()[1:4])
        ids = np.array(listed) if listed else _iota(iota_shape or list(sizes.values()), order)
        return _groups_along(ids, sizes, re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", match[5])).tolist()
    raise ValueError(
        f"replica_groups={text[:60]} has an unknown form; compile with a version of jax that setup.cfg allows, or add "
        "the form to planning/costs.py"
    )


def _parse_ints(text: str | None) -> list[int]:
    return [int(number) for number in (text or "").split(",") if number]


def _iota(shape: list[int], order: list[int]) -> np.ndarray:
    ids = np.arange(math.prod(shape)).reshape(shape)
    return (ids.transpose(order) if order else ids).reshape(-1)


def _groups_along(ids: np.ndarray, sizes: dict[str, int], parts: list[tuple[str, str, str]]) -> np.ndarray:
    """Returns [groups, devices]: the groups along some axes of a mesh of ids, or along parts of these axes.

    `parts` are (axis, size of the dims before, size); the last two are empty for a whole axis.
    """
    shape: list[int] = []
    dim_of_part: dict[tuple[str, int], int] = {}  # (axis, size of the dims of this axis before it) -> dim
    for axis, size in sizes.items():
        cuts = {1, size}
        for _, before, of_part in (part for part in parts if part[0] == axis and part[1]):
            cuts |= {int(before), int(before) * int(of_part)}
        ordered = sorted(cuts) if size > 1 else [1, 1]
        for before, after in zip(ordered, ordered[1:], strict=False):
            dim_of_part[axis, before] = len(shape)
            shape.append(after // before)
    dims = [
        dim
        for name, before, size in parts
        for (axis, begin), dim in dim_of_part.items()
        if axis == name and (not before or int(before) <= begin < int(before) * int(size))
    ]
    others = [dim for dim in range(len(shape)) if dim not in dims]
    num_grouped = math.prod(shape[dim] for dim in dims)
    return ids.reshape(shape).transpose(others + dims).reshape(-1, num_grouped)
