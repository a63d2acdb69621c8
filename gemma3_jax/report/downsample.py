"""Fewer points than logged rows, with the range of the rows behind each point so that no spike is lost."""

import dataclasses

import numpy as np

MAX_POINTS = 600  # of all lines of a run, approximately


@dataclasses.dataclass(frozen=True, kw_only=True)
class Downsampled:
    """Points in the order of x: the mean and the range of y. With one row per point the three are equal."""

    x: np.ndarray
    low: np.ndarray
    mean: np.ndarray
    high: np.ndarray
    rows_per_point: int


def downsample(x: np.ndarray, y: np.ndarray, max_points: int = MAX_POINTS) -> Downsampled:
    """Averages x and y over equally many rows per point, at most `max_points` points.

    Rows whose y is not finite are left out.
    """
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    rows_per_point = max(1, -(-len(y) // max_points))
    first = np.arange(0, len(y), rows_per_point)
    if not len(first):
        return Downsampled(x=x, low=y, mean=y, high=y, rows_per_point=1)
    counts = np.diff(np.append(first, len(y)))
    return Downsampled(
        x=np.add.reduceat(x, first) / counts,
        low=np.minimum.reduceat(y, first),
        mean=np.add.reduceat(y, first) / counts,
        high=np.maximum.reduceat(y, first),
        rows_per_point=rows_per_point,
    )
