"""Batches of rows, on the mesh, a few steps ahead of who trains on them.

Every host reads the rows that its devices hold some of, and no others.
"""

import bisect
import collections
import dataclasses
import pathlib
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from gemma3_jax import sharding
from gemma3_jax.data import dataset, order, pool, shards

MAX_OPEN_SHARDS = 256  # in a process: systems allow about a thousand files


class Rows(NamedTuple):
    """Packed rows of token ids; what a loss needs of them. Padding is segment 0, id 0."""

    tokens: Int[Array | np.ndarray, "B T"]
    targets: Int[Array | np.ndarray, "B T"]  # the token after, in the same document; 0 where there is none
    loss_mask: Bool[Array | np.ndarray, "B T"]  # whether the target is to be learned
    segments: Int[Array | np.ndarray, "B T"]  # 1, 2, ... in a row
    positions: Int[Array | np.ndarray, "B T"]  # from 0 in each document


@dataclasses.dataclass(frozen=True)
class Batch:
    """The rows of a step, and their name."""

    step: int
    id: str
    rows: Rows


def unpack(row: shards.Row, row_length: int) -> dict[str, np.ndarray]:
    """The fields of `Rows` for one row, [T], padded to its length."""
    num_tokens, num_pieces = len(row.tokens), len(row.lengths)
    starts = np.cumsum(row.lengths) - row.lengths
    fields = {name: np.zeros(row_length, np.int32) for name in ("tokens", "targets", "segments", "positions")}
    fields["tokens"][:num_tokens] = row.tokens
    fields["segments"][:num_tokens] = np.repeat(np.arange(1, num_pieces + 1), row.lengths)
    fields["positions"][:num_tokens] = np.arange(num_tokens) - np.repeat(starts, row.lengths)
    has_target = np.zeros(row_length, bool)
    has_target[:num_tokens] = True
    has_target[starts + row.lengths - 1] = False  # the last token of each piece
    [sources] = np.nonzero(has_target)
    fields["targets"][sources] = row.tokens[sources + 1]
    loss_mask = has_target.copy()
    if row.learned is not None:
        loss_mask[sources] = row.learned[sources + 1]
    return {**fields, "loss_mask": loss_mask}


class _HostBatches:
    """Random access to the rows that one host needs of each step: a source for Grain, sent to its worker processes."""

    def __init__(self, data: dataset.Dataset, rows: order.Order, numbers: Sequence[int], first: int, num_steps: int):
        self._path, self._order, self._numbers = data.path, rows, list(numbers)
        self._first, self._num_steps = first, num_steps
        kind = dataset.rows_kind(rows.row_length)
        self._files = {
            part: [(file["path"], file["records"]) for file in data.manifest["parts"][part]["files"][kind]]
            for part in rows.num_rows
        }
        self._ends = {part: np.cumsum([count for _, count in files]).tolist() for part, files in self._files.items()}
        self._open_nothing()

    def _open_nothing(self) -> None:
        self._readers: collections.OrderedDict[tuple[str, int], shards.Reader] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name not in ("_readers", "_lock")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._open_nothing()  # each process its own

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, index: int) -> dict:
        step = self._first + int(index)
        rows = [unpack(self._read(*self._order.row(step, n)), self._order.row_length) for n in self._numbers]
        stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return {"id": self._order.batch_id(step), "rows": stacked}

    def _read(self, part: str, row: int) -> shards.Row:
        shard = bisect.bisect_right(self._ends[part], row)
        path, count = self._files[part][shard]
        with self._lock:  # a reader is closed while nobody reads from it
            reader = self._readers.pop((part, shard), None) or shards.Reader(self._path / path, count)
            self._readers[part, shard] = reader
            if len(self._readers) > MAX_OPEN_SHARDS:
                self._readers.popitem(last=False)[1].close()
            content = reader[row - self._ends[part][shard] + count]
        return shards.Row.from_bytes(content)

    def check(self) -> None:
        """Opens every shard once, so that a missing or damaged one is found before a run starts.

        Raises: ValueError.
        """
        for files in self._files.values():
            for path, count in files:
                shards.Reader(self._path / path, count).close()


