"""FLOPs per token against published sizes, a count of pairs, and the compiler's count."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax.model import config, flops, masks, parameters
from tests import toys

TABLE = {  # published FLOPs per token at 8K, 32K and 128K
    "1b": (6.33e9, 6.94e9, 9.36e9),
    "4b": (2.45e10, 2.60e10, 3.21e10),
    "12b": (7.41e10, 7.90e10, 9.84e10),
    "27b": (1.665e11, 1.727e11, 1.969e11),
}


@pytest.mark.parametrize("size", TABLE)
def test_the_published_sizes_take_the_flops_of_the_table(size):
    per_token = [flops.per_token(config.SIZES[size], 1 << power) for power in (13, 15, 17)]
    assert per_token == pytest.approx(TABLE[size], rel=2e-3)  # the table has three digits


@pytest.mark.parametrize("seq_len", [3, 5, 40])
def test_attention_is_counted_pair_by_pair(seq_len):
    model = toys.TOY
    layout = masks.whole_rows(jnp.zeros((1, seq_len), jnp.int32))
    pairs = {
        sliding_window: int(np.sum(masks.visible(layout, layout, sliding_window))) / seq_len
        for sliding_window in (model.sliding_window, None)
    }
    num_global = sum(map(model.is_global, range(model.num_layers)))
    keys = num_global * pairs[None] + (model.num_layers - num_global) * pairs[model.sliding_window]
    more_than_one_key = 12 * model.num_heads * model.head_dim * (keys - model.num_layers)
    assert flops.per_token(model, seq_len) - flops.per_token(model, 1) == pytest.approx(more_than_one_key)


def test_the_compiler_counts_about_as_many():
    """One layer, so that no loop body is counted once for many; it counts norms and softmax too, and dense pairs."""
    model = dataclasses.replace(
        toys.TOY, num_layers=1, num_local_per_global=0, embed_dim=128, mlp_dim=512, num_heads=2, num_kv_heads=2,
        head_dim=64, vocab_size=1_024,
    )  # fmt: skip
    tokens = jnp.zeros((1, 32), jnp.int32)

    def loss(params):
        bound = parameters.bind(model, params)
        return jnp.sum(bound.logits(bound(tokens, masks.whole_rows(tokens))))

    compiled = jax.jit(jax.grad(loss)).lower(parameters.shapes(model)).compile()
    counted = compiled.cost_analysis()["flops"] / 32
    assert counted == pytest.approx(flops.per_token(model, 32), rel=0.1)
