"""Documents -> rows of a fixed number of tokens, by best fit; long documents are cut and no token is lost.

Each piece is put into the fullest row that still has room for it, longest piece first. Source: recipe of Gemma 3's
report, section 2.2, says packed rows alone; best-fit after Ding et al. 2024, "Fewer truncations improve language
modeling".
"""

import bisect
import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Piece:
    """Tokens start..stop (excluded) of a document."""

    document: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


def cut(document: int, num_tokens: int, seq_len: int) -> list[Piece]:
    """The pieces of a document, none longer than a row.

    Each piece after the first repeats the last token of the one before, as its context: so every token but the
    document's first is predicted exactly once.
    """
    starts = range(0, max(num_tokens - 1, 1), seq_len - 1)
    return [Piece(document, start, min(start + seq_len, num_tokens)) for start in starts]


def pack(num_tokens: Sequence[int], seq_len: int) -> list[list[Piece]]:
    """Rows of pieces of documents of `num_tokens` each; the same for the same lengths.

    Time grows as n log n, and with the number of distinct gaps, of which there are at most `seq_len`.
    """
    pieces = [piece for document, length in enumerate(num_tokens) for piece in cut(document, length, seq_len)]
    pieces.sort(key=lambda piece: -piece.length)  # stable: documents of one length stay in order
    rows: list[list[Piece]] = []
    rows_by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of rows_by_room, in order
    for piece in pieces:
        found = bisect.bisect_left(rooms, piece.length)
        if found == len(rooms):
            row, room = len(rows), seq_len
            rows.append([])
        else:
            room = rooms[found]
            row = rows_by_room[room].pop()
            if not rows_by_room[room]:
                del rows_by_room[room], rooms[found]
        rows[row].append(piece)
        if left := room - piece.length:
            if left not in rows_by_room:
                bisect.insort(rooms, left)
            rows_by_room.setdefault(left, []).append(row)
    return rows
