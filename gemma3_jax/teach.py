"""A teacher goes through the rows of a stage, and what it says of them is stored, to be learned from later."""

import contextlib
import pathlib
import time
import types
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemma3_jax import settings, sharding, stages
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.data import stream
from gemma3_jax.data.targets import codec
from gemma3_jax.data.targets import reader as targets_reader
from gemma3_jax.data.targets import writer as targets_writer
from gemma3_jax.distill import estimators
from gemma3_jax.distill import settings as distill_settings
from gemma3_jax.train import step, watchdog

Said = tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]  # the fields of a row, and its targets
NUM_ENCODERS = 4  # threads: half a second for a row of 32K tokens and 256 samples
MAX_ERROR_BYTES = 400  # that hosts tell each other


def execute(
    given: settings.Train,
    name: str,
    output: pathlib.Path,
    *,
    say: Callable[..., None],
    bar: Callable,
    watch: watchdog.Watchdog,
) -> dict:
    """Stores the targets of all rows of a stage in `output`, or of those that are missing there; says what it took.

    The first process alone speaks.
    Raises: ValueError if it cannot, or if something else is in `output`; OSError where the disk refuses.
    """
    watch.start("start_up")
    process = jax.process_index()
    if process != 0:
        say, bar = _nothing, _no_bar
    asked, mesh = given.stages[name], stages.stage_mesh(given, name)
    sharding.check_batch(mesh, asked.batch_size // asked.grad_accum_steps, asked.seq_len)
    _check_can_be_stored(asked.samples)
    data, tokenizer, rows = stages.open_rows(given, name)
    found = stages.open_teacher(given, name, tokenizer.digest, say)
    estimators.check(asked.samples, found.model.vocab_size)
    origin = targets_reader.made_of(
        rows,
        asked.samples,
        tokenizer=tokenizer.digest,
        vocab_size=found.model.vocab_size,
        teacher=found.fingerprint(),
        num_rows=asked.num_steps * asked.batch_size,
    )
    say(_announce(origin, codec.bytes_per_token(asked.samples)))
    with contextlib.ExitStack() as stack:
        with _together():
            writer = stack.enter_context(targets_writer.begun(output, origin, process=process, warn=say))
        units = _agreed(writer.units(asked.batch_size, jax.process_count()))
        work = sum(map(len, units)) * asked.seq_len
        if work < origin["num_rows"] * asked.seq_len:
            say(f"going on: {work:,} tokens are left")
        took = {}
        if units:
            batches = stack.enter_context(
                contextlib.closing(stages.Batches(data, rows, mesh, asked.num_steps, given.num_data_workers))
            )
            teacher = _Teacher(given, name, found, mesh, say)
            with jax.set_mesh(mesh), bar("teach", work, unit=" tokens") as progress:
                took = _teach(teacher, batches, units, writer, progress, watch)
        with _together():
            manifest = writer.complete({"teacher_path": str(found.path)}) if process == 0 else {}
    return {
        "rows": origin["num_rows"],
        "tokens": work,
        **took,
        "bytes": manifest.get("bytes", 0),
        "teacher": origin["teacher"],
    }


def _check_can_be_stored(samples: distill_settings.Samples) -> None:
    if samples.estimator == distill_settings.WHOLE:
        raise ValueError(
            "samples.estimator is whole, which is as many numbers a token as there are ids; to be stored, name one of "
            + ", ".join(distill_settings.ESTIMATORS)
        )


def _announce(origin: Mapping, bytes_per_token: int) -> str:
    tokens = origin["num_rows"] * origin["seq_len"]
    gib = tokens * bytes_per_token / 2**30
    return (
        f"{origin['num_rows']:,} rows of {origin['seq_len']:,} tokens, {origin['num_samples']} samples a token by "
        f"{origin['estimator']}: at most {bytes_per_token:,} bytes a token, {gib:,.2f} GiB in all"
    )


class _Teacher:
    """A teacher on its devices."""

    def __init__(self, given: settings.Train, name: str, found: checkpoint_open.Checkpoint, mesh: Mesh, say: Callable):
        say(f"reading teacher {found.path} ({found.kind}, {found.num_bytes() / 2**20:.1f} MiB)", *found.notes)
        self.asked = given.stages[name]
        self._params = found.load(mesh, given.execution.dtype)
        teach = _by_microbatches(stages.make_teacher(given, name, found.model), self.asked.grad_accum_steps)
        whole_rows = NamedSharding(mesh, PartitionSpec(sharding.ACTIVATION_AXES["B"]))
        self._jitted = jax.jit(lambda params, rows: (teach(params, rows), rows), out_shardings=whole_rows)

    def compile(self, rows: stream.Rows) -> dict:
        """Must come first; says what it takes."""
        started = time.monotonic()
        self._compiled = self._jitted.lower(self._params, rows).compile()
        parameters = jax.tree.leaves(self._params)
        return {
            "compile_seconds": round(time.monotonic() - started, 3),
            "teacher_parameter_bytes_per_device": sum(x.addressable_shards[0].data.nbytes for x in parameters),
            "temporary_bytes_per_device": self._compiled.memory_analysis().temp_size_in_bytes,
        }

    def __call__(self, rows: stream.Rows):
        """The targets of rows, and these: on their way, whole rows on each device."""
        return self._compiled(self._params, rows)


def _by_microbatches(teach: Callable, grad_accum_steps: int) -> Callable:
    """The same of the same rows, a part of them at a time; no row leaves the device it is on."""
    if grad_accum_steps == 1:
        return teach

    def join(x):
        return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])

    def by_parts(params, rows):
        parts = jax.tree.map(lambda x: step.split(x, grad_accum_steps), rows)
        return jax.tree.map(join, jax.lax.map(lambda part: teach(params, part), parts))

    return by_parts


