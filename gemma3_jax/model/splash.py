"""Attention in one kernel, for TPUs: JAX's splash attention, told what each of our packed rows lets a query read.

The kernel walks over pairs of a block of queries and a block of keys, and keeps no scores. What a query may read is an
interval of its row (masks.spans). So the kernel sees in two comparisons whether a key is in it, and is told which pairs
of blocks have any such key: a local layer costs O(T * window), and packed documents do not pay for each other. That
list is made on the device, for each row. JAX makes it of a mask, while tracing: 3.9 s of a CPU core for a causal row of
32,768 tokens, and that grows with the square.

XLA's partitioner cannot look into a kernel, so it runs in a shard_map: each device has its own rows, heads and queries.
On global layers it gathers the keys of the whole row, on local ones only those that its window reaches (row_shards.py).

Where `seq` splits a row of one document into n parts, the last part reads 2 - 1/n times as many keys as the mean on
global layers, and the others wait for it: 1.50 for n = 2, 1.75 for 4, 1.88 for 8, 1.94 for 16, 1.97 for 32, 1.98 for
64. (Documents shorter than a part cost the same wherever they lie.) If each device had two chunks, the i-th and the
i-th from the end, all would read the same. The data stream would have to lay rows out so, local layers to fetch a halo
for each chunk, and global ones to put the gathered keys back in order; and `visits` would have to list blocks with gaps
between them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask_info
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from gemma3_jax import sharding
from gemma3_jax.model import halo_exchange, masks

KEPT_NAME = "attended"  # what execution.KEPT_NAMES calls the output of attention
LARGEST_BLOCK = 512


def check(platform: str) -> None:
    """Refuses a platform that cannot run the kernel.

    Raises: ValueError that names those that can.
    """
    if platform not in ("tpu", "cpu"):
        raise ValueError(
            f"attention is 'splash' on platform {platform!r}; its kernel is for 'tpu' (and 'cpu', where it is slowly "
            "interpreted): choose 'auto', 'dense' or 'banded' (config.execution.attention)"
        )


def block_size(num_tokens: int) -> int:
    """Tokens in a block of queries, or of keys: the largest multiple of 128 up to 512 that divides a device's row.

    The row counts as filled up to a multiple of 128, below which the kernel takes nothing. Larger blocks have fewer
    steps, each of which costs something by itself, and more keys that are scored in vain: for a window of 1,024, blocks
    of 256, 512 and 1,024 score 1,280, 1,536 and 2,048 keys a query. With 1,024, heads of 256 do not compile for v4:
    16.3 MiB of vector memory, where a kernel may have 16. None of this has been timed on a TPU.
    """
    filled = _round_up(num_tokens, sharding.LANES)
    return max(size for size in range(sharding.LANES, LARGEST_BLOCK + 1, sharding.LANES) if filled % size == 0)


def fills_blocks(num_tokens: int) -> bool:
    """Whether every device has the tokens of at least one block, of a row of so many."""
    mesh = jax.sharding.get_abstract_mesh()
    return num_tokens >= sharding.LANES * (1 if mesh.empty else mesh.shape["seq"])


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    places: masks.Places,
    sliding_window: int | None,
) -> Float[Array, "B T N H"]:
    """What dense.attend returns, padding aside, with O(T) memory. Any row length, head width, window and mesh.

    Raises: ValueError if window < 1, or if window and row are so long that a span does not fit 31 bits.
    """
    # How far before and after its own token a query of a local layer may read.
    reach = (
        None if sliding_window is None else (sliding_window - 1, sliding_window - 1 if places.images is not None else 0)
    )
    arguments = query, key, value, places.segments, masks.spans(places, sliding_window)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _own_queries(*arguments, reach=reach, num_shards=1)
    keys_spec = sharding.activation_spec("BTKH", key.shape, mesh.shape)
    # Key heads that are split go with the queries that read them; a single one is read by all, wherever they are.
    queries_spec = sharding.activation_spec("BTNH", query.shape, mesh.shape) if key.shape[2] == 1 else keys_spec
    row_spec = PartitionSpec(*keys_spec[:2])
    run = jax.shard_map(
        functools.partial(_own_queries, reach=reach, num_shards=mesh.shape["seq"] if keys_spec[1] else 1),
        in_specs=(queries_spec, keys_spec, keys_spec, row_spec, row_spec),
        out_specs=queries_spec,
        check_vma=False,
    )
    return run(*arguments)


def _own_queries(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    spans: masks.Spans,
    *,
    reach: tuple[int, int] | None,
    num_shards: int,
) -> Float[Array, "B T N H"]:
    """Attention of one device's queries, where `seq` splits the row into `num_shards`."""
    num_tokens = query.shape[1]
    block = block_size(num_tokens)
    if reach is None:
        key, value, key_segments = (halo_exchange.whole_row(x, num_shards) for x in (key, value, segments))
        ids = splash_attention_kernel.SegmentIds(segments, key_segments)
    else:
        before, after = (min(far, (num_shards - 1) * num_tokens) for far in reach)
        before = _round_up(before, block)  # so that blocks of queries and blocks of keys begin together
        key, value = (halo_exchange.with_halo(x, before, after, num_shards) for x in (key, value))
        first_key = halo_exchange.first_token(num_tokens, num_shards) - before
        spans = jax.tree.map(lambda x: x - first_key, spans)
        ids = None  # the spans say it all: see _Within
    query, key, value = (_filled(x, block, "constant").swapaxes(1, 2) for x in (query, key, value))
    spans, ids = jax.tree.map(lambda x: _filled(x, block, "edge"), (spans, ids))  # no query without a key
    out = jax.vmap(functools.partial(one_row, reach=reach, block=block))(query, key, value, spans, ids)
    return out.swapaxes(1, 2)[:, :num_tokens]


