"""The vocabulary split over devices, and a walk over tokens that never holds all their logits.

At rest the table of the vocabulary is split for ZeRO-3. For the products with it, its V rows are split over `seq` and
`model`, and the tokens of a chunk are gathered over `seq` instead: 32K tokens of a row are fewer than 262,144 rows of
the table, so fewer bytes travel. Where the mesh has neither axis they are split over `data`, and tokens gathered over
that: as many bytes, or more, but a device would hold the table, and its gradient in float32, whole: 8.4 of the 16 GB of
a v5e for 27B.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from gemma3_jax import sharding
from gemma3_jax.model import matmul

AXES = ("seq", "model")  # of the mesh, over which V is split
TOKEN_DIMS = {"data": 0, "seq": 1}  # of [B, T]: which one the axis splits
LOGITS_PER_CHUNK = 1 << 26  # on one device: 256 MiB of float32; 8,192 tokens of V = 262,144 at once would be 8 GiB


@dataclasses.dataclass(frozen=True)
class Shard:
    """What one device has of the vocabulary inside `mapped`: `size` ids from `first()`. All methods act there."""

    size: int
    axes: tuple[str, ...] = ()  # those that split it; none on one device
    token_axes: tuple[str, ...] = ()  # those along which devices score other tokens

    @property
    def gathered(self) -> tuple[str, ...]:
        """Axes along which tokens are gathered, to be scored together."""
        return tuple(axis for axis in self.axes if axis in TOKEN_DIMS)

    def number(self) -> jax.Array | int:
        return jax.lax.axis_index(self.axes) if self.axes else 0

    def first(self) -> jax.Array | int:
        return self.number() * self.size

    def sum(self, x):
        """Over the shards."""
        return jax.lax.psum(x, self.axes) if self.axes else x

    def max(self, x: jax.Array) -> jax.Array:
        """Over the shards."""
        return jax.lax.pmax(x, self.axes) if self.axes else x

    def of_all(self, x: jax.Array) -> jax.Array:
        """[...] of each shard -> [shards, ...], in the order of their ids."""
        return jax.lax.all_gather(x, self.axes) if self.axes else x[None]

    def sum_tokens(self, x):
        """Over the devices that score other tokens."""
        return jax.lax.psum(x, self.token_axes) if self.token_axes else x

    def gather_tokens(self, x: Shaped[Array, "B T ..."]) -> Shaped[Array, "_ _ ..."]:
        """The tokens that are scored together, of all shards."""
        for axis in self.gathered:
            x = jax.lax.all_gather(x, axis, axis=TOKEN_DIMS[axis], tiled=True)
        return x

    def own_tokens(self, x: Shaped[Array, "B T ..."]) -> Shaped[Array, "_ _ ..."]:
        """Of what all shards know of the gathered tokens, that of this device's own."""
        for axis in self.gathered:
            dim, size = TOKEN_DIMS[axis], x.shape[TOKEN_DIMS[axis]] // jax.lax.axis_size(axis)
            x = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * size, size, axis=dim)
        return x

    def sum_to_own_tokens(self, x: Shaped[Array, "B T ..."]) -> Shaped[Array, "_ _ ..."]:
        """`own_tokens(sum(x))`, with less traffic."""
        if "model" in self.axes:
            x = jax.lax.psum(x, "model")
        for axis in self.gathered:
            x = sharding.sum_scattered(x, axis, TOKEN_DIMS[axis])
        return x

    def pick(self, values: Float[Array, "*B V"], ids: Int[Array, "*B M"]) -> Float[Array, "*B M"]:
        """`values` of these ids, wherever they are held."""
        local, held = self._local(ids)
        return self.sum(jnp.where(held, jnp.take_along_axis(values, jnp.where(held, local, 0), axis=-1), 0))

    def add(
        self, values: Float[Array, "B T V"], ids: Int[Array, "B T M"], amounts: Float[Array, "B T M"]
    ) -> Float[Array, "B T V"]:
        """`values` with the amounts added at these ids, all those of one id."""
        local, held = self._local(ids)
        rows, columns = (jax.lax.broadcasted_iota(ids.dtype, ids.shape, dim) for dim in (0, 1))
        return values.at[rows, columns, jnp.where(held, local, self.size)].add(amounts, mode="drop")

    def _local(self, ids: Int[Array, "*B M"]) -> tuple[Int[Array, "*B M"], Bool[Array, "*B M"]]:
        """Where the ids stand in the shard, and whether they do."""
        local = ids - self.first()
        return local, (local >= 0) & (local < self.size)


