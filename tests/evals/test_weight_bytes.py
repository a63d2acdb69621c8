"""Bytes by hand, and the sums that the report's sizes must give."""

import dataclasses

import numpy as np
import pytest

from gemma3_jax.evals import weight_bytes
from gemma3_jax.model import config, parameters
from tests import toys

GB = 1e9


@pytest.mark.parametrize(
    ("size", "window_bits8", "full_bits8", "window_long"),
    [
        ("270m", 0.054, 0.302, None),
        ("1b", 0.073, 0.436, 0.548),
        ("4b", 0.396, 2.282, 2.806),
        ("12b", 1.242, 6.442, 8.925),
        ("27b", 1.560, 8.321, 11.174),
    ],
)
def test_the_cache_of_a_published_size(size, window_bits8, full_bits8, window_long):
    cache = weight_bytes.table(config.SIZES[size], [32_768, 131_072])["cache"]
    found = cache["32768"]
    assert round(found["window"]["int8"] / GB, 3) == window_bits8 and round(found["full"]["int8"] / GB, 3) == full_bits8
    assert found["window"]["bfloat16"] == 2 * found["window"]["int8"]
    assert window_long is None or round(cache["131072"]["window"]["bfloat16"] / GB, 3) == window_long


def test_a_cache_by_hand():
    # 8 layers of which number 5 is global; 2 heads of 8; a window of 5.
    assert weight_bytes.cached(toys.TOY, 20, "window") == 2 * 2 * 8 * (7 * 5 + 20)
    assert weight_bytes.cached(toys.TOY, 20, "full") == 2 * 2 * 8 * 8 * 20
    assert weight_bytes.cached(toys.TOY, 3, "window") == weight_bytes.cached(toys.TOY, 3, "full")


def test_weights_by_hand():
    model = dataclasses.replace(toys.TOY, num_layers=1, embed_dim=32, mlp_dim=64, head_dim=16, vocab_size=100)
    # Rows of outputs: query 64, key and value 32 each, output 32 of 64; gate and up 64 each, down 32 of 64.
    narrow, wide, norms = 64 + 32 + 32 + 64 + 64, 32 + 32, 4 * (5 * 32 + 2 * 16)
    table = 2 * 100 * 32
    assert weight_bytes.weights(model, "int4") == narrow * (16 + 4) + wide * (32 + 4) + norms + table
    assert weight_bytes.weights(model, "q4_0") == narrow * 18 + wide * 36 + norms + table
    assert weight_bytes.weights(model, "sfp8") == narrow * 32 + wide * 64 + 7 * 4 + norms + table
    assert weight_bytes.weights(model, "bfloat16") == 2 * (narrow * 32 + wide * 64) + norms + table


@pytest.mark.parametrize("changes", [{"embed_dim": 40}, {"mlp_dim": 40}, {"head_dim": 4}])
def test_what_is_not_whole_blocks_has_no_bytes_in_blocks(changes):
    model = dataclasses.replace(toys.TOY, **({"embed_dim": 32, "mlp_dim": 64, "head_dim": 16} | changes))
    weights = weight_bytes.table(model, [1])["weights"]
    assert weights["q4_0"] is None and all(size for format, size in weights.items() if format != "q4_0")


@pytest.mark.parametrize("size", weight_bytes.REPORT)
def test_beside_the_report(size):
    model = config.SIZES[size]
    table = weight_bytes.table(dataclasses.replace(model, vocab_padding=0), [32_768])
    report = table["report"]
    assert report["size"] == size and "not 8 bits at batch 1" in table["note"]
    assert table["weights"]["bfloat16"] == pytest.approx(2 * parameters.count(model), rel=1e-3)
    assert report["weights_gb"]["bfloat16"] == pytest.approx(table["weights"]["bfloat16"] / GB, rel=0.035)
    # The note's three numbers.
    per_number = report["cache_gb"] * GB / np.array([weight_bytes.cached(model, 32_768, x) for x in ("window", "full")])
    assert 11.8 < per_number[0] < 12.4 and 2 < per_number[1] < 2.4
    # 0.874 for the 0.9 of 1b, which is given in tenths, is the farthest.
    assert 12 * weight_bytes.cached(model, 32_768, "window") / GB == pytest.approx(report["cache_gb"], rel=0.03)


def test_what_is_in_no_report_has_none():
    assert "report" not in weight_bytes.table(config.SIZES["270m"], [1])
    assert "report" not in weight_bytes.table(toys.TOY, [1])