def _teach(
    teacher: _Teacher, batches: Callable, units: list[range], writer, progress, watch: watchdog.Watchdog
) -> dict:
    """Writes unit after unit; says what it took, reading and compiling apart."""
    batch_size, seq_len = teacher.asked.batch_size, teacher.asked.seq_len
    steps = [number for unit in units for number in range(unit.start // batch_size, unit.stop // batch_size)]
    first = batches(steps[0]).rows
    watch.stop("start_up")
    with watch.phase("compile"):
        took = teacher.compile(first)
    started = time.monotonic()
    said = _of_steps(teacher, batches, first, steps)
    with futures.ThreadPoolExecutor(NUM_ENCODERS) as pool:
        for unit in units:
            records = {}
            for _ in range(len(unit) // batch_size):
                watch.start("step")
                for number, of_row in next(said).items():
                    records[number] = pool.submit(codec.encode, *of_row, teacher.asked.samples)
                progress.update(batch_size * seq_len)
            with _together():
                numbers = sorted(records)
                writer.write(numbers, [records[number].result() for number in numbers])
    watch.stop("step")
    seconds, num_tokens = time.monotonic() - started, len(steps) * batch_size * seq_len
    return {"seconds": round(seconds, 3), "tokens_per_second": round(num_tokens / seconds, 1), **took}


def _of_steps(
    teacher: _Teacher, batches: Callable[[int], stream.Batch], first: stream.Rows, steps: list[int]
) -> Iterator[dict[int, Said]]:
    """Of each step what this host is to write, by the number of the row; `first`: the rows of the first step.

    The devices are given a step before the one before it is fetched.
    """
    before = teacher(first)
    for number in steps[1:]:
        now = teacher(batches(number).rows)
        yield _rows_here(*before)
        before = now
    yield _rows_here(*before)


def _rows_here(targets, rows: stream.Rows) -> dict[int, Said]:
    """Each row of a batch is held by one host of those that have a copy of it."""
    of_rows, of_targets = (_pieces(tree._asdict()) for tree in (rows, targets))
    return {int(row["numbers"][0]): (row, said) for row, said in zip(of_rows, of_targets, strict=True)}


def _pieces(arrays: Mapping[str, jax.Array]) -> list[dict[str, np.ndarray]]:
    """Arrays [B, ...] as a dict for each row that this host is the one to write."""
    rows: dict[int, dict] = {}
    for name, array in arrays.items():
        for shard in array.addressable_shards:
            if shard.replica_id == 0:
                first = shard.index[0].indices(array.shape[0])[0]
                for number, row in enumerate(np.asarray(shard.data)):
                    rows.setdefault(first + number, {})[name] = row
    return [rows[number] for number in sorted(rows)]


def _agreed(units: list[range]) -> list[range]:
    """Those that the first process finds unfinished: others may see the shared disk a little later."""
    if jax.process_count() == 1:
        return units
    num_units = int(multihost_utils.broadcast_one_to_all(np.asarray(len(units))))
    bounds = np.resize([[unit.start, unit.stop] for unit in units] or [[0, 0]], (num_units, 2))
    return [range(*map(int, pair)) for pair in multihost_utils.broadcast_one_to_all(bounds)]


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """What is wrong on one host is raised on all, once all have come here: none waits for one that has ended."""
    problem = None
    try:
        yield
    except (ValueError, OSError) as error:
        problem = error
    if jax.process_count() > 1:
        text = str(problem or "").encode()[:MAX_ERROR_BYTES].ljust(MAX_ERROR_BYTES, b"\0")
        texts = multihost_utils.process_allgather(np.frombuffer(text, np.uint8))
        for process, text in enumerate(texts):
            if problem is None and text.any():
                problem = ValueError(f"process {process}: {text.tobytes().rstrip(bytes(1)).decode(errors='ignore')}")
    if problem:
        raise problem


def _nothing(*_) -> None: ...


def _no_bar(*_, **__) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext(types.SimpleNamespace(update=_nothing))
