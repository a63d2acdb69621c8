"""The bytes of other programs, the same bits from numpy and the compiler, and what is refused."""

import hashlib

import gguf
import numpy as np
import pytest

from gemma3_jax.quant import formats, packing
from tests.quant import matrices
from tests.quant.matrices import bits

EVERY = (*formats.MATRICES, "float16", "bfloat16", "float32")
REPRESENTABLE = [name for name in matrices.MAKERS if name != "float16 scales infinite"]


def written_by_gguf(format, x):
    kind = gguf.GGMLQuantizationType[format.upper()]
    data = gguf.quants.quantize(x, kind)
    return data, gguf.quants.dequantize(data, kind)


@np.errstate(over="ignore", invalid="ignore")  # of infinite scales, in both
@pytest.mark.parametrize("format", formats.BLOCK_FORMATS)
@pytest.mark.parametrize("name", matrices.MAKERS)
def test_bytes_and_values_are_those_of_gguf(format, name):
    x = matrices.blocks(name).reshape(-1, 64)
    data, values = written_by_gguf(format, x)
    np.testing.assert_array_equal(packing.pack(format, formats.encode(format, x, (1,))), data)
    if name in REPRESENTABLE:
        np.testing.assert_array_equal(bits(formats.rounded(format, x, (1,))), bits(values))


@pytest.mark.parametrize("format", formats.BLOCK_FORMATS)
def test_below_tiny_the_values_are_zero_as_those_of_gguf(format):
    x = matrices.below_tiny()
    with np.errstate(all="ignore"):  # gguf's inverses overflow
        _, values = written_by_gguf(format, x)
    np.testing.assert_array_equal(formats.rounded(format, x, (1,)), values)
    assert not values.any()


# SHA-256 of the compiled codes and scales of matrices.blocks("near thresholds"); the same with jax 0.10.2 and 0.12.0.1.
DIGESTS = {
    "int4": "cd0fd3abbb524246",
    "q4_0": "123032529b53d273",
    "sfp8": "8f454e4641193819",
    "q8_0": "41db7806d7c36e12",
}


@pytest.mark.parametrize("format", formats.MATRICES)
def test_the_compiled_bits_do_not_change_with_the_version_of_jax(format):
    x = matrices.blocks("near thresholds").reshape(-1, 64)
    found = matrices.compiled(lambda x: formats.encode(format, x, (1,)), x)
    assert hashlib.sha256(b"".join(part.tobytes() for part in found)).hexdigest().startswith(DIGESTS[format])


