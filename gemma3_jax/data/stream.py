"""Batches of rows, on the mesh, a few steps ahead of who trains on them.

Every host reads the rows that its devices hold some of, and no others.
"""

import bisect
import dataclasses
import pathlib
import sys
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
from gemma3_jax.data import dataset, open_shards, order, pool, shards
from gemma3_jax.data.targets import reader as targets_reader
from gemma3_jax.distill import targets


class Rows(NamedTuple):
    """Packed rows of token ids; what a loss needs of them. Padding is segment 0, id 0."""

    tokens: Int[Array | np.ndarray, "B T"]
    labels: Int[Array | np.ndarray, "B T"]  # the token after, in the same document; 0 where there is none
    loss_mask: Bool[Array | np.ndarray, "B T"]  # whether the label is to be learned
    segments: Int[Array | np.ndarray, "B T"]  # 1, 2, ... in a row
    positions: Int[Array | np.ndarray, "B T"]  # from 0 in each document
    numbers: Int[Array | np.ndarray, "B T"]  # of the row in the stage, at each of its tokens


class DistillBatch(NamedTuple):
    """Rows, and what a teacher said of them before."""

    rows: Rows
    targets: targets.Targets


@dataclasses.dataclass(frozen=True)
class Batch:
    """The rows of a step, and their name."""

    step: int
    id: str
    rows: Rows | DistillBatch


def unpack(row: shards.Row, seq_len: int) -> dict[str, np.ndarray]:
    """The fields of `Rows` for one row, but for its number, [T], padded to its length."""
    num_tokens, num_pieces = len(row.tokens), len(row.lengths)
    starts = np.cumsum(row.lengths) - row.lengths
    fields = {name: np.zeros(seq_len, np.int32) for name in ("tokens", "labels", "segments", "positions")}
    fields["tokens"][:num_tokens] = row.tokens
    fields["segments"][:num_tokens] = np.repeat(np.arange(1, num_pieces + 1), row.lengths)
    fields["positions"][:num_tokens] = np.arange(num_tokens) - np.repeat(starts, row.lengths)
    has_target = np.zeros(seq_len, bool)
    has_target[:num_tokens] = True
    has_target[starts + row.lengths - 1] = False  # the last token of each piece
    [sources] = np.nonzero(has_target)
    fields["labels"][sources] = row.tokens[sources + 1]
    loss_mask = has_target.copy()
    if row.learned is not None:
        loss_mask[sources] = row.learned[sources + 1]
    return {**fields, "loss_mask": loss_mask}


class _HostBatches:
    """Random access to the rows that one host needs of each step: a source for Grain, sent to its worker processes."""

    def __init__(
        self,
        data: dataset.Dataset,
        rows: order.Order,
        numbers: Sequence[int],
        first: int,
        num_steps: int,
        taught: targets_reader.Taught | None = None,
    ):
        self._order, self._numbers, self._taught = rows, list(numbers), taught
        self._first, self._num_steps = first, num_steps
        kind, files = dataset.rows_kind(rows.seq_len), []
        self._first_shards, self._ends = {}, {}  # of each part
        for part in rows.num_rows:
            of_part = [(file["path"], file["records"]) for file in data.manifest["parts"][part]["files"][kind]]
            self._first_shards[part] = len(files)
            self._ends[part] = np.cumsum([count for _, count in of_part]).tolist()
            files += of_part
        self._shards = open_shards.OpenShards(data.path, files)

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, index: int) -> dict:
        step = self._first + int(index)
        rows, said = [], []
        for n in self._numbers:
            number = step * self._order.batch_size + n
            row = unpack(self._read(*self._order.row(step, n)), self._order.seq_len)
            rows.append(row | {"numbers": np.full(self._order.seq_len, number, np.int32)})
            if self._taught:
                said.append(self._taught.read(number, row))
        return {"id": self._order.batch_id(step), "rows": _stack(rows), "targets": _stack(said)}

    def _read(self, part: str, row: int) -> shards.Row:
        ends = self._ends[part]
        shard = bisect.bisect_right(ends, row)
        record = row - (ends[shard - 1] if shard else 0)
        return shards.Row.from_bytes(self._shards.read(self._first_shards[part] + shard, record))

    def check(self) -> None:
        """Raises: ValueError if a shard is missing or damaged."""
        self._shards.check()


def _stack(rows: list[dict]) -> dict:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}


class Stream:
    """Batches from a step on, as far as stored targets go; `step` is the one that comes next, and all to remember.

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
        taught: targets_reader.Taught | None = None,
    ):
        """`num_workers` processes read and unpack (0: threads of this one). Targets come beside the rows of `taught`.

        With `devices` the rows are those that these hold some of, as numpy arrays: what a host of theirs would read.
        Raises: ValueError if rows do not split over the mesh, a shard is missing or damaged, or targets end before.
        """
        if first_step < 0:
            raise ValueError(f"first_step is {first_step}; it must be >= 0")
        sharding.check_batch(mesh, rows.batch_size, rows.seq_len)
        self.step, self.seconds_waiting = first_step, 0.0
        self._order = rows
        numbers = sharding.rows_on(mesh.local_devices if devices is None else devices, mesh, rows.batch_size)
        end = targets_reader.num_rows // rows.batch_size if taught else sys.maxsize
        if first_step >= end:
            raise ValueError(
                f"first_step is {first_step}, but {taught.path} has targets of {end} steps; teach more rows"
            )
        source = _HostBatches(data, rows, numbers, first_step, end - first_step, taught)
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
            place = _Place(mesh, numbers, rows.batch_size)
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
        rows = Rows(**found["rows"])
        if found["targets"]:
            rows = DistillBatch(rows, targets.Targets(**found["targets"]))
        batch = Batch(self.step, found["id"], rows)
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

    def __init__(self, mesh: Mesh, numbers: Sequence[int], batch_size: int):
        self._sharding = sharding.batch_sharding(mesh)
        self._position = {number: position for position, number in enumerate(numbers)}
        self._rows_per_step = batch_size

    def __call__(self, local: dict) -> dict:
        arrays = {kind: local[kind] for kind in ("rows", "targets")}
        return {"id": local["id"], **jax.tree.map(self._global, arrays)}

    def _global(self, local: np.ndarray) -> jax.Array:
        shape = (self._rows_per_step, *local.shape[1:])

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            numbers = range(*index[0].indices(self._rows_per_step))
            first = self._position[numbers[0]]  # rows that are neighbours in a shard are neighbours here
            return local[first : first + len(numbers), index[1]]

        return jax.make_array_from_callback(shape, self._sharding, shard)


def open_stream(
    path: pathlib.Path | str,
    mesh: Mesh,
    *,
    seq_len: int,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    num_workers: int = 0,
) -> Stream:
    """The rows of a data set in its own mixture: `next(stream).rows`.

    Raises: ValueError as `dataset.open_dataset`, `Dataset.tokenizer`, `order.find` and `Stream` do.
    """
    data = dataset.open_dataset(pathlib.Path(path))
    data.tokenizer()
    rows = order.find(data, seq_len=seq_len, batch_size=batch_size, seed=seed)
    return Stream(data, rows, mesh, first_step=first_step, num_workers=num_workers)
