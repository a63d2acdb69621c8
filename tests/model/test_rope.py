import jax.numpy as jnp
import numpy as np

from gemma3_jax.model import rope
from tests import toys


def test_angles_by_hand():
    angles = rope.angles(jnp.asarray([[0, 3]]), 4, base=100.0, scale=1.0)
    np.testing.assert_allclose(angles, [[[0.0, 0.0], [3.0, 0.3]]], rtol=1e-6)


def test_scale_8_gives_position_8m_the_angles_of_m():
    far = rope.angles(jnp.asarray([[8 * 1000]]), 16, base=1e6, scale=8.0)
    np.testing.assert_allclose(far, rope.angles(jnp.asarray([[1000]]), 16, base=1e6, scale=1.0), rtol=1e-6)


def test_a_quarter_turn_moves_the_first_half_into_the_second():
    x = jnp.asarray([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    turned = rope.rotate(x, jnp.full((1, 1, 2), np.pi / 2))
    np.testing.assert_allclose(turned[0, 0, 0], [-3.0, -4.0, 1.0, 2.0], atol=1e-6)


def test_dot_products_depend_on_the_distance_alone():
    query, key = (jnp.asarray(toys.noise(name, (1, 1, 1, 8))) for name in ("query", "key"))

    def score(query_position, key_position):
        turn = lambda x, p: rope.rotate(x, rope.angles(jnp.asarray([[p]]), 8, base=1e4, scale=1.0))  # noqa: E731
        return jnp.sum(turn(query, query_position) * turn(key, key_position))

    np.testing.assert_allclose(score(107, 100), score(9, 2), rtol=1e-4)
    assert abs(score(107, 100) - score(109, 100)) > 1e-3
