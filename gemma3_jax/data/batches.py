"""The batches of a stage by the number of the step, and their shapes."""

import jax
import numpy as np
from jax.sharding import Mesh

from gemma3_jax import sharding
from gemma3_jax.data import dataset, order, stream
from gemma3_jax.data.targets import reader as targets_reader
from gemma3_jax.losses import soft_targets

BatchShapes = stream.Rows | stream.DistillBatch  # of ShapeDtypeStructs with shardings


def shapes(mesh: sharding.AnyMesh, batch_size: int, seq_len: int, *, num_samples: int | None = None) -> BatchShapes:
    """Returns the shapes, dtypes and shardings of a batch; with stored targets, if there are samples."""
    batch_sharding = sharding.batch_sharding(mesh)

    def array(dtype, *more: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, seq_len, *more), dtype, sharding=batch_sharding)

    ids = array(np.int32)
    rows = stream.Rows(ids, ids, array(np.bool_), ids, ids, ids)
    if num_samples is None:
        return rows
    floats = array(np.float32)
    return stream.DistillBatch(
        rows,
        soft_targets.SparseTargets(
            array(np.int32, num_samples), array(np.float32, num_samples), floats, floats, floats, ids
        ),
    )


class Batches:
    """(step, now) -> its batch. Reads ahead while steps come in order, up to the last one of the stage."""

    def __init__(
        self,
        data: dataset.Dataset,
        rows: order.Order,
        mesh: Mesh,
        num_steps: int,
        num_workers: int,
        stored_targets: targets_reader.StoredTargets | None = None,
    ):
        self._num_steps = num_steps
        self._open = lambda step: stream.Stream(
            data, rows, mesh, first_step=step, num_workers=num_workers, stored_targets=stored_targets
        )
        self._stream: stream.Stream | None = None

    def __call__(self, step: int, now: object = None) -> stream.StepBatch:
        """Returns the batch of a step; data does not depend on `now`, the state of the run."""
        if self._stream is None or self._stream.step != step:
            self.close()
            self._stream = self._open(step)
        batch = next(self._stream)
        if step + 1 == self._num_steps:
            self.close()
        return batch

    def close(self) -> None:
        """Stops reading ahead."""
        if self._stream is not None:
            self._stream.close()
