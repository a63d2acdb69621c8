"""Edit distance between two lists of ids."""

from collections.abc import Sequence

import numpy as np


def distance(a: Sequence[int], b: Sequence[int]) -> int:
    """The Levenshtein distance: the least number of insertions, deletions and replacements that turn `a` into `b`.

    Computes the rows of the usual table in a few array operations each: along a row an entry is at most one more than
    the one before, which a running minimum of (entry - index) gives.
    """
    b, indices = np.asarray(b), np.arange(len(b) + 1)
    row = indices
    for number, token in enumerate(a, start=1):
        from_above = np.minimum(row[1:] + 1, row[:-1] + (b != token))
        row = np.minimum.accumulate(np.concatenate([[number], from_above]) - indices) + indices
    return int(row[-1])
