"""Many rows as few points: no drawing shows more than it has pixels, and none hides a spike."""

import dataclasses

import numpy as np

MOST = 600  # points of one line, or about so many


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thinned:
    """Points in order of x. With one row a point all three of y are the same."""

    x: np.ndarray
    least: np.ndarray
    mean: np.ndarray
    most: np.ndarray
    rows_per_point: int


def thin(x: np.ndarray, y: np.ndarray, most: int = MOST) -> Thinned:
    """At most `most` points, each of as many rows: the mean of x and of y, the least and the greatest y.

    Rows whose y is not finite are left out.
    """
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    rows_per_point = max(1, -(-len(y) // most))
    first = np.arange(0, len(y), rows_per_point)
    if not len(first):
        return Thinned(x=x, least=y, mean=y, most=y, rows_per_point=1)
    counts = np.diff(np.append(first, len(y)))
    return Thinned(
        x=np.add.reduceat(x, first) / counts,
        least=np.minimum.reduceat(y, first),
        mean=np.add.reduceat(y, first) / counts,
        most=np.maximum.reduceat(y, first),
        rows_per_point=rows_per_point,
    )
