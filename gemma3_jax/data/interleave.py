"""Parts in given shares, interleaved as evenly as they can be: element k of the mixture is element r of part p.

A pure function of k, so any step can be read without those before it, and no coin is tossed: in every window of the
mixture each part has its share of the elements, to within three, for a hundred parts and more.
"""

import heapq
from collections.abc import Sequence

MOST_AHEAD = 4  # elements by which a part may be ahead of its share, or behind
_SCALE = 1 << 60  # shares become integers, so that no rounding ever moves an element


class Interleave:
    """Parts with shares of the whole; the shares are normalised."""

    def __init__(self, shares: Sequence[float]):
        """Raises: ValueError if there is no share, or one that is not over 0."""
        if not shares or min(shares) <= 0:
            raise ValueError(f"the shares of a mixture are {list(shares)}; there must be some, all over 0")
        total = sum(shares)
        # A Huffman tree: at each node two branches are interleaved evenly, and the errors of the large branches,
        # which pass few nodes, do not add up. In a chain of parts they would: 12 elements for 140 parts, where this
        # has 2.3.
        heap = [(max(1, round(share / total * _SCALE)), part, part) for part, share in enumerate(shares)]
        heapq.heapify(heap)
        for number in range(len(shares), 2 * len(shares) - 1):
            (left, _, left_node), (right, _, right_node) = heapq.heappop(heap), heapq.heappop(heap)
            heapq.heappush(heap, (left + right, number, (left, left + right, left_node, right_node)))
        self._root = heap[0][2]

    def __getitem__(self, index: int) -> tuple[int, int]:
        """(part, how many of it came before)."""
        node = self._root
        while isinstance(node, tuple):
            left, both, left_node, right_node = node
            num_left = (2 * index * left + both) // (2 * both)  # of the first `index`, rounded to the nearest
            if (2 * (index + 1) * left + both) // (2 * both) > num_left:
                node, index = left_node, num_left
            else:
                node, index = right_node, index - num_left
        return node, index
