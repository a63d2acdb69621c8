"""What holds the text of one row to a form while it is generated: which ids may come next."""

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Constraint(Protocol):
    """A form of text, and how far one row has come in it."""

    def allowed(self) -> np.ndarray:
        """bool[V], not to be written to: the ids that may come next, at least one; no control token but an end.

        Ids that end a document or a turn are True exactly where the text so far is complete; ids beyond the tokenizer
        never are.
        Raises: ValueError if nothing may come next.
        """
        ...

    def take(self, token: int) -> None:
        """Goes on behind an id that `allowed` has."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether nothing may come next but an end."""
        ...
