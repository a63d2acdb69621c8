import dataclasses
import time

import pytest

from gemma3_jax.model import config, parameters
from tests import toys

# Computed from the published shapes; they match the report's Table 1 to its rounding.
PARAMETER_COUNTS = {
    "270m": 268_098_176,
    "1b": 999_885_952,
    "4b": 3_880_099_328,
    "12b": 11_765_788_416,
    "27b": 27_009_002_240,
}


@pytest.mark.parametrize("size", config.SIZES)
def test_parameter_counts_are_the_published_ones(size):
    assert parameters.count(config.SIZES[size]) == PARAMETER_COUNTS[size]


def test_counting_parameters_makes_none():
    started = time.monotonic()
    assert parameters.count(dataclasses.replace(config.SIZES["27b"], num_layers=6200)) > 2e12
    assert time.monotonic() - started < 20  # takes 0.2 s; allocating as many would take hours, or fail


@pytest.mark.parametrize(
    "size, num_global, last_is_global",
    [("270m", 3, True), ("1b", 4, False), ("4b", 5, False), ("12b", 8, True), ("27b", 10, False)],
)
def test_every_sixth_layer_is_global_and_the_pattern_is_cut_at_the_end(size, num_global, last_is_global):
    model = config.SIZES[size]
    kinds = [model.is_global(layer) for layer in range(model.num_layers)]
    assert [layer for layer, is_global in enumerate(kinds) if is_global][:3] == [5, 11, 17]
    assert sum(kinds) == num_global and kinds[-1] == last_is_global


def test_only_27b_scales_queries_by_width_over_heads():
    assert config.SIZES["27b"].query_scale == (5376 / 32) ** -0.5
    assert all(config.SIZES[size].query_scale == 256**-0.5 for size in ("270m", "1b", "4b", "12b"))


@pytest.mark.parametrize(
    "change, text",
    [
        ({"sliding_window": 0}, r"model\.sliding_window is 0; it must be a whole number >= 1"),
        ({"num_layers": 10**12}, r"model\.num_layers is 10{12}; it must be a whole number >= 1 and <= 10000"),
        ({"embed_dim": 2**31}, r"model\.embed_dim is 2147483648; it must be a whole number >= 1 and <= 2147483647"),
        ({"sliding_window": 10**400}, r"model\.sliding_window is 10{400}; it must be a whole number >= 1"),
        ({"vocab_padding": -1}, r"model\.vocab_padding is -1; it must be a whole number >= 0"),
        ({"rope_scale": 0.0}, r"model\.rope_scale is 0\.0; it must be a finite number > 0"),
        ({"query_scale": float("nan")}, r"model\.query_scale is nan; it must be a finite number > 0"),
        ({"num_kv_heads": 3}, r"num_heads is 4, model\.num_kv_heads 3; the first must be a multiple of the second"),
        ({"head_dim": 7}, r"model\.head_dim is 7; it must be even"),
    ],
)
def test_an_impossible_model_is_refused_with_the_field_and_its_value(change, text):
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(toys.TOY, **change)
