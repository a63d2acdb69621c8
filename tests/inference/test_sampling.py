"""Draws by hand, and in the documented order of filters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax.inference import engine, sampling

LOGITS = jnp.log(jnp.asarray([[0.05, 0.4, 0.1, 0.25, 0.2]]))


def drawn(num_draws: int = 4_000, **fields) -> dict[int, float]:
    """Fraction of each id over many draws of one row."""
    options = sampling.Sampling(**({"temperature": 1.0, "top_k": 0, "top_p": 1.0} | fields))
    keys = engine.row_keys(0, np.arange(num_draws))
    ids = sampling.draw(keys, jnp.broadcast_to(LOGITS, (num_draws, 5)), options)
    unique, counts = np.unique(np.asarray(ids), return_counts=True)
    return dict(zip(unique.tolist(), (counts / num_draws).tolist(), strict=True))


def close(fractions: dict[int, float], expected: dict[int, float]) -> bool:
    """Within 4 standard errors of 4,000 draws."""
    return fractions.keys() == expected.keys() and all(abs(fractions[i] - expected[i]) < 0.032 for i in expected)


def test_all_of_the_distribution():
    assert close(drawn(), {0: 0.05, 1: 0.4, 2: 0.1, 3: 0.25, 4: 0.2})


def test_temperature_is_an_exponent():
    squares = np.array([0.05, 0.4, 0.1, 0.25, 0.2]) ** 2
    assert close(drawn(temperature=0.5), dict(enumerate((squares / squares.sum()).tolist())))


def test_temperature_0_and_one_id_are_the_most_probable():
    assert drawn(temperature=0.0) == drawn(top_k=1) == {1: 1.0}


def test_top_k_keeps_so_many():
    assert close(drawn(top_k=2), {1: 0.4 / 0.65, 3: 0.25 / 0.65})


def test_top_p_keeps_the_one_that_reaches_the_share():
    assert close(drawn(top_p=0.5), {1: 0.4 / 0.65, 3: 0.25 / 0.65})
    assert drawn(top_p=0.39) == {1: 1.0}


def test_top_p_is_of_what_top_k_leaves():
    """0.4 / 0.65 is over 0.6: of the whole distribution 0.6 would be two ids."""
    assert drawn(top_k=2, top_p=0.6) == {1: 1.0}


def test_min_p_is_a_share_of_the_most_probable():
    assert close(drawn(min_p=0.45), {1: 0.4 / 0.85, 3: 0.25 / 0.85, 4: 0.2 / 0.85})


def test_the_lowest_and_the_highest_temperature_are_greedy_and_uniform():
    assert drawn(temperature=1e-30) == {1: 1.0}
    assert close(drawn(temperature=1e30), dict.fromkeys(range(5), 0.2))


def test_temperature_comes_before_top_p():
    """At temperature 1/4 the first id has over 0.8; without, it would take three."""
    assert drawn(temperature=0.25, top_p=0.8) == {1: 1.0}


def test_what_may_not_be_is_not_drawn():
    logits = jnp.asarray([[-jnp.inf, 1.0, -jnp.inf, -jnp.inf, -jnp.inf]])
    options = sampling.Sampling(top_k=4)
    assert {int(sampling.draw(engine.row_keys(seed, np.zeros(1)), logits, options)[0]) for seed in range(20)} == {1}


def test_a_row_draws_alone_what_it_draws_beside_others():
    logits = jax.random.normal(jax.random.key(3), (4, 50))
    together = sampling.draw(engine.row_keys(7, np.arange(4)), logits, sampling.Sampling())
    alone = [
        sampling.draw(engine.row_keys(7, np.array([row])), logits[row : row + 1], sampling.Sampling())
        for row in range(4)
    ]
    assert together.tolist() == [int(ids[0]) for ids in alone]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.5}, r"temperature is -0\.5; it must be 0, or from 1e-30 to 1e30 \(--temperature\)"),
        ({"temperature": 1e-320}, "temperature is 1e-320; it must be 0, or from"),  # is 0 as a float32
        ({"temperature": 1e308}, r"temperature is 1e\+308; it must be 0, or from"),
        ({"temperature": float("nan")}, "temperature is nan; it must be 0, or from"),
        ({"top_k": -1}, r"top_k is -1; it must be at least 0"),
        ({"top_p": 0.0}, r"top_p is 0\.0; it must be over 0 and at most 1"),
        ({"min_p": 1.5}, r"min_p is 1\.5; it must be from 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        sampling.Sampling(**fields)