@pytest.mark.parametrize("format", EVERY)
def test_compiled_bits_equal_those_of_numpy(format):
    x = np.concatenate([*(matrices.blocks(name) for name in REPRESENTABLE), matrices.below_tiny()])
    x = np.clip(x, -formats.LARGEST[format], formats.LARGEST[format])
    x = x[: len(x) // 4 * 4].reshape(-1, 128)
    found = matrices.compiled(lambda x: formats.rounded(format, x, (1,)), x)
    np.testing.assert_array_equal(bits(found), bits(formats.rounded(format, x, (1,))))


@pytest.mark.parametrize("format", formats.MATRICES)
def test_compiled_codes_and_scales_equal_those_of_numpy(format):
    x = matrices.blocks("near thresholds").reshape(-1, 64)
    found = matrices.compiled(lambda x: formats.encode(format, x, (1,)), x)
    for ours, theirs in zip(formats.encode(format, x, (1,)), found, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("format", EVERY)
@pytest.mark.parametrize("name", [*REPRESENTABLE, "below tiny"])
def test_rounding_twice_is_rounding_once(format, name):
    x = matrices.below_tiny() if name == "below tiny" else matrices.blocks(name)
    x = x / np.abs(x).max() if format == "sfp8" and np.abs(x).max() > 1 else x
    once = formats.rounded(format, x, (1,))
    twice = formats.rounded(format, once, (1,))
    if format == "int4":  # the scale found again may be a step off
        np.testing.assert_allclose(twice, once, rtol=2.0**-22, atol=0)
    else:
        np.testing.assert_array_equal(twice, once)


def test_int4_by_hand():
    x = np.float32([[7, -3.5, 2.5, 0.4], [0, 0, 0, 0], [-14, 13, 1, -0.9]])
    codes, scale = formats.encode("int4", x, (1,))
    assert codes.tolist() == [[7, -4, 2, 0], [0, 0, 0, 0], [-7, 6, 0, 0]]  # 3.5, 2.5 and 6.5 go to the even code
    np.testing.assert_array_equal(scale, np.float32([[7], [0], [14]]) * np.float32(1 / 7))
    np.testing.assert_array_equal(formats.decode("int4", formats.Encoded(codes, scale)), codes * scale)


def test_q4_0_by_hand():
    x = np.zeros((1, 32), np.float32)
    x[0, :5] = [3, -8, 7.5, 8, 0.5]
    codes, scale = formats.encode("q4_0", x, (1,))
    assert scale.tolist() == [[[1.0]]]  # -8 came first
    assert codes[0, 0, :6].tolist() == [11, 0, 15, 15, 9, 8]
    assert formats.rounded("q4_0", x, (1,))[0, :6].tolist() == [3, -8, 7, 7, 1, 0]


@pytest.mark.parametrize("format", formats.MATRICES)
@pytest.mark.parametrize("head_dim", [8, 64])
def test_a_contraction_is_rounded_as_the_rows_of_a_file(format, head_dim):
    rng = np.random.default_rng(0)
    query = rng.standard_normal((64, 4, head_dim)).astype(np.float32)
    rows = formats.rounded(format, query.reshape(64, -1).T, (1,))
    np.testing.assert_array_equal(formats.rounded(format, query, (0,)), rows.T.reshape(query.shape))
    output = rng.standard_normal((4, head_dim, 24)).astype(np.float32)
    rows = formats.rounded(format, output.reshape(-1, 24).T, (-1,))
    np.testing.assert_array_equal(formats.rounded(format, output, (0, 1)), rows.T.reshape(output.shape))


def test_a_shard_holds_whole_blocks_or_all_of_a_dim():
    assert formats.shard_multiples("q4_0", (4, 64, 24), (0, 1)) == {1: 32}
    assert formats.shard_multiples("q8_0", (4, 8, 24), (0, 1)) == {0: 4, 1: 8}
    assert formats.shard_multiples("int4", (4, 8, 24), (0, 1)) == {}


@pytest.mark.parametrize("format", EVERY)
def test_a_value_that_is_not_finite_is_refused_with_its_place(format):
    x = np.ones((2, 32), np.float32)
    x[1, 3] = np.nan
    x[1, 7] = -np.inf
    with pytest.raises(
        ValueError, match=rf"mlp/up has 2 of 64 values that are not finite, the first nan at \(1, 3\); {format}"
    ):
        formats.check("mlp/up", x, format, (1,))


@pytest.mark.parametrize(
    "format, limit", [("q4_0", "524032"), ("q8_0", r"8.31901e\+06"), ("float16", "65504"), ("int4", r"1.23794e\+27")]
)
def test_a_value_whose_scale_would_overflow_is_refused(format, limit):
    x = np.full((1, 32), formats.LARGEST[format], np.float32)
    formats.check("mlp/up", x, format, (1,))
    assert np.isfinite(formats.rounded(format, x, (1,))).all()
    with pytest.raises(ValueError, match=rf"mlp/up has a value of magnitude .*; {format} stores at most {limit}"):
        formats.check("mlp/up", np.nextafter(x, np.float32(np.inf)), format, (1,))


def test_a_contraction_that_is_not_whole_blocks_is_refused():
    formats.check_shape("attention/output", (3, 32, 5), "q4_0", (0, 1))
    formats.check_shape("mlp/up", (40, 5), "int4", (0,))
    with pytest.raises(ValueError, match=r"mlp/up \(40, 5\) sums over 40 weights; q4_0 needs a multiple of 32: choose"):
        formats.check("mlp/up", np.ones((40, 5), np.float32), "q4_0", (0,))


@pytest.mark.parametrize("format", formats.MATRICES)
def test_bytes_are_counted_as_they_are_packed(format):
    encoded = formats.encode(format, np.ones((5, 96), np.float32), (1,))
    beside = encoded.scale.nbytes if format in ("int4", "sfp8") else 0
    assert formats.num_bytes(format, 5, 96) == packing.pack(format, encoded).nbytes + beside


def test_odd_rows_of_int4_are_rounded_up_and_tables_counted_by_their_dtype():
    assert formats.num_bytes("int4", 5, 7) == 5 * (4 + 4)
    assert [formats.num_bytes(format, 5, 32) for format in formats.TABLES] == [640, 320, 320, 170]
