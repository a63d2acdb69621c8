"""The order of the rows: a pure function of the seed and the step, for any number of hosts and workers.

Each part is shuffled anew every epoch, by index, and the parts are interleaved by their fractions. A step has the rows
[step * batch_size, (step + 1) * batch_size) of that one sequence, so a checkpoint only remembers a number.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping

import grain

from gemma3_jax import renamed
from gemma3_jax.data import dataset, interleave, mixture, settings


@dataclasses.dataclass(frozen=True)
class Order:
    """The rows of a stage, in the order they are trained on."""

    data_digest: str
    seq_len: int
    batch_size: int
    seed: int
    num_rows: Mapping[str, int]  # of each part that is drawn
    fractions: Mapping[str, float]  # of the same parts, in the same order

    @functools.cached_property
    def _parts(self) -> list:
        """Endless shuffled row indices of each part."""
        return [
            grain.MapDataset.range(count).shuffle(seed=_part_seed(self.seed, part)).repeat()
            for part, count in self.num_rows.items()
        ]

    @functools.cached_property
    def _interleave(self) -> interleave.Interleave:
        return interleave.Interleave(list(self.fractions.values()))

    @functools.cached_property
    def _names(self) -> list[str]:
        return list(self.num_rows)

    def row(self, step: int, index: int) -> tuple[str, int]:
        """Returns (part, row in that part) of row `index` of a step."""
        part, rank = self._interleave[step * self.batch_size + index]
        return self._names[part], int(self._parts[part][rank])

    def batch_id(self, step: int) -> str:
        """Returns a digest of the rows of a step: equal if and only if the rows are. No row is read for it."""
        rows = [self.row(step, index) for index in range(self.batch_size)]
        return dataset.digest([self.data_digest, self.seq_len, rows])[:16]

    def epochs(self, num_steps: int) -> dict[str, float]:
        """Returns how often each part is seen in `num_steps` steps."""
        drawn = num_steps * self.batch_size
        return {part: self.fractions[part] * drawn / count for part, count in self.num_rows.items()}

    def cursor(self, next_step: int) -> dict:
        """Returns what a checkpoint remembers of the data: the next step, and what gives that number its meaning."""
        return {
            "next_step": next_step,
            "data": self.data_digest,
            "seq_len": self.seq_len,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "mixture": dataset.digest(dict(self.fractions))[:16],
        }

    def check_cursor(self, cursor: Mapping, *, allow_data_change: bool = False) -> list[str]:
        """Compares the cursor of a checkpoint with this order; returns a warning for each change that is allowed.

        Raises: ValueError if something changed and `allow_data_change` is not set.
        """
        old, new = renamed.current(cursor), self.cursor(cursor["next_step"])
        changes = [
            f"{name} was {old.get(name)} and is {value}" for name, value in new.items() if old.get(name) != value
        ]
        if changes and not allow_data_change:
            raise ValueError(
                f"the data is not what the checkpoint was trained on: {'; '.join(changes)}; restore it, or continue "
                "with --allow_data_change from the same step of the new order"
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
    """Returns the order of a stage over a data set; `buckets` replaces the mixture that it was prepared with.

    Raises: ValueError if the data set has no sequences of that length, or lacks something that the mixture names.
    """
    if seq_len not in data.manifest["seq_lens"]:
        lengths = ", ".join(map(str, data.manifest["seq_lens"])) or "none"
        raise ValueError(
            f"{data.path} has no sequences of {seq_len} tokens (it has: {lengths}); prepare it with {seq_len} in "
            "config.seq_lens"
        )
    parts = data.manifest["parts"]
    num_rows = {part: parts[part]["rows"][str(seq_len)] for part in sorted(parts)}
    characters = {part: parts[part]["characters"] for part in num_rows}
    fractions = mixture.weights(characters, num_rows, data.mixture() if buckets is None else buckets)
    return Order(data.digest, seq_len, batch_size, seed, {part: num_rows[part] for part in fractions}, fractions)
