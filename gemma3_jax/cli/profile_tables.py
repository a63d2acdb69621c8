"""Prints the profile of a compiled step as text."""

from collections.abc import Sequence

from gemma3_jax.cli import terminal
from gemma3_jax.planning import kinds, places, profile, profile_comparison

NUM_DEAREST = 20
SMALLEST_SHARE = 0.002  # of the step; pairs of place and kind that changed less are left out of a comparison


def show(of_step: profile.Profile) -> None:
    """Prints totals by place and kind, the dearest instructions, and what has no estimate."""
    terminal.show(f"\nestimated cycles of a chip in a step, in thousands: {of_step.title}")
    _show_table(_by_place(of_step))
    terminal.show(f"\nthe {NUM_DEAREST} dearest of {len(of_step.instructions):,} instructions, in thousands of cycles")
    _show_table(_dearest(of_step))
    if of_step.exposed:
        terminal.show(
            f"\nthe chip waits, by estimate, {of_step.exposed_seconds:.3f} s in a step: the {NUM_DEAREST} longest"
        )
        _show_table(_exposed(of_step))
    if rows := profile.without_estimate(of_step):
        terminal.show("\nwithout an estimate, and in no sum; the most elements x runs first")
        _show_table(_unestimated(rows[:NUM_DEAREST]))
        if rest := rows[NUM_DEAREST:]:
            terminal.show(f"  and {len(rest)} more with {sum(row.num_times for row in rest):,} runs")


def show_comparison(this: profile.Profile, other: profile.Profile) -> None:
    """Prints both profiles side by side."""
    terminal.show("\nestimated cycles, in thousands, beside those of the other profile")
    terminal.show(f"  this:  {_headline(this)}\n  other: {_headline(other)}")
    smallest = SMALLEST_SHARE * max(this.cycles, other.cycles)
    rows = [
        row
        for row in profile_comparison.compare(this, other)
        if not (row.place and row.kind) or abs(row.cycles - row.other_cycles) >= smallest
    ]
    head = ("this", "other", "ratio", "place", "kind")
    cells = [
        (_thousands(row.cycles), _thousands(row.other_cycles), f"{row.ratio:.2f}")
        + (row.place or "all places", row.kind or "all kinds")
        for row in rows
    ]
    _show_table([head, *cells])
    changes = [
        row for row in profile_comparison.compare_unestimated(this, other) if row.num_times != row.other_num_times
    ]
    if changes:
        terminal.show("\nruns without an estimate, where they differ")
        cells = [(f"{row.num_times:,}", f"{row.other_num_times:,}", row.place, row.kind) for row in changes]
        _show_table([("this", "other", "place", "kind"), *cells])


def _headline(of_step: profile.Profile) -> str:
    return f"{of_step.seconds:.3f} s, MFU {of_step.mfu:.1%}, {of_step.title}"


def _thousands(cycles: int) -> str:
    return f"{cycles / 1e3:,.0f}"


def _by_place(of_step: profile.Profile) -> list[Sequence[str]]:
    cycles = of_step.by_place_and_kind()
    columns = [kind for kind in kinds.KINDS if any(one == kind for _, one in cycles)]
    rows: list[Sequence[str]] = [("place", *columns, "all", "share")]
    for place in dict.fromkeys(place for place, _ in cycles):
        of_place = [cycles.get((place, kind), 0) for kind in columns]
        rows.append((str(place), *map(_thousands, of_place), _thousands(sum(of_place)), _share(sum(of_place), of_step)))
    totals = [sum(number for (_, one), number in cycles.items() if one == kind) for kind in columns]
    rows.append(("all", *map(_thousands, totals), _thousands(of_step.cycles), _share(of_step.cycles, of_step)))
    rows.append(("share", *(_share(total, of_step) for total in totals), _share(of_step.cycles, of_step), ""))
    return rows


def _share(cycles: int, of_step: profile.Profile) -> str:
    return f"{cycles / of_step.cycles:.1%}" if of_step.cycles else ""


def _dearest(of_step: profile.Profile) -> list[Sequence[str]]:
    head = ("cycles", "share", "runs", "place", "kind", "instruction", "source")
    return [head] + [
        (_thousands(one.cycles), _share(one.cycles, of_step), f"{one.num_times:,}")
        + (str(one.place), one.kind, one.name, one.source)
        for one in of_step.instructions[:NUM_DEAREST]
        if one.cycles is not None
    ]


def _exposed(of_step: profile.Profile) -> list[Sequence[str]]:
    head = ("seconds", "share", "for", "mesh axes", "place")
    longest = of_step.exposed[:NUM_DEAREST]
    share = lambda seconds: f"{seconds / of_step.seconds:.1%}"  # noqa: E731
    return [head] + [
        (f"{one.seconds:.4f}", share(one.seconds), one.kind, "+".join(one.axes), one.place) for one in longest
    ]


def _unestimated(rows: Sequence[profile.Unestimated]) -> list[Sequence[str]]:
    head = ("runs", "elements", "place", "kind", "instruction", "source")
    return [head] + [
        (f"{row.num_times:,}", f"{row.num_elements:,}")
        + (str(places.StepPlace(row.part, row.phase)), row.kind, row.name, row.source)
        for row in rows
    ]


def _show_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows in columns, the first of which is the header; columns of numbers are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_number = [cell[:1].isdigit() for cell in rows[min(1, len(rows) - 1)]]
    for row in rows:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        )
        terminal.show(("  " + "  ".join(cells)).rstrip())
