"""The vocabulary split over devices, and a scan over tokens that never holds all their logits.

V is split over `seq` and `model`, and the tokens of a chunk are gathered over `seq`: fewer bytes than gathering the
table. A mesh with neither axis splits V over `data` instead, so that no device holds the whole table.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from gemma3_jax import sharding
from gemma3_jax.losses import id_weights
from gemma3_jax.model import matmul

AXES = ("seq", "model")  # mesh axes that split V
TOKEN_DIMS = {"data": 0, "seq": 1}  # the dim of [B, T] that each axis splits
LOGITS_PER_CHUNK = 1 << 26  # on one device: 256 MiB of float32; 8,192 tokens of V = 262,144 at once would be 8 GiB


@dataclasses.dataclass(frozen=True)
class Shard:
    """One device's part of the vocabulary: `size` ids from `first_id()`. Its methods work inside `shard_map`."""

    size: int
    axes: tuple[str, ...] = ()  # mesh axes that split V; none on one device
    token_axes: tuple[str, ...] = ()  # mesh axes along which devices score different tokens

    @property
    def gathered_axes(self) -> tuple[str, ...]:
        """Axes along which tokens are gathered, to be scored together."""
        return tuple(axis for axis in self.axes if axis in TOKEN_DIMS)

    def index(self) -> jax.Array | int:
        """The position of this shard among all of them."""
        return jax.lax.axis_index(self.axes) if self.axes else 0

    def first_id(self) -> jax.Array | int:
        return self.index() * self.size

    def vocab_size(self) -> int:
        """The number of ids in all shards."""
        return self.size * math.prod(jax.lax.axis_size(axis) for axis in self.axes)

    def sum(self, x):
        """Sum over the shards."""
        return jax.lax.psum(x, self.axes) if self.axes else x

    def max(self, x: jax.Array) -> jax.Array:
        """Maximum over the shards."""
        return jax.lax.pmax(x, self.axes) if self.axes else x

    def all_gather(self, x: jax.Array) -> jax.Array:
        """[...] of each shard -> [shards, ...], in the order of their ids."""
        return jax.lax.all_gather(x, self.axes) if self.axes else x[None]

    def sum_tokens(self, x):
        """Sum over the devices that score different tokens."""
        return jax.lax.psum(x, self.token_axes) if self.token_axes else x

    def sum_everywhere(self, x):
        """Sum over the shards, and over the devices that score different tokens."""
        axes = (*self.token_axes, *self.axes)
        return jax.lax.psum(x, axes) if axes else x

    def gather_tokens(self, x: Shaped[Array, "..."], first_dim: int = 0) -> Shaped[Array, "..."]:
        """The tokens of all shards, to be scored together; B and T are the dims of `x` from `first_dim` on."""
        for axis in self.gathered_axes:
            x = jax.lax.all_gather(x, axis, axis=first_dim + TOKEN_DIMS[axis], tiled=True)
        return x

    def local_tokens(self, x: Shaped[Array, "B T ..."]) -> Shaped[Array, "_ _ ..."]:
        """This device's part of gathered tokens: the inverse of `gather_tokens`."""
        for axis in self.gathered_axes:
            dim, size = TOKEN_DIMS[axis], x.shape[TOKEN_DIMS[axis]] // jax.lax.axis_size(axis)
            x = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * size, size, axis=dim)
        return x

    def sum_to_local_tokens(self, x: Shaped[Array, "B T ..."]) -> Shaped[Array, "_ _ ..."]:
        """local_tokens(sum(x)), with less traffic."""
        if "model" in self.axes:
            x = jax.lax.psum(x, "model")
        for axis in self.gathered_axes:
            x = sharding.reduce_scatter(x, axis, TOKEN_DIMS[axis])
        return x

    def local_ids(self, ids: Int[Array, "*B"]) -> Int[Array, "*B"]:
        """Ids counted from the first of this shard: negative, or at least `size`, where another shard holds them."""
        return ids - self.first_id()

    def pick(self, values: Float[Array, "*B V"], ids: Int[Array, "*B M"]) -> Float[Array, "*B M"]:
        """The values at these ids, whichever shard holds them."""
        local = self.local_ids(ids)
        is_here = (local >= 0) & (local < self.size)
        return self.sum(jnp.where(is_here, jnp.take_along_axis(values, jnp.where(is_here, local, 0), axis=-1), 0))

    def pick_one(self, values: Float[Array, "B T V"], ids: Int[Array, "B T"]) -> Float[Array, "B T"]:
        """The value at one id of each token, whichever shard holds it."""
        return self.sum(id_weights.of_one(self.local_ids(ids), self.size).dot(values))


