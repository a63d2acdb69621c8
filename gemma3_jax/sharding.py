"""Dims, mesh axes, and the one table that maps dims to axes.

A *dim* belongs to an array, an *axis* to the mesh. Every dim of this package is one of these letters, in shape
annotations, einsum strings and sharding annotations:

    B batch             N query heads       A samples per prompt    P patches
    T query tokens      K key heads         M teacher samples       Q soft tokens
    S key tokens        G = N / K           I images                W vision dim
    D embedding dim     H head dim          L layers                R blocks
    F MLP dim           V vocabulary        C rank of an adapter    Z items in a block

The mesh axes are those of the report's Table 2 and one more: `replica` (whole copies of the parameters, across pods),
`data` (ZeRO-3), `seq` (context parallel) and `model` (tensor parallel; 1 by default).
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("replica", "data", "seq", "model")
AnyMesh = Mesh | AbstractMesh  # an abstract mesh, without devices, is enough to trace

# The axes that split activations, and parameters in use. A dim that is not listed is whole on every device.
ACTIVATION_AXES = {
    "B": ("replica", "data"),
    "T": ("seq",),
    "N": ("model",),
    "K": ("model",),
    "F": ("model",),
    "V": ("model",),
}
# The axes that split parameters at rest, their gradients and optimizer state: `model` on its dim as above, and the
# ZeRO-3 axes wherever the shape allows.
ZERO_AXES = ("data", "seq")
SUBLANES, LANES = 8, 128  # a TPU pads the last two dims of a shard to multiples of these
BIG_ELEMENTS = 1 << 20  # a parameter of this size that is not split over every ZeRO-3 shard is worth a warning


def make_mesh(
    *, replica: int = 1, data: int = 1, seq: int = 1, model: int = 1, devices: Sequence | None = None
) -> Mesh:
    """A mesh of the first replica*data*seq*model devices (None: of jax.devices()), with Auto axis types.

    Raises: ValueError if there are too few devices, or if an axis is smaller than 1.
    """
    sizes = {"replica": replica, "data": data, "seq": seq, "model": model}
    text = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    if min(sizes.values()) < 1:
        raise ValueError(f"mesh is {text}; every axis must be >= 1")
    num_devices, devices = math.prod(sizes.values()), jax.devices() if devices is None else devices
    if num_devices > len(devices):
        raise ValueError(
            f"mesh is {text} = {num_devices} devices, but there are {len(devices)}; "
            "make the axes multiply to at most that"
        )
    # Axis type Explicit, the default of jax.make_mesh, refuses Flax annotations.
    grid = device_grid(devices[:num_devices], tuple(sizes.values()))
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_grid(devices: Sequence, shape: tuple[int, int, int, int]) -> np.ndarray:
    """The devices in a grid of this shape, neighbors along an axis near each other; slices of a pod along `replica`.

    Raises: ValueError if `replica` is not a multiple of the number of slices.
    """
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    if num_slices == 1:
        # An axis of 24 may need parts of two axes of a 16x16x24 torus.
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    replica, *rest = shape
    if replica % num_slices:
        raise ValueError(
            f"mesh has replica {replica} over {num_slices} slices; make replica a multiple of the number of slices, "
            "as only it may cross the network between them"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (replica // num_slices, *rest), (num_slices, 1, 1, 1), devices, allow_split_physical_axes=True
    )


def check_mesh(mesh: AnyMesh) -> None:
    """Checks that the mesh has the axes AXES, all of type Auto.

    Raises: ValueError if it does not.
    """
    if tuple(mesh.axis_names) != AXES:
        raise ValueError(f"mesh axes are {tuple(mesh.axis_names)}; they must be {AXES} (sharding.make_mesh)")
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"mesh axis types are {mesh.axis_types}; all must be Auto (sharding.make_mesh builds such a mesh)"
        )


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """The sharding of every array [B, T, ...] of a batch."""
    return NamedSharding(mesh, PartitionSpec(*(ACTIVATION_AXES[dim] for dim in "BT")))


def check_batch(mesh: AnyMesh, num_rows: int, seq_len: int) -> None:
    """Checks that rows and tokens split evenly over the mesh.

    Raises: ValueError with the number to change.
    """
    for dim, count, what in (("B", num_rows, "sequences in a step"), ("T", seq_len, "tokens in a sequence")):
        axes = ACTIVATION_AXES[dim]
        num_shards = math.prod(mesh.shape[axis] for axis in axes)
        if count < 1 or count % num_shards:
            raise ValueError(
                f"{count} {what} do not split over {' x '.join(axes)} = {num_shards} of the mesh; "
                f"make it {num_shards}, 2 x {num_shards}, ..., or change the mesh"
            )


def rows_on(devices: Sequence, mesh: Mesh, num_rows: int) -> list[int]:
    """The indices of the rows of a batch that these devices hold a part of, in order: what their host has to read."""
    held: set[int] = set()
    indices = batch_sharding(mesh).devices_indices_map((num_rows, mesh.shape["seq"]))
    for device in devices:
        held.update(range(*indices[device][0].indices(num_rows)))
    return sorted(held)


def constrain(x: jax.Array, dims: str) -> jax.Array:
    """`x` with the sharding of ACTIVATION_AXES over the current mesh; `x` itself where no mesh is set.

    `dims` names every dim of `x` by its letter, as an einsum does: "BTD". An axis that does not divide a dim (one key
    head on a `model` axis of 2, say) does not split it: the dim is whole along that axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, activation_spec(dims, x.shape, mesh.shape))


