"""Where the time of a run went, over all its processes: what was spent on what, and what had to be done again."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from gemma3_jax.train import journal

FILE = "goodput.jsonl"
KINDS = ("init", "compile", "restore", "data", "step", "save", "evaluate")
REDONE = ("data", "step", "save", "evaluate")  # what is lost with the steps that a process did after its last save
LOST = "lost"


class Ledger:
    """Seconds by kind, of which each moment belongs to one: the innermost `spend` it lies in, and "init" outside.

    Written as differences, each with the steps it lies between; `summarise` reads them all.
    """

    def __init__(
        self, file: journal.Journal, clock: Callable[[], float] = time.monotonic, started: float | None = None
    ):
        """`started`: when the process did, by the same clock."""
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
        """Brings `seconds` up to now."""
        now = self._clock()
        self.seconds[self._kinds[-1]] += now - self._since
        self._since = now

    def restored(self, global_step: int) -> None:
        """The run goes on from this step: what lies behind it in the ledger is lost."""
        self._file.write({"restored": global_step})

    def record(self, global_step: int) -> None:
        """Writes what was spent since the last record, as having led to this step."""
        self.settle()
        spent = {kind: round(self.seconds[kind] - self._written[kind], 3) for kind in KINDS}
        self._written = dict(self.seconds)
        self._file.write({"global_step": global_step, "seconds": spent})

    def total(self) -> dict[str, float]:
        return summarise(self._file.read())


def summarise(entries: Sequence[Mapping]) -> dict[str, float]:
    """Seconds by kind, and "lost": what led to steps that a later process did again."""
    live: list[Mapping] = []
    total = dict.fromkeys((*KINDS, LOST), 0.0)
    for entry in entries:
        if "restored" in entry:
            kept = [past for past in live if past["global_step"] <= entry["restored"]]
            for past in live:
                if past["global_step"] > entry["restored"]:
                    total[LOST] += sum(past["seconds"][kind] for kind in REDONE)
                    for kind in set(KINDS) - set(REDONE):
                        total[kind] += past["seconds"][kind]
            live = kept
        else:
            live.append(entry)
    for past in live:
        for kind in KINDS:
            total[kind] += past["seconds"][kind]
    return total


def table(total: Mapping[str, float]) -> str:
    """A line for each kind that took time, with its share."""
    whole = sum(total.values())
    lines = [f"{kind:<10}{seconds:>12,.1f} s{seconds / whole:>8.1%}" for kind, seconds in total.items() if seconds]
    return "\n".join([*lines, f"{'in all':<10}{whole:>12,.1f} s"])
