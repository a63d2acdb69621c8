"""Blocks of 32 weights that between them meet every case of the formats, and functions compiled as in production."""

import jax
import numpy as np

F32 = np.float32


def _random(rng):
    return rng.standard_normal((16384, 32)) * 10.0 ** rng.uniform(-4, 3, (16384, 1))


def _near_thresholds(rng):
    """Up to 24 steps of float32 from where a code of q4_0 begins, in odd rows, and one of q8_0, in even ones."""
    num_rows, odd = 24576, np.arange(24576)[:, None] % 2 == 1
    largest = rng.uniform(1, 2, (num_rows, 1)).astype(F32) * rng.choice([-1, 1], (num_rows, 1)).astype(F32)
    scale = np.where(odd, largest / F32(-8), np.abs(largest) / F32(127))
    codes = np.where(odd, rng.integers(-7, 8, (num_rows, 32)), rng.integers(-127, 127, (num_rows, 32)))
    x = (scale.astype(np.float64) * (codes + 0.5)).astype(F32)
    x = (x.view(np.int32) + rng.integers(-24, 25, x.shape, dtype=np.int32)).view(F32)
    x[np.arange(num_rows), rng.integers(0, 32, num_rows)] = largest[:, 0]
    return x


def _on_thresholds(rng):
    """With a scale that is a power of two, every middle between codes is a float32."""
    x = (rng.integers(-8, 8, (512, 32)) + 0.5) * 2.0 ** rng.integers(-20, 10, (512, 1))
    x[:, 5] = np.where(rng.integers(0, 2, 512), -8, 8) * 2.0 ** rng.integers(-20, 10, 512)
    return x


def _tied(rng):
    """The largest magnitude several times, with both signs."""
    return rng.choice([-1.0, 1.0, 0.3], (512, 32)) * 10.0 ** rng.uniform(-3, 3, (512, 1))


def _zero(rng):
    x = np.zeros((64, 32))
    x[::2, rng.integers(0, 32, 16)] = -0.0
    x[::3, 0] = -0.0
    return x


def _with_largest_from(low, high):
    def make(rng):
        x = rng.uniform(-1, 1, (1024, 32))
        return x / np.abs(x).max(axis=1, keepdims=True) * 2.0 ** rng.uniform(low, high, (1024, 1))

    return make


def _with_denormals(rng):
    """Beside weights of size 1, the denormals of float32."""
    x = rng.standard_normal((256, 32)).astype(F32)
    x[:, ::3] = rng.integers(-(2**23) + 1, 2**23, x[:, ::3].shape).astype(F32) * F32(2.0**-149)
    return x


MAKERS = {
    "random": _random,
    "near thresholds": _near_thresholds,
    "on thresholds": _on_thresholds,
    "tied": _tied,
    "zero": _zero,
    "float16 scales denormal": _with_largest_from(-23, -10),
    "float16 scales zero": _with_largest_from(-83, -22),
    "float16 scales infinite": _with_largest_from(19, 89),
    "beside denormals": _with_denormals,
}


def blocks(name: str) -> np.ndarray:
    return MAKERS[name](np.random.default_rng(len(name))).astype(F32)


def below_tiny() -> np.ndarray:
    """What q4_0 and q8_0 take for zeros, down to the least denormals."""
    return _with_largest_from(-149, -87)(np.random.default_rng(0)).astype(F32)


def bits(x) -> np.ndarray:
    return np.asarray(x).view(np.uint32)


def compiled(function, *args):
    """What `function` gives when compiled as outside the tests: conftest.py spares the passes that fuse operations."""
    options = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    return jax.tree.map(np.asarray, jax.jit(function).lower(*args).compile(compiler_options=options)(*args))
