"""The stream of rows against a training step that eats them.

    python experiments/benchmarks/stream.py [--rows_per_step=4] [--steps=400]

Rows of 512 tokens of the Python standard library. One JSON line for the rows per second of the stream alone (threads,
and two worker processes), one for a gradient step of a toy Gemma 3 (6 layers, D 256, 4 query heads and 1 key head of
64, F 1,024, V 2,048, window 128, bfloat16, full remat) fed from memory, and one for the same step fed by the stream,
with its share of time waiting for data. Grows with the rows. About two minutes on two CPU cores; the stream gave
hundreds of times what the step eats.
"""

import argparse
import json
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp

from gemma3_jax import sharding
from gemma3_jax.data import builtin, dataset, order, prepare, settings, stream
from gemma3_jax.model import config, execution, masks, parameters

ROW_LENGTH = 512
TOY = config.Config(
    num_layers=6,
    width=256,
    mlp_width=1_024,
    num_heads=4,
    num_key_heads=1,
    head_width=64,
    window=128,
    query_scale=64**-0.5,
    rope_scale=1.0,
    vocab_size=2_048,
)


def make_data(directory: pathlib.Path, num_files: int | None) -> dataset.Dataset:
    texts = [row["text"] for file in builtin.files()[:num_files] for row in builtin.rows(file)]
    (directory / "library.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    made = settings.Prepare(
        sources={"library": settings.Source(paths=(str(directory / "library.jsonl"),))},
        row_lengths=(ROW_LENGTH,),
        duplicates=settings.Duplicates(near=False),
        tokenizer=settings.Tokenizer(size=TOY.vocab_size, max_characters=3_000_000),
    )
    prepare.run(made, str(directory / "data"))
    return dataset.open_dataset(directory / "data")


def make_step():
    execute = execution.Execution(dtype="bfloat16", remat="full")

    @jax.jit
    def step(params, rows: stream.Rows):
        def loss(params):
            model = parameters.bind(TOY, params)
            hidden = model(rows.tokens, masks.Places(rows.segments, rows.positions), execute=execute)
            scores = model.logits(hidden).astype(jnp.float32)
            picked = jnp.take_along_axis(scores, rows.targets[..., None], axis=-1)[..., 0]
            nats = jax.nn.logsumexp(scores, axis=-1) - picked
            return jnp.sum(nats * rows.loss_mask) / jnp.sum(rows.loss_mask)

        value, gradient = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient)

    return step


def stream_rate(data, rows: order.Order, mesh, num_steps: int, num_workers: int) -> float:
    batches = stream.Stream(data, rows, mesh, num_workers=num_workers)
    for _ in range(10):  # past the start of its threads and processes
        next(batches)
    started = time.perf_counter()
    for _ in range(num_steps):
        jax.block_until_ready(next(batches).rows.tokens)
    seconds = time.perf_counter() - started
    batches.close()
    return num_steps * rows.rows_per_step / seconds


def step_rate(step, params, batches, num_steps: int, rows_per_step: int) -> float:
    _, params = step(params, next(batches).rows)
    jax.block_until_ready(params)
    started = time.perf_counter()
    for _ in range(num_steps):
        _, params = step(params, next(batches).rows)
    jax.block_until_ready(params)
    return num_steps * rows_per_step / (time.perf_counter() - started)


def report(what: str, rows_per_second: float, **more) -> None:
    line = {"benchmark": "stream", "what": what, "rows_per_second": round(rows_per_second, 1)}
    line |= {"tokens_per_second": round(rows_per_second * ROW_LENGTH), **more}
    print(json.dumps(line | {"device": jax.devices()[0].device_kind, "jax": jax.__version__}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows_per_step", type=int, default=4)
    parser.add_argument("--steps", type=int, default=400, help="of the stream; the training step does a twentieth")
    parser.add_argument("--library_files", type=int, help="make the rows of so many modules only")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        data = make_data(pathlib.Path(name), flags.library_files)
        mesh = sharding.make_mesh()
        rows = order.find(data, row_length=ROW_LENGTH, rows_per_step=flags.rows_per_step, seed=0)
        alone = stream_rate(data, rows, mesh, flags.steps, num_workers=0)
        report("stream, threads", alone)
        report("stream, two worker processes", stream_rate(data, rows, mesh, flags.steps, num_workers=2))
        step, params = make_step(), parameters.init(TOY, jax.random.key(0), mesh)
        num_steps = max(1, flags.steps // 20)
        batches = stream.Stream(data, rows, mesh)
        in_memory = [next(batches) for _ in range(num_steps + 1)]
        bare = step_rate(step, params, iter(in_memory), num_steps, rows.rows_per_step)
        report("step, rows in memory", bare, stream_is_faster_by=round(alone / bare, 1))
        started, batches.seconds_waiting = time.perf_counter(), 0.0
        fed = step_rate(step, params, batches, num_steps, rows.rows_per_step)
        share = batches.seconds_waiting / (time.perf_counter() - started)
        report("step, fed by the stream", fed, share_waiting=round(share, 4))
        batches.close()


if __name__ == "__main__":
    main()
