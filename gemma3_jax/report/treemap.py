"""A treemap: rectangles whose areas are quantities, in groups."""

from collections.abc import Sequence
from typing import NamedTuple


class Rectangle(NamedTuple):
    left: float
    top: float
    width: float
    height: float


def layout(quantities: Sequence[float], area: Rectangle) -> list[Rectangle]:
    """Fills an area with a rectangle for each positive quantity, as square as a row at a time allows.

    Quantities come largest first. Source: Bruls, Huizing and van Wijk, Squarified Treemaps (2000).
    """
    rectangles: list[Rectangle] = []
    rest, left = [*quantities], area
    while rest:
        scale = left.width * left.height / sum(rest)
        side = min(left.width, left.height)
        num = 1
        while num < len(rest) and _worst(rest[: num + 1], scale, side) <= _worst(rest[:num], scale, side):
            num += 1
        row, rest = rest[:num], rest[num:]
        thickness = sum(row) * scale / side
        offset = 0.0
        for quantity in row:
            length = quantity * scale / thickness
            if left.width >= left.height:
                rectangles.append(Rectangle(left.left, left.top + offset, thickness, length))
            else:
                rectangles.append(Rectangle(left.left + offset, left.top, length, thickness))
            offset += length
        if left.width >= left.height:
            left = Rectangle(left.left + thickness, left.top, left.width - thickness, left.height)
        else:
            left = Rectangle(left.left, left.top + thickness, left.width, left.height - thickness)
    return rectangles


def _worst(row: Sequence[float], scale: float, side: float) -> float:
    """Returns the largest ratio of two sides among the rectangles of a row."""
    thickness = sum(row) * scale / side
    lengths = [quantity * scale / thickness for quantity in row]
    return max(max(length / thickness, thickness / length) for length in lengths)