def activation_spec(dims: str, shape: Sequence[int], axis_sizes: Mapping[str, int]) -> PartitionSpec:
    """The spec that `constrain` uses for an array of these dims and this shape: a tuple of axes for each dim."""
    spec = []
    for letter, size in zip(dims, shape, strict=True):
        axes = []
        for axis in ACTIVATION_AXES.get(letter, ()):
            if size % axis_sizes[axis] == 0:
                axes.append(axis)
                size //= axis_sizes[axis]
        spec.append(tuple(axes))
    return PartitionSpec(*spec)


def axes_by_dim(spec: PartitionSpec, num_dims: int) -> list[tuple[str, ...]]:
    """The axes that split each dim, coarsest first, from a PartitionSpec that may hold names, tuples and None."""
    axes = [(entry,) if isinstance(entry, str) else entry or () for entry in spec]
    return axes + [()] * (num_dims - len(axes))


def reduce_scatter(x: jax.Array, axis: str, dim: int) -> jax.Array:
    """In a shard_map: the sum of `x` over the devices along `axis`, each of which keeps its part of `dim`, in order.

    Where the axis is the whole mesh, it takes two steps over groups that intersect: the TPU compiler (libtpu 0.0.42)
    turns a reduce-scatter over all of a topology into an all-reduce and a slice, but not one over part of it.
    """
    size = jax.lax.axis_size(axis)
    steps = [None]
    if size == math.prod(jax.sharding.get_abstract_mesh().shape.values()):
        coarse = next(factor for factor in range(math.isqrt(size), 0, -1) if size % factor == 0)
        grid = np.arange(size).reshape(coarse, -1)
        steps = [grid.T.tolist(), grid.tolist()] if coarse > 1 else [None]
    for groups in steps:
        x = jax.lax.psum_scatter(x, axis, scatter_dimension=dim, tiled=True, axis_index_groups=groups)
    return x


def platform() -> str:
    """The platform that the current trace will run on: "cpu", "gpu" or "tpu".

    It comes from the mesh, whose devices may be a topology to compile for, not present here.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def constrain_at_rest(x: jax.Array, dims: str, *, shard_multiples: Mapping[str, int] | None = None) -> jax.Array:
    """`x`, a parameter or its gradient, with the sharding of parameters at rest on the current mesh.

    `shard_multiples` is as in parameter_spec.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = parameter_spec(tuple(dims), x.shape, mesh.shape, shard_multiples=shard_multiples)
    return jax.lax.with_sharding_constraint(x, spec)