def one_row(
    query: Float[Array, "N T H"],
    key: Float[Array, "K S H"],
    value: Float[Array, "K S H"],
    spans: masks.Spans,
    segments: splash_attention_kernel.SegmentIds | None,
    *,
    reach: tuple[int, int] | None,
    block: int,
) -> Float[Array, "N T H"]:
    """The kernel, on a row of whole blocks. Spans count from the first key; without a reach, segments matter, too."""
    num_keys = key.shape[1]
    if reach is None:
        in_span, span = _not_beyond, spans.last
        most_visits = None
    else:
        in_span = _Within.of(reach, num_keys)
        span = in_span.packed(spans)
        most_visits = 1 + sum(-(-far // block) for far in reach)
    meets = meetings(spans, block, num_keys // block)
    by_query = _mask_info(*visits(meets, most_visits), span)
    by_key = _mask_info(*(x.T for x in visits(meets.T, most_visits)), span)
    sides = "block_q block_kv block_kv_compute block_q_dkv block_kv_dkv block_kv_dkv_compute block_q_dq block_kv_dq"
    kernel = splash_attention_kernel.SplashAttentionKernel(
        by_query,  # for the forward pass,
        by_query,  # for the gradient of queries,
        by_key,  # and for that of keys and values
        block_sizes=splash_attention_kernel.BlockSizes(**dict.fromkeys(sides.split(), block)),
        is_mqa=False,
        save_residuals=False,
        mask_value=splash_attention_kernel.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=KEPT_NAME,
        mask_function=in_span,
        interpret=sharding.platform() == "cpu",
    )
    return kernel(query, key, value, segments)


def meetings(spans: masks.Spans, block: int, num_key_blocks: int) -> Bool[Array, "R _"]:
    """Which blocks of queries (rows) have a query that may read a key of which blocks of keys."""
    first = spans.first.reshape(-1, block).min(axis=1) // block
    last = spans.last.reshape(-1, block).max(axis=1) // block
    number = jnp.arange(num_key_blocks)[None]
    return (first[:, None] <= number) & (number <= last[:, None])


def visits(meets: Bool[Array, "R _"], most: int | None) -> tuple[Int[Array, "R _"], Bool[Array, "R _"]]:
    """For each row, the numbers of the blocks it meets, and which entries of that list count. They are neighbours.

    No list is longer than `most`, where that is known. A shorter one stays at its last block, which is there already.
    """
    num_blocks = meets.shape[1]
    step = jnp.arange(min(most or num_blocks, num_blocks))[None]
    start = jnp.argmax(meets, axis=1)[:, None]
    count = jnp.sum(meets, axis=1)[:, None]
    return start + jnp.minimum(step, jnp.maximum(count - 1, 0)), step < count


def _mask_info(
    numbers: Int[Array, "_ _"], count: Bool[Array, "_ _"], span: Int[Array, "T"]
) -> splash_attention_mask_info.MaskInfo:
    """What the kernel is told, for all heads; in narrow types, as it has to fit scalar memory."""
    return splash_attention_mask_info.MaskInfo(
        data_next=numbers[None].astype(jnp.int16),
        mask_next=None,
        block_mask=count[None].astype(jnp.int8),
        partial_mask_blocks=None,
        q_sequence=span,
    )


def _not_beyond(last: jax.Array, key: jax.Array) -> jax.Array:
    """In the kernel: whether a key comes no later than the last one of its query's span."""
    return key <= last


@dataclasses.dataclass(frozen=True)
class _Within:
    """In the kernel, which has one number for each query: whether a key is in the query's span.

    The number is where the span begins and, in its lowest `bits`, how far on it ends. A window keeps that short; two
    ends anywhere in a row of 128K would not fit, so global layers have `_not_beyond` and segments.
    """

    bits: int

    @classmethod
    def of(cls, reach: tuple[int, int], num_keys: int) -> "_Within":
        bits = min(sum(reach), num_keys - 1).bit_length()
        if (num_keys - 1).bit_length() + bits > 31:
            raise ValueError(
                f"window is {reach[0] + 1} tokens in a row of {num_keys} on a device, whose places and spans do not "
                "fit the 31 bits of the splash kernel; choose attention 'banded' (config.execution.attention)"
            )
        return cls(bits)

    def packed(self, spans: masks.Spans) -> Int[Array, "T"]:
        return (spans.first << self.bits) | (spans.last - spans.first)

    def __call__(self, packed: jax.Array, key: jax.Array) -> jax.Array:
        beyond_first = key - (packed >> self.bits)
        return (beyond_first >= 0) & (beyond_first <= (packed & ((1 << self.bits) - 1)))


def _filled(x: jax.Array, block: int, mode: str) -> jax.Array:
    """[B, T, ...] with T filled up to a multiple of `block`: with zeros ("constant"), or the last entry ("edge")."""
    fill = -x.shape[1] % block
    return jnp.pad(x, ((0, 0), (0, fill)) + ((0, 0),) * (x.ndim - 2), mode=mode)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
