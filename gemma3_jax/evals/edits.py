"""How many edits lie between two lists of ids."""

from collections.abc import Sequence

import numpy as np


def distance(a: Sequence[int], b: Sequence[int]) -> int:
    """The least number of ids to insert, leave out or replace that makes `b` of `a`.

    Source: Levenshtein 1966. Rows of the usual table, each in a few array operations: along a row, an entry is at most
    one more than the one before it, which a running minimum of entry - place gives.
    """
    b, places = np.asarray(b), np.arange(len(b) + 1)
    row = places
    for number, token in enumerate(a, start=1):
        from_above = np.minimum(row[1:] + 1, row[:-1] + (b != token))
        row = np.minimum.accumulate(np.concatenate([[number], from_above]) - places) + places
    return int(row[-1])
