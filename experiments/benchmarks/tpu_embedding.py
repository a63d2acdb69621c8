"""The gradient of an embedding table on a TPU, made in several ways: estimated cycles, and what has no estimate.

    python experiments/benchmarks/tpu_embedding.py [--chip=v5e] [--vocab_size=262144] [--num_tokens=131072] [--width=72]

Needs libtpu, and no TPU. Each way sums rows [num_tokens, width] by id into a float32 table [vocab_size, width], the
part that one device of `starter.py:1b` on v5e:4x4 has to make: 1/16 of the width, of all tokens. Prints a JSON line for
each, with the cycles that the compiler estimates, those from bundles (gemma3_jax/planning/bundles.py), and temporary
bytes.
"""

import argparse
import json
import os

# So that libtpu compiles without a TPU; it reads them when it is loaded.
VARIABLES = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
os.environ.update(VARIABLES | {"JAX_PLATFORMS": "cpu"})

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies as jax_topologies  # noqa: E402

from gemma3_jax import chips  # noqa: E402
from gemma3_jax.planning import hlo, profile  # noqa: E402

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1"}
BLOCK = 512  # ids or tokens of a product


def scatter(num_ids: int, ids: jax.Array, rows: jax.Array) -> jax.Array:
    """What the program does: XLA sorts the ids and adds row by row."""
    return jnp.zeros((num_ids, rows.shape[1]), jnp.float32).at[ids].add(rows, mode="drop")


def scatter_wide(num_ids: int, ids: jax.Array, rows: jax.Array) -> jax.Array:
    """Rows of whole lane tiles."""
    wide = jnp.pad(rows, ((0, 0), (0, -rows.shape[1] % 128)))
    return scatter(num_ids, ids, wide)[:, : rows.shape[1]]


def sorted_scatter(num_ids: int, ids: jax.Array, rows: jax.Array) -> jax.Array:
    """Sorted here: rows are gathered in order of their ids, and the scatter has nothing to sort."""
    ids, order = jax.lax.sort((ids, jnp.arange(ids.shape[0], dtype=jnp.int32)), num_keys=1)
    table = jnp.zeros((num_ids, rows.shape[1]), jnp.float32)
    return table.at[ids].add(rows[order], mode="drop", indices_are_sorted=True)


def segments(num_ids: int, ids: jax.Array, rows: jax.Array) -> jax.Array:
    """Sorted, then summed within blocks of tokens by a product; only the last row of each id in a block is scattered.

    An id whose tokens cross blocks is scattered once for each: fewer additions, as many rows.
    """
    ids, order = jax.lax.sort((ids, jnp.arange(ids.shape[0], dtype=jnp.int32)), num_keys=1)
    by_block, rows = ids.reshape(-1, BLOCK), rows[order].reshape(-1, BLOCK, rows.shape[1])
    same = (by_block[:, :, None] == by_block[:, None]).astype(jnp.float32)
    sums = jnp.einsum("bij,bjd->bid", same, rows, precision=jax.lax.Precision.HIGHEST)
    is_last = jnp.concatenate([by_block[:, 1:] != by_block[:, :-1], jnp.ones_like(by_block[:, :1], bool)], axis=1)
    kept = jnp.where(is_last, by_block, num_ids).reshape(-1)
    table = jnp.zeros((num_ids, rows.shape[-1]), jnp.float32)
    return table.at[kept].add(sums.reshape(-1, rows.shape[-1]), mode="drop")


def one_hot(num_ids: int, ids: jax.Array, rows: jax.Array) -> jax.Array:
    """A product of all ids and all tokens, a block of ids at a time, in bfloat16: the cheapest product there is."""
    rows = rows.astype(jnp.bfloat16)

    def of_block(first):
        hits = (ids[None] == first + jnp.arange(BLOCK * 8, dtype=jnp.int32)[:, None]).astype(jnp.bfloat16)
        return jnp.einsum("vt,td->vd", hits, rows, preferred_element_type=jnp.float32)

    return jax.lax.map(of_block, jnp.arange(0, num_ids, BLOCK * 8)).reshape(num_ids, -1)


WAYS = (scatter, scatter_wide, sorted_scatter, segments, one_hot)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", default="v5e", choices=TOPOLOGIES)
    parser.add_argument("--vocab_size", type=int, default=262_144)
    parser.add_argument("--num_tokens", type=int, default=131_072)
    parser.add_argument("--width", type=int, default=72)
    args = parser.parse_args()
    chip = next(one for one in chips.CHIPS if one.name == args.chip)
    device = jax_topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[args.chip]).devices[0]
    place = jax.sharding.SingleDeviceSharding(device)
    ids = jax.ShapeDtypeStruct((args.num_tokens,), jnp.int32, sharding=place)
    rows = jax.ShapeDtypeStruct((args.num_tokens, args.width), jnp.float32, sharding=place)
    for way in WAYS:
        compiled = jax.jit(way, static_argnums=0).lower(args.vocab_size, ids, rows).compile()
        text = compiled.as_text()
        costs = profile.instruction_costs(text, hlo.read(text), chip)
        by = {name: sum(one.cycles or 0 for one in costs if one.estimator == name) for name in profile.ESTIMATORS}
        dearest = {one.name: one.cycles for one in sorted(costs, key=lambda one: -(one.cycles or 0))[:5]}
        unknown = sorted({one.opcode for one in costs if one.cycles is None and one.num_elements > 1024})
        mib = round(compiled.memory_analysis().temp_size_in_bytes / 2**20)
        line = {"way": way.__name__, **by, "dearest": dearest, "without_estimate": unknown, "temporary_mib": mib}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
