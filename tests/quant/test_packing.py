"""Byte layouts by hand, and back."""

import numpy as np
import pytest

from gemma3_jax.quant import formats, packing
from tests.quant import matrices


def test_a_block_of_q4_0_by_hand():
    codes = np.arange(32, dtype=np.uint8).reshape(1, 1, 32) % 16
    codes[0, 0, 16:] = 15 - codes[0, 0, 16:]
    data = packing.pack("q4_0", formats.Encoded(codes, np.float32([[[-2.0]]])))
    assert data.tolist() == [[0x00, 0xC0, *(j | (15 - j) << 4 for j in range(16))]]


def test_a_block_of_q8_0_by_hand():
    codes = np.arange(-16, 16, dtype=np.int8).reshape(1, 1, 32)
    data = packing.pack("q8_0", formats.Encoded(codes, np.float32([[[0.5]]])))
    assert data.tolist() == [[0x00, 0x38, *range(240, 256), *range(16)]]


def test_blocks_of_a_row_follow_each_other():
    codes = np.zeros((2, 3, 32), np.uint8)
    data = packing.pack("q4_0", formats.Encoded(codes, np.arange(6, dtype=np.float32).reshape(2, 3, 1)))
    assert data.shape == (2, 54) and data.reshape(6, 18)[:, :2].copy().view("<f2")[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_int4_has_the_even_weight_low_and_the_last_of_an_odd_row_alone():
    codes = np.int8([[1, -1, 7, -7, 3], [0, 2, -3, 0, -4]])
    data = packing.pack("int4", formats.Encoded(codes, np.ones((2, 1), np.float32)))
    assert data.tolist() == [[0xF1, 0x97, 0x03], [0x20, 0x0D, 0x0C]]


@pytest.mark.parametrize(
    "format, num_contracted", [("q4_0", 96), ("q8_0", 96), ("int4", 96), ("int4", 97), ("sfp8", 97)]
)
def test_what_is_packed_is_unpacked(format, num_contracted):
    x = np.random.default_rng(0).standard_normal((5, num_contracted)).astype(np.float32) * 3
    encoded = formats.encode(format, x, (1,))
    beside = None if format in formats.BLOCK_FORMATS else encoded.scale
    again = packing.unpack(format, packing.pack(format, encoded), num_contracted, beside)
    for ours, theirs in zip(encoded, again, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    values = formats.decode(format, again).reshape(x.shape)
    np.testing.assert_array_equal(matrices.bits(values), matrices.bits(formats.rounded(format, x, (1,))))
