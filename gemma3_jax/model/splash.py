"""Splash attention: JAX's TPU kernel, with block masks computed on the device from the packed rows.

A query's visible keys are an interval of its row (masks.spans), which the kernel tests with two comparisons. It visits
only the pairs of blocks that hold a visible key: a local layer costs O(T * window), and packed documents do not pay for
each other. XLA cannot partition a kernel, so it runs in a shard_map: global layers gather the keys of the whole row,
and exchange queries so that all shards score as many keys (load_balance.py); local layers fetch only the keys within
their window (halo_exchange.py).
"""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask_info
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from gemma3_jax import sharding
from gemma3_jax.model import halo_exchange, load_balance, masks

CHECKPOINT_NAME = "attended"  # the output of attention in execution.REMAT_POLICIES
LARGEST_BLOCK = 512


def check(platform: str) -> None:
    """Checks that the platform can run the kernel.

    Raises: ValueError if it cannot.
    """
    if platform not in ("tpu", "cpu"):
        raise ValueError(
            f"attention is 'splash' on platform {platform!r}; its kernel runs on 'tpu', and slowly, interpreted, on "
            "'cpu': choose 'auto', 'dense' or 'banded' (config.execution.attention)"
        )


def block_size(num_tokens: int) -> int:
    """Tokens in a block of queries or keys: the largest multiple of 128 up to 512 that divides a device's row.

    The row is padded to a multiple of 128, the smallest block that the kernel takes. Larger blocks take fewer steps,
    and score more keys outside the window: for a window of 1,024, blocks of 256, 512 and 1,024 score 1,280, 1,536 and
    2,048 keys per query. With 1,024, heads of 256 do not compile for v4: 16.3 MiB of vector memory, where a kernel may
    have 16. None of this has been timed on a TPU.
    """
    padded = _round_up(num_tokens, sharding.LANES)
    return max(size for size in range(sharding.LANES, LARGEST_BLOCK + 1, sharding.LANES) if padded % size == 0)


def fills_blocks(num_tokens: int) -> bool:
    """Whether a row of `num_tokens` gives every device at least one full block."""
    mesh = jax.sharding.get_abstract_mesh()
    return num_tokens >= sharding.LANES * (1 if mesh.empty else mesh.shape["seq"])


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    layout: masks.TokenLayout,
    sliding_window: int | None,
) -> Float[Array, "B T N H"]:
    """dense.attend, except at padding, in O(T) memory; any row length, head_dim, window and mesh.

    Raises: ValueError if sliding_window < 1, or if window and row are so long that a span does not fit 31 bits.
    """
    # How many tokens before and after its own a query of a local layer may read.
    reach = (
        None if sliding_window is None else (sliding_window - 1, sliding_window - 1 if layout.images is not None else 0)
    )
    arguments = query, key, value, layout.segments, masks.spans(layout, sliding_window)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _local_attention(*arguments, reach=reach, num_shards=1)
    keys_spec = sharding.activation_spec("BTKH", key.shape, mesh.shape)
    # Key heads are split as the queries that read them are; a single one is read by all queries, however split.
    queries_spec = sharding.activation_spec("BTNH", query.shape, mesh.shape) if key.shape[2] == 1 else keys_spec
    row_spec = PartitionSpec(*keys_spec[:2])
    run = jax.shard_map(
        functools.partial(_local_attention, reach=reach, num_shards=mesh.shape["seq"] if keys_spec[1] else 1),
        in_specs=(queries_spec, keys_spec, keys_spec, row_spec, row_spec),
        out_specs=queries_spec,
        check_vma=False,
    )
    return run(*arguments)