def shard_of(vocab_size: int) -> Shard:
    """The shard of each device of the current mesh. An axis that does not divide `vocab_size` is left out."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return Shard(vocab_size)
    axes: tuple[str, ...] = ()
    for axis in AXES:
        if mesh.shape[axis] > 1 and vocab_size % (math.prod(mesh.shape[a] for a in axes) * mesh.shape[axis]) == 0:
            axes += (axis,)
    if not axes and mesh.shape["data"] > 1 and vocab_size % mesh.shape["data"] == 0:
        axes = ("data",)
    token_axes = tuple(axis for dim in "BT" for axis in sharding.ACTIVATION_AXES[dim] if axis not in axes)
    return Shard(vocab_size // math.prod(mesh.shape[axis] for axis in axes), axes, token_axes)


@dataclasses.dataclass(frozen=True)
class TableSharding:
    """How the table [V, D], or its gradient, enters and leaves `shard_map`: V as in a Shard, one dim over `data`."""

    spec: PartitionSpec
    shard: Shard
    data_dim: int | None  # 0 for V, 1 for D; None where `data` divides neither

    def gather(self, part: Float[Array, "_ _"]) -> Float[Array, "V D"]:
        """All of a shard's rows: the all-gather of ZeRO-3, once for all chunks."""
        return part if self.data_dim is None else jax.lax.all_gather(part, "data", axis=self.data_dim, tiled=True)

    def sum(self, gradient: Float[Array, "V D"]) -> Float[Array, "_ _"]:
        """This device's part of the gradient, summed over the devices that score different tokens."""
        if self.data_dim is None:
            return self.shard.sum_tokens(gradient)
        part = sharding.reduce_scatter(gradient, "data", self.data_dim)
        others = tuple(axis for axis in self.shard.token_axes if axis != "data")
        return jax.lax.psum(part, others)


def table_sharding(vocab_size: int, embed_dim: int) -> TableSharding:
    """The layout on the current mesh that is nearest to how the table rests, so that devices swap parts at most."""
    shard, mesh = shard_of(vocab_size), jax.sharding.get_abstract_mesh()
    whole = PartitionSpec(shard.axes, None)
    if mesh.empty or mesh.shape["data"] == 1 or "data" in shard.axes:
        return TableSharding(whole, shard, None)
    at_rest = sharding.parameter_spec(("V", "D"), (vocab_size, embed_dim), mesh.shape)
    for dim in (0, 1) if "data" in sharding.axes_by_dim(at_rest, 2)[0] else (1, 0):
        if (shard.size, embed_dim)[dim] % mesh.shape["data"] == 0:
            spec = PartitionSpec((*shard.axes, "data"), None) if dim == 0 else PartitionSpec(shard.axes, "data")
            return TableSharding(spec, shard, dim)
    return TableSharding(whole, shard, None)


def map_logits(f: Callable, hidden: Float[Array, "B T D"], table: Float[Array, "V D"], *tokens):
    """Calls f(shard, logits, *tokens) on chunks of tokens; returns its results for all of them, a tree of [B, T, ...].

    `tokens` are trees of [B, T]; f must return the same on every shard. Logits are float32, on each device those of its
    ids. Nothing has a gradient.
    """
    shard, layout = shard_of(table.shape[0]), table_sharding(*table.shape)

    def per_device(hidden, table, *tokens):
        table = layout.gather(table)

        def chunk(_, local):
            hidden, *tokens = jax.tree.map(shard.gather_tokens, local)
            logits = matmul.einsum("BTD,VD->BTV", hidden, table, jnp.float32)
            return None, jax.tree.map(shard.local_tokens, f(shard, logits, *tokens))

        return scan_tokens(chunk, None, (hidden, *tokens), shard=shard)[1]

    spec = tokens_spec()
    run = shard_map(per_device, (spec, layout.spec, *(spec for _ in tokens)), spec)
    # Cast where it rests, so that fewer bytes travel.
    return run(hidden, sharding.constrain_at_rest(table.astype(hidden.dtype), "VD"), *tokens)


