"""Rounding by bits equals rounding by casts, and quotients are right from a wrong start."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gemma3_jax.quant import exact
from tests.quant import matrices

DIVISIONS = {"1 / y": lambda m: (np.ones_like(m), m), "x / 127": lambda m: (m, 127), "x / 1.875": lambda m: (m, 1.875)}


def mantissas(every):
    return (np.arange(0, 2**23, every, dtype=np.uint32) | np.uint32(0x3F800000)).view(np.float32)


def nearest_from(division, m, steps_off):
    """What is found from `steps_off` steps beside the quotient, and that quotient."""
    x, y = (np.broadcast_to(np.float32(part), m.shape) for part in DIVISIONS[division](m))
    expected = (x / y.astype(np.float64)).astype(np.float32)
    return exact.nearest(x, y, (expected.view(np.int32) + steps_off).view(np.float32)), expected


@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("steps_off", [-2, 0, 1])
def test_quotients_are_found_from_two_steps_off(division, steps_off):
    m = np.concatenate([mantissas(257), mantissas(1)[-1000:], mantissas(1)[:1000]])
    np.testing.assert_array_equal(*nearest_from(division, m, steps_off))


@pytest.mark.slow
@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("steps_off", [-2, -1, 0, 1, 2])
def test_quotients_of_every_mantissa_are_found(division, steps_off):
    np.testing.assert_array_equal(*nearest_from(division, mantissas(1), steps_off))


def test_the_machines_own_quotient_is_a_trial_only(monkeypatch):
    monkeypatch.setattr(exact, "nearest", lambda x, y, trial: trial + 1)
    np.testing.assert_array_equal(exact.quotient(np.float32([6, 0]), np.float32([2, 2])), [4, 0])


@pytest.mark.parametrize("scale", [2.0**-90, 1.0, 2.0**89])
def test_compiled_quotients_equal_those_in_double_precision(scale):
    m = mantissas(4099) * np.float32(scale)
    expected = [(m / np.float64(127)).astype(np.float32), (1 / m.astype(np.float64)).astype(np.float32)]
    found = matrices.compiled(lambda m: (exact.quotient(m, jnp.full_like(m, 127)), exact.reciprocal(m)), m)
    np.testing.assert_array_equal(found, expected)


def test_the_reciprocal_of_zero_is_zero():
    np.testing.assert_array_equal(exact.reciprocal(np.float32([0, -0.0, 4])), [0, 0, 0.25])


def around(values):
    """Each number, the middle to the next of its format, and the float32 next to these; both signs."""
    values = values[np.isfinite(values)].astype(np.float32)
    points = np.concatenate([values, values[:-1] / 2 + values[1:] / 2])
    points = np.concatenate([points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(0))])
    return np.concatenate([points, -points])


@pytest.mark.parametrize(
    "dtype, nearest", [(np.float16, exact.nearest_float16), (ml_dtypes.bfloat16, exact.nearest_bfloat16)]
)
def test_rounding_by_bits_equals_a_cast(dtype, nearest):
    numbers = np.arange(0x7F80 if dtype is ml_dtypes.bfloat16 else 0x7C00, dtype=np.uint16).view(dtype)
    x = around(numbers)
    expected = x.astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(matrices.bits(nearest(x)), matrices.bits(expected))
    np.testing.assert_array_equal(matrices.bits(matrices.compiled(nearest, x)), matrices.bits(expected))


@pytest.mark.parametrize("below", [exact.NORMAL, exact.TINY])
def test_what_is_flushed_keeps_its_sign(below):
    x = np.float32([below, -below, below / 2, -below / 2, 1e-40, -1e-40, -0.0])
    expected = matrices.bits(np.float32([below, -below, 0, -0.0, 0, -0.0, -0.0]))
    np.testing.assert_array_equal(matrices.bits(exact.flushed(x, below)), expected)
    np.testing.assert_array_equal(matrices.bits(matrices.compiled(lambda x: exact.flushed(x, below), x)), expected)
