"""FLOPs of the splash kernels, from a call in a program, against counts by hand."""

import pytest

from gemma3_jax.distill import list_kernel, pages
from gemma3_jax.planning import costs, hlo, kernels

HEADS, KEY_HEADS, TOKENS, WIDTH, BLOCK = 8, 2, 2_048, 128, 512
NUM_BLOCKS = TOKENS // BLOCK


def call(name, listed, num_keys=TOKENS):
    """A call as the compiler writes it: lists of blocks, their counts, then queries, keys and values."""
    query, key = (
        hlo.Shape("bf16", (heads, num_tokens, WIDTH)) for heads, num_tokens in ((HEADS, TOKENS), (KEY_HEADS, num_keys))
    )
    operands = (hlo.Shape("s16", (1, *listed)), hlo.Shape("s8", (1, *listed)), query, key, key)
    return costs.CustomCall("tpu_custom_call", name, 1, operands, (), None)


@pytest.mark.parametrize(("kind", "num_products"), [("fwd", 2), ("dq", 3)])
def test_a_local_layer_multiplies_the_blocks_that_it_lists(kind, num_products):
    of_blocks = 2 * num_products * HEADS * BLOCK * BLOCK * WIDTH
    flops = kernels.flops(call(f"splash_mha_{kind}_no_residuals.1", (NUM_BLOCKS, 3), TOKENS + 2 * BLOCK))
    assert flops == NUM_BLOCKS * 3 * of_blocks


def test_gradients_of_keys_are_listed_by_block_of_keys():
    flops = kernels.flops(call("splash_mha_dkv_.7", (3, NUM_BLOCKS)))
    assert flops == NUM_BLOCKS * 3 * 2 * 4 * HEADS * BLOCK * BLOCK * WIDTH


def test_a_global_layer_multiplies_up_to_its_own_block():
    flops = kernels.flops(call("splash_mha_fwd_segmented_residuals.2", (NUM_BLOCKS, NUM_BLOCKS)))
    assert flops == (1 + 2 + 3 + 4) * 2 * 2 * HEADS * BLOCK * BLOCK * WIDTH


def test_another_kernel_is_not_guessed_at():
    assert kernels.flops(call("ragged_dot.1", (1, 1))) is None


def test_drawing_weights_has_no_products():
    for name in ("teacher_summary.1", "teacher_weights.3"):
        assert kernels.flops(call(name, (1, 1))) == 0


def test_weights_of_few_ids_are_a_product_over_the_samples_in_two_parts():
    shapes = [hlo.Shape("f32", (64, 1_024)), hlo.Shape("s32", (64, 256)), hlo.Shape("f32", (64, 256))]
    one = costs.CustomCall("tpu_custom_call", "weights_of_few_ids.5", 1, tuple(shapes), (), None)
    assert kernels.flops(one) == 2 * 2 * 64 * 1_024 * 256


@pytest.mark.parametrize("scope, num_visits", [("", 13 + 14 + 15 + 16), ("global_layer/load_balanced/", 4 * 17 / 2)])
def test_the_last_of_four_sequence_shards_scores_the_most_unless_they_are_balanced(scope, num_visits):
    one = call("splash_mha_fwd_segmented_residuals.2", (NUM_BLOCKS, 4 * NUM_BLOCKS), 4 * TOKENS)
    one = one._replace(scopes=f"jit(one)/{scope}splash_mha_fwd_segmented")
    of_blocks = 2 * 2 * HEADS * BLOCK * BLOCK * WIDTH
    assert kernels.flops(one, busiest=True) == num_visits * of_blocks
    assert kernels.flops(one) == 4 * 17 / 2 * of_blocks


def test_lists_of_ids_are_picked_by_products():
    """64 tokens, 4,096 ids, 128 slots of each kind: all lines for draws; of a column its line, score and two counts."""
    shapes = [hlo.Shape("f32", (64, 1)), hlo.Shape("f32", (64, 4_096))]
    ids, below = hlo.Shape("s32", (64, 128)), hlo.Shape("f32", (64, 128))
    one = costs.CustomCall("tpu_custom_call", "teacher_list.2", 1, tuple(shapes), (ids, below, ids, below), None)
    assert kernels.num_slots(one) == (128, 128)
    by_column = 1 + list_kernel.NUM_PARTS + 2
    assert kernels.flops(one) == 2 * 64 * 4_096 * 128 * (1 + by_column / pages.NUM_LINES)
    systematic = one._replace(results=(ids, below))
    assert kernels.flops(systematic) == 2 * 64 * 4_096 * 128 * (1 + 1 / 16)