def tokens_spec() -> PartitionSpec:
    """The spec of arrays [B, T, ...] that enter and leave `shard_map`."""
    return PartitionSpec(*(sharding.ACTIVATION_AXES[dim] for dim in "BT"))


def shard_map(f: Callable, in_specs, out_specs) -> Callable:
    """jax.shard_map of `f` over the current mesh; `f` itself where no mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return f
    return jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def chunk_size(shard: Shard, num_rows: int, num_tokens: int) -> int:
    """Local tokens of each row whose logits, with those gathered, fit LOGITS_PER_CHUNK: a divisor of `num_tokens`.

    Arguments and result count what one device holds.
    """
    num_together = math.prod(jax.lax.axis_size(axis) for axis in shard.gathered_axes)
    fitting = max(1, LOGITS_PER_CHUNK // (num_rows * num_together * shard.size))
    return largest_divisor(num_tokens, fitting)


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return max(size for size in range(1, min(number, most) + 1) if number % size == 0)


def scan_tokens(f: Callable, carry, tokens, *, shard: Shard):
    """Scans f(carry, chunk) -> (carry, out) over chunks of a device's local tokens, inside `shard_map`.

    `tokens` and `out` are trees of [B, T, ...], T being the chunk's in `out`. Returns the last carry and all of `out`.
    """
    size = _chunk_size_of(tokens, shard)
    if size is None:
        return f(carry, tokens)
    carry, out = jax.lax.scan(f, carry, _split_chunks(tokens, size))
    return carry, _join_chunks(out)


def scan_gathered_tokens(f: Callable, carry, tokens, *, shard: Shard):
    """`scan_tokens` whose chunks have the tokens of all shards; `out` stays local.

    Scalars of each token are gathered before the loop. Vectors of each token are gathered while the chunk before them
    is worked on, those of the first chunk once more at the end, where nothing reads them.
    """
    size = _chunk_size_of(tokens, shard)
    if size is None or not shard.gathered_axes:
        return scan_tokens(
            lambda carry, local: f(carry, jax.tree.map(shard.gather_tokens, local)), carry, tokens, shard=shard
        )
    leaves, tree = jax.tree.flatten(_split_chunks(tokens, size))
    scalars = [shard.gather_tokens(x, 1) if x.ndim == 3 else None for x in leaves]
    vectors = [x if x.ndim > 3 else None for x in leaves]
    gather = functools.partial(jax.tree.map, shard.gather_tokens)

    def vectors_of(index):
        return gather([x if x is None else jax.lax.dynamic_index_in_dim(x, index, keepdims=False) for x in vectors])

    def step(state, chunk):
        (carry, now), (scalars, next_index) = state, chunk
        following = vectors_of(next_index)
        both = [vector if scalar is None else scalar for scalar, vector in zip(scalars, now, strict=True)]
        carry, out = f(carry, tree.unflatten(both))
        return (carry, following), out

    num_chunks = leaves[0].shape[0]
    next_indices = jnp.arange(1, num_chunks + 1) % num_chunks
    (carry, _), out = jax.lax.scan(step, (carry, vectors_of(0)), (scalars, next_indices))
    return carry, _join_chunks(out)


def _chunk_size_of(tokens, shard: Shard) -> int | None:
    """The size of the chunks of these local tokens; None if they are one chunk."""
    num_rows, num_tokens = jax.tree.leaves(tokens)[0].shape[:2]
    size = chunk_size(shard, num_rows, num_tokens)
    return None if size == num_tokens else size


def _split_chunks(tokens, size: int):
    """A tree of [B, T, ...] -> [chunks, B, size, ...]."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0), tokens)


def _join_chunks(out):
    """The inverse of `_split_chunks`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:]), out)
