"""Which row comes when: a pure function of the seed and the step, whatever number of hosts and workers reads.

Each part is shuffled anew every epoch, on the index, and the parts are interleaved by their shares. A step is the rows
[step * batch_size, (step + 1) * batch_size) of that one sequence, so nothing but a number need be remembered.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping

import grain

from gemma3_jax.data import dataset, interleave, mixture, settings


@dataclasses.dataclass(frozen=True)
class Order:
    """The rows of a stage, in the order they are trained on."""

    data_digest: str
    seq_len: int
    batch_size: int
    seed: int
    num_rows: Mapping[str, int]  # of each part that is drawn
    shares: Mapping[str, float]  # of the same parts, in the same order

    @functools.cached_property
    def _parts(self) -> list:
        """Endless shuffled row numbers of each part."""
        return [
            grain.MapDataset.range(count).shuffle(seed=_part_seed(self.seed, part)).repeat()
            for part, count in self.num_rows.items()
        ]

    @functools.cached_property
    def _interleave(self) -> interleave.Interleave:
        return interleave.Interleave(list(self.shares.values()))

    @functools.cached_property
    def _names(self) -> list[str]:
        return list(self.num_rows)

    def row(self, step: int, number: int) -> tuple[str, int]:
        """(part, row in it) of row `number` of a step."""
        part, rank = self._interleave[step * self.batch_size + number]
        return self._names[part], int(self._parts[part][rank])

    def batch_id(self, step: int) -> str:
        """A digest of the rows of a step: equal if and only if the rows are. No row is read for it."""
        rows = [self.row(step, number) for number in range(self.batch_size)]
        return dataset.digest([self.data_digest, self.seq_len, rows])[:16]

    def epochs(self, num_steps: int) -> dict[str, float]:
        """How often each part is seen in so many steps."""
        drawn = num_steps * self.batch_size
        return {part: self.shares[part] * drawn / count for part, count in self.num_rows.items()}

    def cursor(self, next_step: int) -> dict:
        """What a checkpoint remembers of the data: one number, and what gives it its meaning."""
        return {
            "next_step": next_step,
            "data": self.data_digest,
            "seq_len": self.seq_len,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "mixture": dataset.digest(dict(self.shares))[:16],
        }

    def check_cursor(self, cursor: Mapping, *, allow_data_change: bool = False) -> list[str]:
        """Compares a remembered cursor with this order; returns warnings, one for each change that is allowed.

        Raises: ValueError if something changed and `allow_data_change` is not set.
        """
        now = self.cursor(cursor["next_step"])
        changes = [
            f"{name} was {cursor.get(name)} and is {value}" for name, value in now.items() if cursor.get(name) != value
        ]
        if changes and not allow_data_change:
            raise ValueError(
                f"the data is not what the checkpoint was trained on: {'; '.join(changes)}; restore it, or go on with "
                "--allow_data_change from the same step of the new order"
            )
        return [f"the data changed: {change}" for change in changes]


def _part_seed(seed: int, part: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{part}".encode(), digest_size=4).digest())


def find(
    data: dataset.Dataset,
    *,
    seq_len: int,
    batch_size: int,
    seed: int,
    buckets: Mapping[str, settings.Bucket] | None = None,
) -> Order:
    """The order of a stage over a data set; `buckets` replaces the mixture it was prepared with.

    Raises: ValueError if the data set has no rows of that length, or the mixture names what is not in it.
    """
    if seq_len not in data.manifest["seq_lens"]:
        has = ", ".join(map(str, data.manifest["seq_lens"])) or "none"
        raise ValueError(
            f"{data.path} has no rows of {seq_len} tokens (it has: {has}); prepare it with {seq_len} in config.seq_lens"
        )
    parts = data.manifest["parts"]
    num_rows = {part: parts[part]["rows"][str(seq_len)] for part in sorted(parts)}
    characters = {part: parts[part]["characters"] for part in num_rows}
    shares = mixture.weights(characters, num_rows, data.mixture() if buckets is None else buckets)
    return Order(data.digest, seq_len, batch_size, seed, {part: num_rows[part] for part in shares}, shares)
