"""A table of the page: text by row and column, without markup."""

import dataclasses
from collections.abc import Collection, Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A header and rows, the first cell of which names its row; None is an empty cell."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | None]]
    caption: str = ""
    code_columns: Collection[int] = ()  # set in the font of code

    def __post_init__(self):
        assert all(len(row) == len(self.head) for row in self.rows), "a row has as many cells as the header"

    def is_numeric(self, column: int) -> bool:
        """Whether a column holds quantities, which are aligned to the right."""
        return column > 0 and column not in self.code_columns and any(is_quantity(row[column]) for row in self.rows)


def is_quantity(cell: str | None) -> bool:
    """Whether a cell begins with a digit, after a sign if any, or is the dash for a missing value."""
    return cell is not None and (cell.lstrip("-−+")[:1].isdigit() or cell == "–")
