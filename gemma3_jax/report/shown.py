"""A run as the page shows it: under a short name, in a colour of its own."""

import dataclasses
from collections.abc import Sequence

from gemma3_jax.report import drawing, history


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """One of the runs of a page; number 0 is the one it is about."""

    number: int
    label: str
    run: history.Run

    @property
    def style(self) -> dict:
        return drawing.series(self.number)

    @property
    def colour(self) -> str:
        return drawing.COLOUR[drawing.role_of(self.number)]


def keys(runs: Sequence[Shown]) -> list[drawing.Key]:
    """A legend of the runs; nothing where there is one alone."""
    if len(runs) == 1:
        return []
    return [
        drawing.Key(label=one.label, role=drawing.role_of(one.number), dash=drawing.dash_of(one.number)) for one in runs
    ]


def name(runs: Sequence[Shown], one: Shown, what: str) -> str:
    """`what` of a run, told apart from that of others if there are any."""
    return what if len(runs) == 1 else f"{one.label}: {what}"