def _local_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    spans: masks.Spans,
    *,
    reach: tuple[int, int] | None,
    num_shards: int,
) -> Float[Array, "B T N H"]:
    """Attention of one device's queries, of a row that `seq` splits into `num_shards`."""
    num_tokens = query.shape[1]
    balances = reach is None and load_balance.applies(num_tokens, num_shards)
    block = block_size(num_tokens // 2 if balances else num_tokens)
    if reach is None:
        key, value, key_segments = (halo_exchange.gather_row(x, num_shards) for x in (key, value, segments))
        if balances:
            query = load_balance.balanced(query, num_shards)
            of_queries = load_balance.balanced(jnp.stack([segments, *spans], axis=-1), num_shards)  # as one message
            segments, *spans = (of_queries[..., i] for i in range(3))
            spans = masks.Spans(*spans)
        ids = splash_attention_kernel.SegmentIds(segments, key_segments)
    else:
        before, after = (min(distance, (num_shards - 1) * num_tokens) for distance in reach)
        before = _round_up(before, block)  # so that blocks of queries and blocks of keys align
        key, value = (halo_exchange.with_halo(x, before, after, num_shards) for x in (key, value))
        first_key = halo_exchange.first_token(num_tokens, num_shards) - before
        spans = jax.tree.map(lambda x: x - first_key, spans)
        ids = None  # the spans hold all there is: see _Within
    query, key, value = (_pad(x, block, "constant").swapaxes(1, 2) for x in (query, key, value))
    spans, ids = jax.tree.map(lambda x: _pad(x, block, "edge"), (spans, ids))  # so that every query has a key
    with jax.named_scope(load_balance.SCOPE) if balances else contextlib.nullcontext():
        out = jax.vmap(functools.partial(one_row, reach=reach, block=block))(query, key, value, spans, ids)
    out = out.swapaxes(1, 2)[:, :num_tokens]
    return load_balance.in_order(out, num_shards) if balances else out


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
    """The kernel on a row of whole blocks. Spans count from the first key; without a reach, segments matter too."""
    num_keys = key.shape[1]
    if reach is None:
        in_span, span = _not_beyond, spans.last
        most_visits = None
    else:
        in_span = _Within.of(reach, num_keys)
        span = in_span.packed(spans)
        most_visits = 1 + sum(-(-distance // block) for distance in reach)
    is_visible = visible_blocks(spans, block, num_keys // block)
    by_query = _mask_info(*visits(is_visible, most_visits), span)
    by_key = _mask_info(*(x.T for x in visits(is_visible.T, most_visits)), span)
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
        residual_checkpoint_name=CHECKPOINT_NAME,
        mask_function=in_span,
        interpret=sharding.platform() == "cpu",
    )
    return kernel(query, key, value, segments)


def visible_blocks(spans: masks.Spans, block: int, num_key_blocks: int) -> Bool[Array, "R _"]:
    """True where a block of queries (row) has a query that may read a key of a block of keys (column)."""
    first = spans.first.reshape(-1, block).min(axis=1) // block
    last = spans.last.reshape(-1, block).max(axis=1) // block
    index = jnp.arange(num_key_blocks)[None]
    return (first[:, None] <= index) & (index <= last[:, None])


def visits(is_visible: Bool[Array, "R _"], most: int | None) -> tuple[Int[Array, "R _"], Bool[Array, "R _"]]:
    """For each row, the indices of its visible blocks, which are neighbors; and which entries of the list count.

    Lists are at most `most` long, where that is known. A shorter list repeats its last block, which is loaded already.
    """
    num_blocks = is_visible.shape[1]
    step = jnp.arange(min(most or num_blocks, num_blocks))[None]
    start = jnp.argmax(is_visible, axis=1)[:, None]
    count = jnp.sum(is_visible, axis=1)[:, None]
    return start + jnp.minimum(step, jnp.maximum(count - 1, 0)), step < count


def _mask_info(
    indices: Int[Array, "_ _"], counts: Bool[Array, "_ _"], span: Int[Array, "T"]
) -> splash_attention_mask_info.MaskInfo:
    """The kernel's mask for all heads; in narrow types, as it has to fit scalar memory."""
    return splash_attention_mask_info.MaskInfo(
        data_next=indices[None].astype(jnp.int16),
        mask_next=None,
        block_mask=counts[None].astype(jnp.int8),
        partial_mask_blocks=None,
        q_sequence=span,
    )


def _not_beyond(last: jax.Array, key: jax.Array) -> jax.Array:
    """In the kernel: whether a key is not beyond the last one of its query's span."""
    return key <= last


@dataclasses.dataclass(frozen=True)
class _Within:
    """In the kernel, which reads one integer per query: whether a key is in the query's span.

    The integer holds the span's first key and, in its lowest `bits`, the span's length minus one. A window keeps that
    short; two ends anywhere in a row of 128K would not fit, so global layers use `_not_beyond` and segments.
    """

    bits: int

    @classmethod
    def of(cls, reach: tuple[int, int], num_keys: int) -> "_Within":
        bits = min(sum(reach), num_keys - 1).bit_length()
        if (num_keys - 1).bit_length() + bits > 31:
            raise ValueError(
                f"sliding_window is {reach[0] + 1} tokens in a row of {num_keys} on a device, whose spans do not fit "
                "the 31 bits of the splash kernel; choose attention 'banded' (config.execution.attention)"
            )
        return cls(bits)

    def packed(self, spans: masks.Spans) -> Int[Array, "T"]:
        return (spans.first << self.bits) | (spans.last - spans.first)

    def __call__(self, packed: jax.Array, key: jax.Array) -> jax.Array:
        beyond_first = key - (packed >> self.bits)
        return (beyond_first >= 0) & (beyond_first <= (packed & ((1 << self.bits) - 1)))


def _pad(x: jax.Array, block: int, mode: str) -> jax.Array:
    """[B, T, ...] with T padded to a multiple of `block`: with zeros ("constant") or the last entry ("edge")."""
    fill = -x.shape[1] % block
    return jnp.pad(x, ((0, 0), (0, fill)) + ((0, 0),) * (x.ndim - 2), mode=mode)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