class Stream:
    """Batches from a step on, forever; `step` is the one that comes next, and all there is to remember.

    Its threads and processes end with `close`, with a `with` block, or with the program.
    """

    def __init__(
        self,
        data: dataset.Dataset,
        rows: order.Order,
        mesh: Mesh,
        *,
        first_step: int = 0,
        num_workers: int = 0,
        devices: Sequence | None = None,
    ):
        """`num_workers` processes read and unpack (0: threads of this one).

        With `devices` the rows are those that these hold some of, as numpy arrays: what a host of theirs would read.
        Raises: ValueError if rows do not split over the mesh, or a shard is missing or damaged.
        """
        if first_step < 0:
            raise ValueError(f"first_step is {first_step}; it must be >= 0")
        sharding.check_batch(mesh, rows.rows_per_step, rows.row_length)
        self.step, self.seconds_waiting = first_step, 0.0
        self._order = rows
        numbers = sharding.rows_on(mesh.local_devices if devices is None else devices, mesh, rows.rows_per_step)
        source = _HostBatches(data, rows, numbers, first_step, sys.maxsize - first_step)
        source.check()
        # Host memory is bounded by the batches named here: those read ahead, and two on their way to the devices.
        batches = grain.MapDataset.source(source).to_iter_dataset(
            grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        )
        if num_workers:
            pool.silence_tracker()
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain's workers ask absl for flags, which this program does not use
            options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
            batches = batches.mp_prefetch(options)
        if devices is None:
            place = _Place(mesh, numbers, rows.rows_per_step)
            batches = grain.experimental.ThreadPrefetchIterDataset(batches.map(place), prefetch_buffer_size=2)
        with pool.parent_answers():
            self._batches: list[Iterator] = [iter(batches)]
        # Grain's iterators cannot be collected any more when the interpreter has begun to take itself apart.
        self._finalize = weakref.finalize(self, _close, self._batches)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Batch:
        """The rows of step `self.step`, and one step on."""
        started = time.monotonic()
        if not self._batches:
            raise ValueError("this stream is closed; open another at the step where it was")
        with pool.parent_answers():  # Grain begins its processes with the first batch
            found = next(self._batches[0])
        self.seconds_waiting += time.monotonic() - started
        batch = Batch(self.step, found["id"], Rows(**found["rows"]))
        self.step += 1
        return batch

    def close(self) -> None:
        """Ends the threads and processes that read ahead."""
        self._finalize()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def _close(batches: list[Iterator]) -> None:
    while batches:
        batches.pop().close()


class _Place:
    """This host's rows of a batch -> arrays of the whole batch over the mesh."""

    def __init__(self, mesh: Mesh, numbers: Sequence[int], rows_per_step: int):
        self._sharding = sharding.batch_sharding(mesh)
        self._position = {number: position for position, number in enumerate(numbers)}
        self._rows_per_step = rows_per_step

    def __call__(self, local: dict) -> dict:
        return {"id": local["id"], "rows": {name: self._global(array) for name, array in local["rows"].items()}}

    def _global(self, local: np.ndarray) -> jax.Array:
        shape = (self._rows_per_step, local.shape[1])

        def shard(index: tuple[slice, slice]) -> np.ndarray:
            numbers = range(*index[0].indices(self._rows_per_step))
            first = self._position[numbers[0]]  # rows that are neighbours in a shard are neighbours here
            return local[first : first + len(numbers), index[1]]

        return jax.make_array_from_callback(shape, self._sharding, shard)


def open_stream(
    path: pathlib.Path | str,
    mesh: Mesh,
    *,
    row_length: int,
    rows_per_step: int,
    seed: int,
    first_step: int = 0,
    num_workers: int = 0,
) -> Stream:
    """The rows of a data set in its own mixture: `next(stream).rows`.

    Raises: ValueError as `dataset.open_dataset`, `Dataset.tokenizer`, `order.find` and `Stream` do.
    """
    data = dataset.open_dataset(pathlib.Path(path))
    data.tokenizer()
    rows = order.find(data, row_length=row_length, rows_per_step=rows_per_step, seed=seed)
    return Stream(data, rows, mesh, first_step=first_step, num_workers=num_workers)
