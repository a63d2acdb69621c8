"""Stores a teacher's targets for all rows of a stage, so that students can be trained without it."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemma3_jax import console, hosts, settings, sharding
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.data import batches, stream
from gemma3_jax.data.targets import codec
from gemma3_jax.data.targets import reader as targets_reader
from gemma3_jax.data.targets import writer as targets_writer
from gemma3_jax.distill import estimators
from gemma3_jax.distill import settings as distill_settings
from gemma3_jax.distill import teacher as distill_teacher
from gemma3_jax.stages import inputs
from gemma3_jax.stages import mesh as stage_mesh
from gemma3_jax.train import step, watchdog

RowTargets = tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]  # the fields of a row, and of its targets
NUM_ENCODERS = 4  # threads: encoding a row of 32K tokens and 256 samples takes half a second


def execute(
    config: settings.StageConfig, output: pathlib.Path, *, out: console.Console, hang_watchdog: watchdog.Watchdog
) -> dict:
    """Stores the targets of all rows of a stage in `output`, or of those that are missing there. Returns what it took.

    Raises: ValueError if it cannot, or if something else is in `output`; OSError where the disk refuses.
    """
    hang_watchdog.start("start_up")
    process = jax.process_index()
    if process != 0:
        out = console.SILENT
    mesh = stage_mesh.make(config)
    sharding.check_batch(mesh, config.batch_size // config.grad_accum_steps, config.seq_len)
    _check_can_be_stored(config.samples)
    data = inputs.open_data(config)
    checkpoint = inputs.open_teacher(config, data.tokenizer.digest, out.say)
    estimators.check(config.samples, checkpoint.model.vocab_size)
    origin = targets_reader.made_of(
        data.rows,
        config.samples,
        tokenizer=data.tokenizer.digest,
        vocab_size=checkpoint.model.vocab_size,
        teacher=checkpoint.fingerprint(),
        num_rows=config.num_steps * config.batch_size,
    )
    out.say(_describe(origin, codec.bytes_per_token(config.samples)))
    with contextlib.ExitStack() as stack:
        with hosts.raise_on_all():
            writer = stack.enter_context(targets_writer.resume(output, origin, process=process, warn=out.say))
        units = _same_on_all(writer.units(config.batch_size, jax.process_count()))
        num_tokens = sum(map(len, units)) * config.seq_len
        if num_tokens < origin["num_rows"] * config.seq_len:
            out.say(f"resuming: {num_tokens:,} tokens are left")
        timings = {}
        if units:
            next_batch = batches.Batches(data.dataset, data.rows, mesh, config.num_steps, config.num_data_workers)
            stack.enter_context(contextlib.closing(next_batch))
            teacher = _Teacher(config, checkpoint, mesh, out.say)
            with jax.set_mesh(mesh), out.bar("teach", num_tokens, unit=" tokens") as progress:
                timings = _teach(teacher, next_batch, units, writer, progress, hang_watchdog)
        with hosts.raise_on_all():
            manifest = writer.complete({"teacher_path": str(checkpoint.path)}) if process == 0 else {}
    return {
        "rows": origin["num_rows"],
        "tokens": num_tokens,
        **timings,
        "bytes": manifest.get("bytes", 0),
        "teacher": origin["teacher"],
    }


def _check_can_be_stored(samples: distill_settings.Samples) -> None:
    if samples.estimator == distill_settings.WHOLE:
        raise ValueError(
            "samples.estimator is whole, which is as many numbers a token as there are ids; to be stored, name one of "
            + ", ".join(distill_settings.ESTIMATORS)
        )


def _describe(origin: Mapping, bytes_per_token: int) -> str:
    num_tokens = origin["num_rows"] * origin["seq_len"]
    gib = num_tokens * bytes_per_token / 2**30
    return (
        f"{origin['num_rows']:,} sequences of {origin['seq_len']:,} tokens, {origin['num_samples']} samples a token by "
        f"{origin['estimator']}: at most {bytes_per_token:,} bytes a token, {gib:,.2f} GiB in all"
    )


class _Teacher:
    """A teacher on its devices."""

    def __init__(self, config: settings.StageConfig, checkpoint: checkpoint_open.Checkpoint, mesh: Mesh, say: Callable):
        mib = checkpoint.num_bytes() / 2**20
        say(f"reading teacher {checkpoint.path} ({checkpoint.kind}, {mib:.1f} MiB)", *checkpoint.notes)
        self.config = config
        self._params = checkpoint.load(mesh, config.execution.dtype)
        targets_of = distill_teacher.make(checkpoint.model, config.execution, samples=config.samples)
        teach = _in_parts(targets_of, config.grad_accum_steps)
        self._seed = jax.device_put(np.uint32(config.seed), NamedSharding(mesh, PartitionSpec()))
        whole_rows = NamedSharding(mesh, PartitionSpec(sharding.ACTIVATION_AXES["B"]))
        self._jitted = jax.jit(
            lambda params, rows, seed: (teach(params, rows, seed), rows),
            out_shardings=whole_rows,
            compiler_options=stage_mesh.compiler_options(mesh),
        )

    def compile(self, rows: stream.Rows) -> dict:
        """Compiles for batches like `rows`, before the first call. Returns what it took."""
        started = time.monotonic()
        self._compiled = self._jitted.lower(self._params, rows, self._seed).compile()
        parameters = jax.tree.leaves(self._params)
        return {
            "compile_seconds": round(time.monotonic() - started, 3),
            "teacher_parameter_bytes_per_device": sum(x.addressable_shards[0].data.nbytes for x in parameters),
            "temporary_bytes_per_device": self._compiled.memory_analysis().temp_size_in_bytes,
        }

    def __call__(self, rows: stream.Rows):
        """Returns the targets of rows, and the rows, both dispatched and with whole rows on each device."""
        return self._compiled(self._params, rows, self._seed)


def _in_parts(targets_of: Callable, num_parts: int) -> Callable:
    """Computes the same targets for a part of the rows at a time; no row leaves its device."""
    if num_parts == 1:
        return targets_of

    def join(x):
        return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])

    def by_parts(params, rows, seed):
        parts = jax.tree.map(lambda x: step.split(x, num_parts), rows)
        return jax.tree.map(join, jax.lax.map(lambda part: targets_of(params, part, seed), parts))

    return by_parts


def _teach(
    teacher: _Teacher, next_batch: Callable, units: list[range], writer, progress, hang_watchdog: watchdog.Watchdog
) -> dict:
    """Writes unit after unit. Returns what it took, compilation apart."""
    batch_size, seq_len = teacher.config.batch_size, teacher.config.seq_len
    steps = [number for unit in units for number in range(unit.start // batch_size, unit.stop // batch_size)]
    first = next_batch(steps[0]).rows
    hang_watchdog.stop("start_up")
    with hang_watchdog.phase("compile"):
        timings = teacher.compile(first)
    started = time.monotonic()
    targets = _targets_of_steps(teacher, next_batch, first, steps)
    with futures.ThreadPoolExecutor(NUM_ENCODERS) as pool:
        for unit in units:
            records = {}
            for _ in range(len(unit) // batch_size):
                hang_watchdog.start("step")
                for row_id, row_targets in next(targets).items():
                    records[row_id] = pool.submit(codec.encode, *row_targets, teacher.config.samples)
                progress.update(batch_size * seq_len)
            with hosts.raise_on_all():
                row_ids = sorted(records)
                writer.write(row_ids, [records[row_id].result() for row_id in row_ids])
    hang_watchdog.stop("step")
    seconds, num_tokens = time.monotonic() - started, len(steps) * batch_size * seq_len
    return {"seconds": round(seconds, 3), "tokens_per_second": round(num_tokens / seconds, 1), **timings}


def _targets_of_steps(
    teacher: _Teacher, next_batch: Callable[[int], stream.StepBatch], first: stream.Rows, steps: list[int]
) -> Iterator[dict[int, RowTargets]]:
    """Yields for each step what this host writes, by row id. `first`: the rows of the first step.

    The devices get a step before the results of the last one are fetched.
    """
    previous = teacher(first)
    for number in steps[1:]:
        current = teacher(next_batch(number).rows)
        yield _rows_of_host(*previous)
        previous = current
    yield _rows_of_host(*previous)


def _rows_of_host(targets, rows: stream.Rows) -> dict[int, RowTargets]:
    """Returns the rows and targets that this host writes: of several copies of a row, one host has the first."""
    rows, targets = (_by_row(tree._asdict()) for tree in (rows, targets))
    return {int(row["row_ids"][0]): (row, of_row) for row, of_row in zip(rows, targets, strict=True)}


def _by_row(arrays: Mapping[str, jax.Array]) -> list[dict[str, np.ndarray]]:
    """Splits arrays [B, ...] into a dict for each row that this host writes."""
    rows: dict[int, dict] = {}
    for name, array in arrays.items():
        for shard in array.addressable_shards:
            if shard.replica_id == 0:
                first = shard.index[0].indices(array.shape[0])[0]
                for number, row in enumerate(np.asarray(shard.data)):
                    rows.setdefault(first + number, {})[name] = row
    return [rows[number] for number in sorted(rows)]


def _same_on_all(units: list[range]) -> list[range]:
    """Returns the first process's units: others may see the shared disk a little later."""
    if jax.process_count() == 1:
        return units
    num_units = int(hosts.of_first_host(np.asarray(len(units))))
    bounds = np.resize([[unit.start, unit.stop] for unit in units] or [[0, 0]], (num_units, 2))
    return [range(*map(int, pair)) for pair in hosts.of_first_host(bounds)]
