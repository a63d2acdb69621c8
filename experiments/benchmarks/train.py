"""Training speed of a fixed toy: of the step in a bare loop, and of `train` as a whole.

    python experiments/benchmarks/train.py [--devices=1] [--steps=20] [--rounds=3]

Prints one JSON line for each, with tokens per second, seconds per step (of the fastest round) and peak memory. The
second line also has the overhead of `train`: data, metrics (of every step, in metrics.jsonl and TensorBoard), watchdog
and time accounting. The rounds of the two alternate. The toy and MaxText's speed on it are in toy.py. Time grows with
tokens and parameters; about three minutes on two CPU cores.
"""

import argparse
import json
import os
import pathlib
import resource
import tempfile
import time


def bare_round(compiled, state, hyperparameters, batches) -> tuple:
    """The state after the steps, and seconds per step."""
    import jax

    started = time.perf_counter()
    for batch in batches:
        state, metrics = compiled(state, {}, hyperparameters, batch.rows)
    jax.block_until_ready((state, metrics))
    return state, (time.perf_counter() - started) / len(batches)


def full_round(config, workdir: pathlib.Path) -> float:
    """Seconds per step of a new run, from its metrics, without the first two steps."""
    from gemma3_jax import console, run

    run.execute(config, run.RunOptions(workdir=workdir, started=time.monotonic()), console.SILENT)
    times = [json.loads(line)["time"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return (times[-1] - times[1]) / (len(times) - 2)


def report(what: str, seconds: float, tokens_per_step: int, **more) -> None:
    import jax

    line = {"benchmark": "train", "what": what, "devices": jax.device_count(), "step_seconds": round(seconds, 4)}
    line |= {"tokens_per_second": round(tokens_per_step / seconds)}
    line |= {"peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, **more}
    print(json.dumps(line | {"device": jax.devices()[0].device_kind, "jax": jax.__version__}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1, help="virtual ones, where there is no accelerator")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--library_files", type=int, help="make the data from this many modules only")
    flags = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={flags.devices}"

    import jax
    import toy

    from gemma3_jax import settings
    from gemma3_jax.stages import build, trained

    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        jax.config.update("jax_compilation_cache_dir", str(directory / "cache"))  # all rounds run one program
        run_config = toy.recipe(
            toy.make_data(directory, flags.library_files),
            flags.batch_size,
            flags.steps + 2,
            num_devices=flags.devices,
        )
        [name] = run_config.stage_order
        config = settings.resolve(run_config, name)
        program = build.build([config], directory)[0].program
        batches = [program.stage.next_batch(step, None) for step in range(flags.steps)]
        state = program.begin(trained.fresh(config, program.mesh))
        with jax.set_mesh(program.mesh):
            hyperparameters = program.place_hyperparameters()
            compiled = program.jitted().lower(state, {}, hyperparameters, batches[0].rows).compile()
        state, _ = bare_round(compiled, state, hyperparameters, batches[:2])
        bare, full = [], []
        for number in range(flags.rounds):
            state, seconds = bare_round(compiled, state, hyperparameters, batches)
            bare.append(seconds)
            full.append(full_round(run_config, directory / f"run{number}"))
        report("step in a bare loop", min(bare), program.tokens_per_step)
        report("train", min(full), program.tokens_per_step, overhead=round(min(full) / min(bare) - 1, 4))


if __name__ == "__main__":
    main()
