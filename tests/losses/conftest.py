import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax.data import stream
from tests import toys
from tests.losses import reference


@pytest.fixture(scope="module")
def params():
    return toys.params(reference.MODEL)


@pytest.fixture(scope="module")
def rows():
    """Two documents per row and padding; some labels are masked."""
    segments, positions = (np.repeat(x, 2, axis=0) for x in toys.packed([5, 6], 12))
    tokens, labels = toys.tokens(reference.MODEL, 2, 12), toys.tokens(reference.MODEL, 2, 12, seed=1)
    mask = (segments > 0) & (np.arange(12) % 5 != 4)
    return stream.Rows(*map(jnp.asarray, (tokens, labels, mask, segments, positions, np.zeros_like(tokens))))


@pytest.fixture(scope="module")
def teacher():
    return toys.params(reference.MODEL, seed=1)
