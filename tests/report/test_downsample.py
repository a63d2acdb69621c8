"""Many rows as few points."""

import numpy as np

from gemma3_jax.report import downsample


def test_few_rows_stay_as_they_are():
    points = downsample.downsample(np.arange(5.0), np.array([3.0, np.nan, 1.0, 2.0, 5.0]), 4)
    assert points.rows_per_point == 1
    np.testing.assert_array_equal(points.x, [0, 2, 3, 4])
    for y in (points.low, points.mean, points.high):
        np.testing.assert_array_equal(y, [3, 1, 2, 5])


def test_a_point_is_the_mean_of_its_rows_and_keeps_their_range():
    points = downsample.downsample(np.arange(5.0), np.array([1.0, 9.0, 2.0, 4.0, 7.0]), 3)
    assert points.rows_per_point == 2
    np.testing.assert_array_equal(points.x, [0.5, 2.5, 4])
    np.testing.assert_array_equal(points.mean, [5, 3, 7])
    np.testing.assert_array_equal(points.low, [1, 2, 7])
    np.testing.assert_array_equal(points.high, [9, 4, 7])


def test_there_are_never_more_points_than_the_maximum():
    for num_rows in range(1, 50):
        points = downsample.downsample(np.arange(float(num_rows)), np.ones(num_rows), 7)
        assert len(points.x) <= 7 and points.high.max() == 1


def test_of_no_number_there_is_no_point():
    points = downsample.downsample(np.arange(3.0), np.full(3, np.nan))
    assert len(points.x) == len(points.mean) == 0
