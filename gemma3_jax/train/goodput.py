"""Time of a run by kind, over all its processes, and the time lost to steps that had to be repeated."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from gemma3_jax.durable import jsonl

FILE = "goodput.jsonl"
KINDS = ("init", "compile", "restore", "data", "step", "save", "evaluate")
REDONE = ("data", "step", "save", "evaluate")  # lost with the steps after the last save of a process
LOST = "lost"


class Ledger:
    """Counts seconds by kind. Each moment has one kind: that of the innermost `spend`, and "init" outside of all.

    Each record in the file has the seconds since the record before it; `summarize` adds them up.
    """

    def __init__(self, file: jsonl.Journal, clock: Callable[[], float] = time.monotonic, started: float | None = None):
        """`started`: the start of the process, by `clock`."""
        self._file, self._clock = file, clock
        self._since = clock() if started is None else started
        self._kinds = ["init"]
        self._written = dict.fromkeys(KINDS, 0.0)
        self.seconds = dict.fromkeys(KINDS, 0.0)

    @contextlib.contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        self.settle()
        self._kinds.append(kind)
        try:
            yield
        finally:
            self.settle()
            self._kinds.pop()

    def settle(self) -> None:
        """Updates `seconds` to now."""
        now = self._clock()
        self.seconds[self._kinds[-1]] += now - self._since
        self._since = now

    def restored(self, global_step: int) -> None:
        """Records that the run resumes from a step: the time of later steps so far is lost."""
        self._file.write({"restored": global_step})

    def record(self, global_step: int) -> None:
        """Writes the seconds since the last record, which led to this step."""
        self.settle()
        spent = {kind: round(self.seconds[kind] - self._written[kind], 3) for kind in KINDS}
        self._written = dict(self.seconds)
        self._file.write({"global_step": global_step, "seconds": spent})

    def total(self) -> dict[str, float]:
        """Returns the seconds by kind of all processes of the run, up to the last record."""
        return summarize(self._file.read())


def is_entry(entry: Mapping) -> bool:
    """Whether a ledger may have this entry."""
    if not isinstance(entry.get("restored" if "restored" in entry else "global_step"), int):
        return False
    seconds = entry.get("seconds")
    return "restored" in entry or (
        isinstance(seconds, Mapping) and all(isinstance(seconds.get(kind), int | float) for kind in KINDS)
    )


def summarize(entries: Sequence[Mapping]) -> dict[str, float]:
    """Returns the seconds by kind of a ledger's entries, and "lost": those of steps that a later process repeated."""
    live: list[Mapping] = []
    total = dict.fromkeys((*KINDS, LOST), 0.0)
    for entry in entries:
        if "restored" in entry:
            remaining = [past for past in live if past["global_step"] <= entry["restored"]]
            for past in live:
                if past["global_step"] > entry["restored"]:
                    total[LOST] += sum(past["seconds"][kind] for kind in REDONE)
                    for kind in set(KINDS) - set(REDONE):
                        total[kind] += past["seconds"][kind]
            live = remaining
        else:
            live.append(entry)
    for past in live:
        for kind in KINDS:
            total[kind] += past["seconds"][kind]
    return total


def table(total: Mapping[str, float]) -> str:
    """Returns a line for each kind that took time, with its fraction of the total."""
    sum_all = sum(total.values())
    lines = [f"{kind:<10}{seconds:>12,.1f} s{seconds / sum_all:>8.1%}" for kind, seconds in total.items() if seconds]
    return "\n".join([*lines, f"{'in all':<10}{sum_all:>12,.1f} s"])
