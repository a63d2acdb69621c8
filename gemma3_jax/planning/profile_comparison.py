"""Two profiles side by side: the cycles of the step, of each place, of each kind of work, and of each pair of them."""

import math
from collections import Counter
from typing import NamedTuple

from gemma3_jax.planning import kinds, places, profile


class CycleChange(NamedTuple):
    """Estimated cycles of a part of a step, in a profile and in another one."""

    place: str  # empty: all
    kind: str  # empty: all
    cycles: int
    other_cycles: int

    @property
    def ratio(self) -> float:
        """This profile's cycles over the other's; infinite if the other has none."""
        return self.cycles / self.other_cycles if self.other_cycles else math.inf if self.cycles else 1.0


class RunChange(NamedTuple):
    """Runs in a step, in a profile and in another one, of instructions without an estimate."""

    place: str
    kind: str
    num_times: int
    other_num_times: int


def compare(this: profile.Profile, other: profile.Profile) -> list[CycleChange]:
    """Returns the total, then each place, each kind, and each pair of place and kind, without rows of two zeros."""
    ours, theirs = this.by_place_and_kind(), other.by_place_and_kind()
    in_order = [places.StepPlace(part, phase) for part in places.PARTS for phase in places.PHASES]
    pairs = [(place, kind) for place in in_order for kind in kinds.KINDS if (place, kind) in {**ours, **theirs}]
    rows = [CycleChange("", "", this.cycles, other.cycles)]
    for place in dict.fromkeys(place for place, _ in pairs):
        sums = (sum(one.get((place, kind), 0) for kind in kinds.KINDS) for one in (ours, theirs))
        rows.append(CycleChange(str(place), "", *sums))
    for kind in kinds.KINDS:
        sums = (sum(one.get((place, kind), 0) for place in in_order) for one in (ours, theirs))
        rows.append(CycleChange("", kind, *sums))
    rows += [
        CycleChange(str(place), kind, *(one.get((place, kind), 0) for one in (ours, theirs))) for place, kind in pairs
    ]
    return [row for row in rows if row.cycles or row.other_cycles]


def compare_unestimated(this: profile.Profile, other: profile.Profile) -> list[RunChange]:
    """Returns what has no estimate in one of them, by place and kind."""
    ours, theirs = (_unestimated_runs(one) for one in (this, other))
    return [RunChange(*key, ours[key], theirs[key]) for key in dict.fromkeys((*ours, *theirs))]


def _unestimated_runs(of_step: profile.Profile) -> Counter[tuple[str, str]]:
    runs: Counter[tuple[str, str]] = Counter()
    for row in profile.without_estimate(of_step):
        runs[str(places.StepPlace(row.part, row.phase)), row.kind] += row.num_times
    return runs
