"""Few points for many rows."""

import numpy as np

from gemma3_jax.report import thinning


def test_few_rows_stay_as_they_are():
    found = thinning.thin(np.arange(5.0), np.array([3.0, np.nan, 1.0, 2.0, 5.0]), 4)
    assert found.rows_per_point == 1
    np.testing.assert_array_equal(found.x, [0, 2, 3, 4])
    for y in (found.least, found.mean, found.most):
        np.testing.assert_array_equal(y, [3, 1, 2, 5])


def test_a_point_is_the_mean_of_its_rows_and_keeps_their_range():
    found = thinning.thin(np.arange(5.0), np.array([1.0, 9.0, 2.0, 4.0, 7.0]), 3)
    assert found.rows_per_point == 2
    np.testing.assert_array_equal(found.x, [0.5, 2.5, 4])
    np.testing.assert_array_equal(found.mean, [5, 3, 7])
    np.testing.assert_array_equal(found.least, [1, 2, 7])
    np.testing.assert_array_equal(found.most, [9, 4, 7])


def test_there_are_never_more_points_than_asked_for():
    for num_rows in range(1, 50):
        found = thinning.thin(np.arange(float(num_rows)), np.ones(num_rows), 7)
        assert len(found.x) <= 7 and found.most.max() == 1


def test_of_no_number_there_is_no_point():
    found = thinning.thin(np.arange(3.0), np.full(3, np.nan))
    assert len(found.x) == len(found.mean) == 0
