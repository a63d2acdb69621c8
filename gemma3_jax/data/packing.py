"""Documents -> rows of a fixed number of tokens, by best fit; long documents are cut and no token is lost.

Each span is put into the fullest row that still has room for it, longest span first. Source: the Gemma 3 report,
section 2.2, says no more than that rows are packed; best fit is after Ding et al. 2024, "Fewer truncations improve
language modeling".
"""

import bisect
import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class DocumentSpan:
    """Tokens start..stop (excluded) of a document."""

    document: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


def cut(document: int, num_tokens: int, seq_len: int) -> list[DocumentSpan]:
    """Returns the spans of a document, none longer than a row.

    Each span after the first repeats the last token of the one before, as context: so every token but the document's
    first is predicted exactly once.
    """
    starts = range(0, max(num_tokens - 1, 1), seq_len - 1)
    return [DocumentSpan(document, start, min(start + seq_len, num_tokens)) for start in starts]


def pack(num_tokens: Sequence[int], seq_len: int) -> list[list[DocumentSpan]]:
    """Returns rows of spans of documents with `num_tokens` tokens each; a function of these lengths alone.

    Time grows as n log n, and with the number of distinct gaps, of which there are at most `seq_len`.
    """
    spans = [span for document, length in enumerate(num_tokens) for span in cut(document, length, seq_len)]
    spans.sort(key=lambda span: -span.length)  # stable: documents of one length stay in order
    rows: list[list[DocumentSpan]] = []
    rows_by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of rows_by_room, in order
    for span in spans:
        tightest = bisect.bisect_left(rooms, span.length)
        if tightest == len(rooms):
            row, room = len(rows), seq_len
            rows.append([])
        else:
            room = rooms[tightest]
            row = rows_by_room[room].pop()
            if not rows_by_room[room]:
                del rows_by_room[room], rooms[tightest]
        rows[row].append(span)
        if left := room - span.length:
            if left not in rows_by_room:
                bisect.insort(rooms, left)
            rows_by_room.setdefault(left, []).append(row)
    return rows
