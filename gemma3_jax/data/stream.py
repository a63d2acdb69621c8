"""Batches of rows on the mesh, read a few steps ahead of training.

Every host reads the rows that its devices hold a part of, and no others.
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
from gemma3_jax.losses import soft_targets


class Rows(NamedTuple):
    """Packed rows of token ids, as a loss takes them. Padding has segment 0 and id 0."""

    tokens: Int[Array | np.ndarray, "B T"]
    labels: Int[Array | np.ndarray, "B T"]  # the next token of the same document; 0 where there is none
    loss_mask: Bool[Array | np.ndarray, "B T"]  # whether the label counts in the loss
    segments: Int[Array | np.ndarray, "B T"]  # 1, 2, ... in each row
    positions: Int[Array | np.ndarray, "B T"]  # from 0 in each document
    row_ids: Int[Array | np.ndarray, "B T"]  # index of the row in the stage, at each of its tokens


class DistillBatch(NamedTuple):
    """Rows with the teacher targets that are stored for them."""

    rows: Rows
    targets: soft_targets.SparseTargets


@dataclasses.dataclass(frozen=True)
class StepBatch:
    """The rows of a step, and the id of that batch."""

    step: int
    id: str
    rows: Rows | DistillBatch


def unpack(row: shards.PackedRow, seq_len: int) -> dict[str, np.ndarray]:
    """Returns the fields of `Rows` for one row, without its id: [T], padded to `seq_len`."""
    num_tokens, num_spans = len(row.tokens), len(row.lengths)
    starts = np.cumsum(row.lengths) - row.lengths
    fields = {name: np.zeros(seq_len, np.int32) for name in ("tokens", "labels", "segments", "positions")}
    fields["tokens"][:num_tokens] = row.tokens
    fields["segments"][:num_tokens] = np.repeat(np.arange(1, num_spans + 1), row.lengths)
    fields["positions"][:num_tokens] = np.arange(num_tokens) - np.repeat(starts, row.lengths)
    has_label = np.zeros(seq_len, bool)
    has_label[:num_tokens] = True
    has_label[starts + row.lengths - 1] = False  # the last token of each span
    [sources] = np.nonzero(has_label)
    fields["labels"][sources] = row.tokens[sources + 1]
    loss_mask = has_label.copy()
    if row.loss_mask is not None:
        loss_mask[sources] = row.loss_mask[sources + 1]
    return {**fields, "loss_mask": loss_mask}


class HostBatches:
    """Random access to the rows of each step that one host needs: a Grain source, pickled for its worker processes."""

    def __init__(
        self,
        data: dataset.Dataset,
        rows: order.Order,
        indices: Sequence[int],
        first: int,
        num_steps: int,
        stored_targets: targets_reader.StoredTargets | None = None,
    ):
        self._order, self._indices, self._stored_targets = rows, list(indices), stored_targets
        self._first, self._num_steps = first, num_steps
        kind, files = dataset.rows_kind(rows.seq_len), []
        self._first_shards, self._ends = {}, {}  # of each part
        for part in rows.num_rows:
            of_part = [(file["path"], file["records"]) for file in data.manifest["parts"][part]["files"][kind]]
            self._first_shards[part] = len(files)
            self._ends[part] = np.cumsum([count for _, count in of_part]).tolist()
            files += of_part
        self._shards = open_shards.OpenShards(data.path, files)
        self._num_ids = data.num_ids

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, item: int) -> dict:
        step = self._first + int(item)
        rows, row_targets = [], []
        for index in self._indices:
            row_id = step * self._order.batch_size + index
            row = unpack(self._read(*self._order.row(step, index)), self._order.seq_len)
            rows.append(row | {"row_ids": np.full(self._order.seq_len, row_id, np.int32)})
            if self._stored_targets:
                row_targets.append(self._stored_targets.read(row_id, row))
        return {"id": self._order.batch_id(step), "rows": _stack(rows), "targets": _stack(row_targets)}

    def _read(self, part: str, row: int) -> shards.PackedRow:
        ends = self._ends[part]
        shard = bisect.bisect_right(ends, row)
        record = row - (ends[shard - 1] if shard else 0)
        content = self._shards.read(self._first_shards[part] + shard, record)
        try:
            packed = shards.PackedRow.from_bytes(content)
            packed.check(self._order.seq_len, self._num_ids)
        except ValueError as error:
            path = self._shards.path(self._first_shards[part] + shard)
            raise ValueError(f"{path} is damaged at record {record}: {error}; prepare the data again") from error
        return packed

    def check(self) -> None:
        """Raises: ValueError if a shard is missing or damaged."""
        self._shards.check()


def _stack(rows: list[dict]) -> dict:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}


class Stream:
    """Batches from a step on; `step` is the next one, and all the state there is. It ends where stored targets end.

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
        stored_targets: targets_reader.StoredTargets | None = None,
    ):
        """`num_workers` processes read and unpack rows (0: threads of this process); `stored_targets` come with them.

        With `devices`, batches are numpy arrays of the rows that these devices hold a part of: what their host reads.
        Raises: ValueError if rows do not split over the mesh, a shard is missing or damaged, or the targets end before
        `first_step`.
        """
        if first_step < 0:
            raise ValueError(f"first_step is {first_step}; it must be >= 0")
        sharding.check_batch(mesh, rows.batch_size, rows.seq_len)
        self.step, self.seconds_waiting = first_step, 0.0
        self._order = rows
        indices = sharding.rows_on(mesh.local_devices if devices is None else devices, mesh, rows.batch_size)
        end = stored_targets.num_rows // rows.batch_size if stored_targets else sys.maxsize
        if first_step >= end:
            raise ValueError(
                f"first_step is {first_step}, but {stored_targets.path} has targets of {end} steps; teach more "
                "sequences"
            )
        source = HostBatches(data, rows, indices, first_step, end - first_step, stored_targets)
        source.check()
        # These buffers bound host memory: the batches read ahead, and two on their way to the devices.
        batches = grain.MapDataset.source(source).to_iter_dataset(
            grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        )
        if num_workers:
            pool.silence_tracker()
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which this program does not use
            options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
            batches = batches.mp_prefetch(options)
        if devices is None:
            to_devices = _ToGlobalArrays(mesh, indices, rows.batch_size)
            batches = grain.experimental.ThreadPrefetchIterDataset(batches.map(to_devices), prefetch_buffer_size=2)
        with pool.parent_answers():
            self._batches: list[Iterator] = [iter(batches)]
        # Grain's iterators cannot be collected once the interpreter is shutting down.
        self._finalize = weakref.finalize(self, _close, self._batches)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> StepBatch:
        """Returns the batch of step `self.step`, and advances by one step."""
        started = time.monotonic()
        if not self._batches:
            raise ValueError("this stream is closed; open another at the step where it was")
        with pool.parent_answers():  # Grain starts its processes with the first batch
            fields = next(self._batches[0])
        self.seconds_waiting += time.monotonic() - started
        rows = Rows(**fields["rows"])
        if fields["targets"]:
            rows = DistillBatch(rows, soft_targets.SparseTargets(**fields["targets"]))
        batch = StepBatch(self.step, fields["id"], rows)
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