def parameter_spec(
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    axis_sizes: Mapping[str, int],
    *,
    shard_multiples: Mapping[str, int] | None = None,
) -> PartitionSpec:
    """The best legal spec of one parameter at rest.

    Best means, in this order: most shards; `model` on the dim that tensor parallelism splits; least padding to the
    tiles of a TPU; fewest dims split; earliest dims split. Stacked layers ("L") are never split, as they are scanned,
    and vectors (norm scales) stay whole, as gathering them would cost more than they weigh. All choices of a dim or
    none for each axis are compared: at most 4**3. Shards of a dim in `shard_multiples` hold a multiple of its number of
    elements: {"D": 32} keeps blocks of 32 whole.
    """
    multiples = [(shard_multiples or {}).get(letter, 1) for letter in dims]
    if sum(letter != "L" for letter in dims) < 2:
        return PartitionSpec()
    axes = [axis for axis in (*ZERO_AXES, "model") if axis_sizes[axis] > 1]
    choices = [None, *(i for i, letter in enumerate(dims) if letter != "L")]
    best_cost, best = None, None
    for split_dims in itertools.product(choices, repeat=len(axes)):
        split = [1] * len(shape)
        for axis, dim in zip(axes, split_dims, strict=True):
            if dim is not None:
                split[dim] *= axis_sizes[axis]
        sizes = zip(shape, split, multiples, strict=True)
        if any(parts > 1 and size % (parts * multiple) for size, parts, multiple in sizes):
            continue
        model_fits = all(
            dim is not None and axis in ACTIVATION_AXES.get(dims[dim], ())
            for axis, dim in zip(axes, split_dims, strict=True)
            if axis == "model"
        )
        *rest, sublanes, lanes = (size // parts for size, parts in zip(shape, split, strict=True))
        padded_elements = math.prod(rest) * -(-sublanes // SUBLANES) * -(-lanes // LANES)
        used = sorted({dim for dim in split_dims if dim is not None})
        cost = (-math.prod(split), not model_fits, padded_elements, len(used), used)
        if best_cost is None or cost < best_cost:
            best_cost, best = cost, split_dims
    spec = [tuple(a for a, dim in zip(axes, best, strict=True) if dim == i) or None for i in range(len(dims))]
    return PartitionSpec(*spec)


def parameter_shardings(dims: Mapping, shapes: Mapping, mesh: AnyMesh) -> dict:
    """A NamedSharding for every parameter. `dims` and `shapes` are nested dicts with the same keys."""
    check_mesh(mesh)
    sizes = dict(mesh.shape)
    return {
        key: (
            parameter_shardings(dims[key], shape, mesh)
            if isinstance(shape, Mapping)
            else NamedSharding(mesh, parameter_spec(dims[key], shape.shape, sizes))
        )
        for key, shape in shapes.items()
    }


def describe(shapes: Mapping, shardings: Mapping) -> str:
    """A table of the layout of every parameter, with a warning for each big one that is not split fully."""
    rows, warnings = [], []
    bytes_total = bytes_per_device = 0
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        name = "/".join(key.key for key in path)
        split = axes_by_dim(sharding.spec, len(leaf.shape))
        num_shards = math.prod(sharding.mesh.shape[axis] for axes in split for axis in axes)
        most_shards = math.prod(size for axis, size in sharding.mesh.shape.items() if axis != "replica")
        num_bytes = math.prod(sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        bytes_per_device += num_bytes
        bytes_total += num_bytes * num_shards
        layout = " ".join("+".join(axes) or "-" for axes in split) if sharding.spec else "whole"
        rows.append(f"{name:<52} {leaf.shape!s:<26} {layout:<24} {num_shards} of {most_shards}")
        if num_shards < most_shards and leaf.size >= BIG_ELEMENTS:
            warnings.append(
                f"warning: {name} {leaf.shape} divides into {num_shards} shards, not {most_shards}: "
                f"{num_bytes / 2**20:.1f} MiB on every device"
            )
    head = f"{'parameter':<52} {'shape':<26} {'mesh axes by dim':<24} shards"
    foot = f"parameters: {bytes_total / 2**20:.1f} MiB, {bytes_per_device / 2**20:.1f} MiB per device"
    return "\n".join([head, *rows, *warnings, foot])
