"""What restricts the tokens of one sequence while it is generated."""

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Constraint(Protocol):
    """A form of text, such as a grammar, and the progress of one sequence in it."""

    def allowed(self) -> np.ndarray:
        """Read-only bool[V]: the ids that may come next, at least one, and no control token but an end.

        Ids that end a document or a turn are True exactly where the text so far is complete. Ids beyond the tokenizer's
        are False.
        Raises: ValueError if nothing may come next.
        """
        ...

    def consume(self, token: int) -> None:
        """Advances past a token, one that `allowed` has."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether nothing but an end may come next."""
        ...
