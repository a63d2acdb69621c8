"""Speed of the data stream, against a training step that consumes it.

    python experiments/benchmarks/stream.py [--batch_size=4] [--steps=400]

Rows of 512 tokens of the Python standard library. Prints JSON lines with rows per second: one for the stream alone with
threads, one with two worker processes, one for a training step of the toy model (toy.py) on rows in memory, and one for
the same step on the stream, with the fraction of time that it waits for data. Time grows with the number of rows; about
two minutes on two CPU cores. The stream was hundreds of times faster than the step.
"""

import argparse
import json
import pathlib
import tempfile
import time

import jax
import toy

from gemma3_jax import settings, sharding
from gemma3_jax.data import order, stream
from gemma3_jax.stages import build, trained


def make_step(run_config, directory: pathlib.Path):
    """The training step, as `train` has it, and an initial state."""
    [name] = run_config.stage_order
    config = settings.resolve(run_config, name)
    program = build.build([config], directory)[0].program
    state = program.begin(trained.fresh(config, program.mesh))

    jitted, hyperparameters = program.jitted(), program.place_hyperparameters()

    def step(state, rows):
        with jax.set_mesh(program.mesh):
            return jitted(state, {}, hyperparameters, rows)

    return step, state


def stream_rate(data, rows: order.Order, mesh, num_steps: int, num_workers: int) -> float:
    batches = stream.Stream(data, rows, mesh, num_workers=num_workers)
    for _ in range(10):  # its threads and processes have started by then
        next(batches)
    started = time.perf_counter()
    for _ in range(num_steps):
        jax.block_until_ready(next(batches).rows.tokens)
    seconds = time.perf_counter() - started
    batches.close()
    return num_steps * rows.batch_size / seconds


def step_rate(step, state, batches, num_steps: int, batch_size: int) -> float:
    state, _ = step(state, next(batches).rows)
    jax.block_until_ready(state)
    started = time.perf_counter()
    for _ in range(num_steps):
        state, _ = step(state, next(batches).rows)
    jax.block_until_ready(state)
    return num_steps * batch_size / (time.perf_counter() - started)


def report(what: str, rows_per_second: float, **more) -> None:
    line = {"benchmark": "stream", "what": what, "rows_per_second": round(rows_per_second, 1)}
    line |= {"tokens_per_second": round(rows_per_second * toy.SEQ_LEN), **more}
    print(json.dumps(line | {"device": jax.devices()[0].device_kind, "jax": jax.__version__}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=400, help="batches of the stream; training takes a twentieth")
    parser.add_argument("--library_files", type=int, help="make the data from this many modules only")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        data = toy.make_data(directory, flags.library_files)
        mesh = sharding.make_mesh()
        rows = order.find(data, seq_len=toy.SEQ_LEN, batch_size=flags.batch_size, seed=0)
        stream_alone = stream_rate(data, rows, mesh, flags.steps, num_workers=0)
        report("stream, threads", stream_alone)
        report("stream, two worker processes", stream_rate(data, rows, mesh, flags.steps, num_workers=2))
        num_steps = max(1, flags.steps // 20)
        run_config = toy.recipe(data, rows.batch_size, 2 * num_steps)
        step, state = make_step(run_config, directory)
        batches = stream.Stream(data, rows, mesh)
        in_memory = [next(batches) for _ in range(num_steps + 1)]
        from_memory = step_rate(step, state, iter(in_memory), num_steps, rows.batch_size)
        report("step, rows in memory", from_memory, stream_is_faster_by=round(stream_alone / from_memory, 1))
        _, state = make_step(run_config, directory)  # the step donated the first state
        started, batches.seconds_waiting = time.perf_counter(), 0.0
        from_stream = step_rate(step, state, batches, num_steps, rows.batch_size)
        waiting_fraction = batches.seconds_waiting / (time.perf_counter() - started)
        report("step, rows from the stream", from_stream, waiting_fraction=round(waiting_fraction, 4))
        batches.close()


if __name__ == "__main__":
    main()
