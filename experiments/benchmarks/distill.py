"""What distillation costs: a step of the demo's student from the next token, from targets at hand, from its teacher.

    python experiments/benchmarks/distill.py [--devices=1] [--num_samples=256] [--steps=10] [--rounds=3]

One JSON line for each kind of step, and one for the teacher by itself: seconds (of the fastest round), its ratio to the
next token's, the compiler's temporary bytes on a device and those of the teacher's parameters. Rounds alternate. The
cost of targets at hand grows with tokens times M, that of the teacher with its parameters.
"""

import argparse
import json
import os
import pathlib
import sys
import time

EXPERIMENTS = pathlib.Path(__file__).parents[1]


def make_leg(fields: dict, teacher_model, flags):
    """The step of one kind, compiled, and what it is called with."""
    import jax
    import numpy as np

    from gemma3_jax import settings, sharding, stages
    from gemma3_jax.cli import configs
    from gemma3_jax.model import parameters

    config = f"{EXPERIMENTS / 'demo.py'}"
    overrides = [f"--config.stages.pretrain.{name}={value}" for name, value in fields.items()]
    given = configs.load(config, overrides, settings.Train)
    mesh = sharding.make_mesh(data=flags.devices)
    num_bytes = np.zeros(given.model.vocab_size, np.int32)
    leg = stages.abstract_leg(given, "pretrain", mesh, num_bytes, teacher_model=teacher_model)
    frozen = {}
    if teacher_model:
        frozen = jax.tree.map(
            lambda x, shape: x.astype(shape.dtype),
            parameters.init(teacher_model, jax.random.key(1), mesh),
            leg.frozen.shapes,
        )
    return given, leg, frozen


def make_rows(given, mesh):
    """Random rows: what is in them costs nothing more or less."""
    import jax
    import numpy as np

    from gemma3_jax import sharding
    from gemma3_jax.data import stream

    asked = given.stages["pretrain"]
    shape = (asked.rows_per_step, asked.row_length)
    ids = np.random.default_rng(0).integers(1, given.model.vocab_size, (2, *shape)).astype(np.int32)
    places = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    numbers = np.broadcast_to(np.arange(shape[0], dtype=np.int32)[:, None], shape)
    rows = stream.Rows(*ids, np.ones(shape, bool), np.ones(shape, np.int32), places, numbers)
    return jax.device_put(rows, sharding.batch_sharding(mesh))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1, help="virtual ones, where there is no accelerator")
    parser.add_argument("--num_samples", type=int, default=256)
    parser.add_argument("--estimator", default="stratified")
    parser.add_argument("--rows_per_step", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={flags.devices}"
    sys.path.insert(0, str(EXPERIMENTS))

    import demo
    import jax

    from gemma3_jax import stages
    from gemma3_jax.data import stream
    from gemma3_jax.model import config, parameters

    teacher_model = config.Config(**demo.TEACHER)
    every = {"rows_per_step": flags.rows_per_step, "samples.num_samples": flags.num_samples}
    every["samples.estimator"] = flags.estimator
    kinds = {
        "next token": make_leg({**every, "loss": "next_token"}, None, flags),
        "targets at hand": make_leg(every, None, flags),
        "teacher beside": make_leg(every, teacher_model, flags),
    }
    given, leg, teacher_params = kinds["teacher beside"]
    rows = make_rows(given, leg.mesh)
    compiled, states, batches, times = {}, {}, {}, {name: [] for name in (*kinds, "teacher alone")}
    with jax.set_mesh(leg.mesh):
        teach = jax.jit(stages.make_teacher(given, "pretrain", teacher_model)).lower(teacher_params, rows).compile()
        compiled["teacher alone"] = teach
        targets = jax.device_put(teach(teacher_params, rows), leg.row_places)
        for name, (_, made, frozen) in kinds.items():
            batches[name] = stream.TaughtRows(rows, targets) if name == "targets at hand" else rows
            states[name] = made.begin(parameters.init(given.model, jax.random.key(0), made.mesh))
            compiled[name] = made.jitted().lower(states[name], frozen, batches[name]).compile()
        for number in range(flags.rounds + 1):  # the first is not counted
            for name in times:
                started, reported = time.perf_counter(), None
                for _ in range(flags.steps if number else 2):
                    if name == "teacher alone":
                        reported = teach(teacher_params, rows)
                    else:
                        states[name], reported = compiled[name](states[name], kinds[name][2], batches[name])
                jax.block_until_ready(reported)
                if number:
                    times[name].append((time.perf_counter() - started) / flags.steps)
    least = min(times["next token"])
    for name, seconds in times.items():
        line = {"benchmark": "distill", "what": name, "devices": flags.devices, "seconds": round(min(seconds), 4)}
        line |= {"against_next_token": round(min(seconds) / least, 3), "tokens": leg.tokens_per_step}
        line |= {"num_samples": flags.num_samples, "estimator": flags.estimator}
        line["temporary_bytes"] = compiled[name].memory_analysis().temp_size_in_bytes
        if name.startswith("teacher"):
            line["teacher_parameter_bytes"] = leg.frozen.bytes_per_device()
        print(json.dumps(line | {"device": jax.devices()[0].device_kind, "jax": jax.__version__}), flush=True)


if __name__ == "__main__":
    main()