class _ToGlobalArrays:
    """Turns this host's rows of a batch into arrays of the whole batch, sharded over the mesh."""

    def __init__(self, mesh: Mesh, indices: Sequence[int], batch_size: int):
        self._sharding = sharding.batch_sharding(mesh)
        self._local_index = {index: local_index for local_index, index in enumerate(indices)}
        self._batch_size = batch_size

    def __call__(self, local: dict) -> dict:
        arrays = {kind: local[kind] for kind in ("rows", "targets")}
        return {"id": local["id"], **jax.tree.map(self._global, arrays)}

    def _global(self, local: np.ndarray) -> jax.Array:
        shape = (self._batch_size, *local.shape[1:])

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            rows = range(*index[0].indices(self._batch_size))
            first = self._local_index[rows[0]]  # rows that are neighbors in a shard are neighbors here
            return local[first : first + len(rows), index[1]]

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
    """Opens the rows of a data set in the mixture it was prepared with: `next(stream).rows`.

    Raises: ValueError as `dataset.open_dataset`, `Dataset.tokenizer`, `order.find` and `Stream` do.
    """
    data = dataset.open_dataset(pathlib.Path(path))
    data.tokenizer()
    rows = order.find(data, seq_len=seq_len, batch_size=batch_size, seed=seed)
    return Stream(data, rows, mesh, first_step=first_step, num_workers=num_workers)
