"""The codec against gemma.cpp's own test: its golden values, its counts, its two encoders."""

import ml_dtypes
import numpy as np
import pytest

from gemma3_jax.quant import formats, sfp
from tests.quant import matrices

# Source: google/gemma.cpp, compression/sfp_test.cc, TestGolden and TestEncDec.
GOLDENS = [
    (0.46875, 0.46875),
    (0.9375, 0.9375),
    (0.484375, 0.5),
    (0.96875, 1.0),
    (0.28125, 0.28125),
    (0.5625, 0.5625),
    (0.296875, 0.3125),
    (0.59375, 0.625),
    (0.279296875, 0.28125),
    (0.55859375, 0.5625),
    (0.265625, 0.25),
    (0.53125, 0.5),
    (0.0068359375, 0.0068359375),
    (0.00732421875, 0.0078125),
    (0.007568359375, 0.0078125),
    (1.0, 1.0),
    (1.0625, 1.0),
    (2.0**-22, 2.0**-22),
    (1.25 * 2.0**-23, 1.25 * 2.0**-23),
    (2.0**-23, 1.25 * 2.0**-23),
    (2.0**-24, 0.0),
    (1.5 * 2.0**-24, 0.0),
    (1.875 * 2.0**-24, 1.25 * 2.0**-23),
    (0.013841, 0.013671875),
]
CODES = np.uint8([code for code in range(256) if code != 0x80])


@pytest.mark.parametrize("direct", [False, True])
def test_golden_values_of_both_encoders(direct):
    given, expected = np.float32(GOLDENS).T
    np.testing.assert_array_equal(sfp.values(sfp.codes(given, direct=direct)), expected)
    np.testing.assert_array_equal(sfp.values(sfp.codes(-given, direct=direct)), -expected)


def test_every_code_comes_back_and_stands_for_a_value_of_its_own():
    values = sfp.values(CODES)
    assert len(set(values.tolist())) == 255 and values.max() == 1.875 and values[1] == 1.25 * 2.0**-23
    np.testing.assert_array_equal(sfp.codes(values), CODES)
    np.testing.assert_array_equal(sfp.codes(values, direct=True), CODES)


def test_values_by_hand():
    codes = np.uint8([0, 1, 63, 64, 71, 127, 128 + 71])
    expected = [0, 1.25 * 2.0**-23, 1.75 * 2.0**-8, 2.0**-7, 1.875 * 2.0**-7, 1.875, -1.875 * 2.0**-7]
    np.testing.assert_array_equal(sfp.values(codes), expected)


def test_as_many_bfloat16_are_exact_and_as_many_zero_as_gemma_cpp_counts():
    x = np.arange(0, 0x8000, 8, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    x = x[x <= 1.875]
    x = np.concatenate([x, -x])
    values = sfp.values(sfp.codes(x))
    assert np.count_nonzero(values == x) == 256
    assert np.count_nonzero((values == 0) & (x != 0)) == 3322


def test_bits_after_the_sixth_are_dropped_before_rounding_unless_direct():
    x = np.float32([1.0625 + 2.0**-7, 1.0625 + 2.0**-6])
    np.testing.assert_array_equal(sfp.values(sfp.codes(x)), [1.0, 1.125])
    np.testing.assert_array_equal(sfp.values(sfp.codes(x, direct=True)), [1.125, 1.125])


def test_no_negative_zero_is_written():
    assert sfp.codes(np.float32([-0.0, -1e-8, -1e-40])).tolist() == [0, 0, 0]


def test_numbers_beyond_the_largest_are_the_largest():
    assert sfp.values(sfp.codes(np.float32([1.9, -3e38]))).tolist() == [1.875, -1.875]


def test_a_tensor_is_scaled_only_beyond_the_largest():
    x = np.float32([[1.875, 0.5], [-0.25, 0.1]])
    assert formats.encode("sfp8", x, (1,)).scale.tolist() == [[1.0]]
    assert formats.encode("sfp8", x / 2, (1,)).scale.tolist() == [[1.0]]
    codes, scale = formats.encode("sfp8", x * 4, (1,))
    assert scale.tolist() == [[4.0]]
    np.testing.assert_array_equal(codes, formats.encode("sfp8", x, (1,)).codes)


@pytest.mark.parametrize("direct", [False, True])
def test_compiled_codes_equal_those_of_numpy(direct):
    every = np.arange(0, 0x40000000, 4099, dtype=np.uint32).view(np.float32)
    x = np.concatenate([every, -every])
    np.testing.assert_array_equal(
        matrices.compiled(lambda x: sfp.codes(x, direct=direct), x), sfp.codes(x, direct=direct)
    )
    np.testing.assert_array_equal(
        matrices.bits(matrices.compiled(sfp.values, CODES)), matrices.bits(sfp.values(CODES))
    )  # fmt: skip
