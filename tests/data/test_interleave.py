"""Mixtures are exact over any window, and any element is found without those before it."""

import numpy as np
import pytest

from gemma3_jax.data import interleave

SHARES = {
    "two": [0.3, 0.7],
    "one": [1.0],
    "equal": [1.0] * 7,
    "tiny": [0.999, 0.0009, 0.0001],
    "many": np.random.default_rng(0).dirichlet(np.full(140, 0.3)).clip(1e-7).tolist(),
    "flat": np.random.default_rng(1).dirichlet(np.full(100, 10.0)).tolist(),
}


@pytest.mark.parametrize("name", SHARES)
def test_every_window_holds_each_part_by_its_share(name):
    shares = np.asarray(SHARES[name]) / sum(SHARES[name])
    mixed = interleave.Interleave(SHARES[name])
    picks = np.asarray([mixed[index][0] for index in range(4_000)])
    counts = np.cumsum(picks[:, None] == np.arange(len(shares)), axis=0)
    error = counts - np.arange(1, 4_001)[:, None] * shares
    # A window's error is the difference of two of these.
    assert (error.max(0) - error.min(0)).max() < 3


@pytest.mark.parametrize("name", SHARES)
def test_the_elements_of_each_part_come_in_order_without_a_gap(name):
    mixed = interleave.Interleave(SHARES[name])
    seen = np.zeros(len(SHARES[name]), int)
    for index in range(2_000):
        part, rank = mixed[index]
        assert rank == seen[part]
        seen[part] += 1


def test_far_elements_are_found_at_once_and_exactly():
    mixed = interleave.Interleave([1.0, 2.0])
    part, rank = mixed[3 * 10**15]
    assert abs(rank - (10**15 if part == 0 else 2 * 10**15)) <= 2


def test_shares_that_are_none_are_refused():
    for shares in ([], [1.0, 0.0], [-1.0]):
        with pytest.raises(ValueError, match="there must be some, all over 0"):
            interleave.Interleave(shares)