def shard_of(vocab_size: int) -> Shard:
    """How the mesh that is set splits so many ids. An axis that does not divide them is left out."""
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
class Place:
    """How the table [V, D], or its gradient, goes in and out of `mapped`: V as a Shard has it, a dim over `data`."""

    spec: PartitionSpec
    shard: Shard
    data_dim: int | None  # 0 of V, 1 of D; None where neither divides

    def gather(self, part: Float[Array, "_ _"]) -> Float[Array, "V D"]:
        """All of a shard's rows: ZeRO-3 by hand, once for all chunks."""
        return part if self.data_dim is None else jax.lax.all_gather(part, "data", axis=self.data_dim, tiled=True)

    def sum(self, gradient: Float[Array, "V D"]) -> Float[Array, "_ _"]:
        """Over the devices that score other tokens, and of that this device's part."""
        if self.data_dim is None:
            return self.shard.sum_tokens(gradient)
        part = sharding.sum_scattered(gradient, "data", self.data_dim)
        others = tuple(axis for axis in self.shard.token_axes if axis != "data")
        return jax.lax.psum(part, others)


def place_of(vocab_size: int, width: int) -> Place:
    """On the mesh that is set: near to how the table rests, so that devices swap parts at most."""
    shard, mesh = shard_of(vocab_size), jax.sharding.get_abstract_mesh()
    whole = PartitionSpec(shard.axes, None)
    if mesh.empty or mesh.shape["data"] == 1 or "data" in shard.axes:
        return Place(whole, shard, None)
    at_rest = sharding.parameter_spec(("V", "D"), (vocab_size, width), mesh.shape)
    for dim in (0, 1) if "data" in sharding.axes_by_dim(at_rest, 2)[0] else (1, 0):
        if (shard.size, width)[dim] % mesh.shape["data"] == 0:
            spec = PartitionSpec((*shard.axes, "data"), None) if dim == 0 else PartitionSpec(shard.axes, "data")
            return Place(spec, shard, dim)
    return Place(whole, shard, None)


def of_logits(f: Callable, hidden: Float[Array, "B T D"], table: Float[Array, "V D"], *tokens):
    """`f(shard, logits, *tokens)` for all tokens, some at a time: a tree of [B, T, ...] that all shards know.

    `tokens` are [B, T]. Logits are float32, on each device those of its ids. Nothing has a gradient.
    """
    shard, place = shard_of(table.shape[0]), place_of(*table.shape)

    def per_device(hidden, table, *tokens):
        table = place.gather(table)

        def chunk(_, own):
            hidden, *tokens = map(shard.gather_tokens, own)
            logits = matmul.einsum("BTD,VD->BTV", hidden, table, jnp.float32)
            return None, jax.tree.map(shard.own_tokens, f(shard, logits, *tokens))

        return walk(chunk, None, (hidden, *tokens), shard=shard)[1]

    spec = tokens_spec()
    run = mapped(per_device, (spec, place.spec, *(spec for _ in tokens)), spec)
    # Cast where it rests, so that fewer bytes travel.
    return run(hidden, sharding.constrain_at_rest(table.astype(hidden.dtype), "VD"), *tokens)


def tokens_spec() -> PartitionSpec:
    """How [B, T, ...] goes in and out of `mapped`."""
    return PartitionSpec(*(sharding.ACTIVATION_AXES[dim] for dim in "BT"))


def mapped(f: Callable, in_specs, out_specs) -> Callable:
    """`f` as each device runs it on its part of the arguments; `f` itself where no mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return f
    return jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def chunk_size(shard: Shard, num_rows: int, num_tokens: int) -> int:
    """Own tokens of each row whose logits, with those gathered, fit LOGITS_PER_CHUNK: a divisor of `num_tokens`.

    All numbers are of one device.
    """
    num_together = math.prod(jax.lax.axis_size(axis) for axis in shard.gathered)
    fitting = max(1, LOGITS_PER_CHUNK // (num_rows * num_together * shard.size))
    return largest_divisor(num_tokens, fitting)


def largest_divisor(number: int, most: int) -> int:
    """Of `number`, the largest divisor that is at most `most`."""
    return max(size for size in range(1, min(number, most) + 1) if number % size == 0)


def walk(f: Callable, carry, tokens, *, shard: Shard):
    """`f(carry, chunk) -> (carry, out)` over chunks of a device's own tokens, inside `mapped`.

    `tokens` and `out` are trees of [B, T, ...] (out: of a chunk's own tokens); returns the last carry and all of `out`.
    """
    num_rows, num_tokens = jax.tree.leaves(tokens)[0].shape[:2]
    size = chunk_size(shard, num_rows, num_tokens)
    if size == num_tokens:
        return f(carry, tokens)
    parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(num_rows, -1, size, *x.shape[2:]), 1, 0), tokens)
    carry, out = jax.lax.scan(f, carry, parts)
    return carry, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(num_rows, num_tokens, *x.shape[3:]), out)
