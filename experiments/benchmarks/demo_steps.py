"""Steps of the demo's student, compiled and raced against each other: what the benchmarks of its stages share."""

import argparse
import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping

EXPERIMENTS = pathlib.Path(__file__).parents[1]


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags, with those that all have; and as many devices as they say."""
    parser.add_argument("--devices", type=int, default=1, help="virtual ones, where there is no accelerator")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={flags.devices}"
    sys.path.insert(0, str(EXPERIMENTS))
    return flags


@dataclasses.dataclass
class Step:
    """A step of a stage: its config, its program, and its frozen parameters."""

    config: object
    program: object
    frozen: dict

    def compile(self, rows) -> tuple[Callable, Callable]:
        """The program, and a function that takes one step more with it and returns what the step reports."""
        import jax

        from gemma3_jax.model import parameters

        with jax.set_mesh(self.program.mesh):
            params = parameters.init(self.config.model, jax.random.key(0), self.program.mesh)
            state = self.program.begin(params)
            compiled = self.program.jitted().lower(state, self.frozen, rows).compile()

        def take():
            nonlocal state
            state, reported = compiled(state, self.frozen, rows)
            return reported

        return compiled, take


def make(stage: str, fields: Mapping, teacher_model, flags: argparse.Namespace) -> Step:
    """A step of a stage of the demo with other settings, and with a fresh teacher of that shape (None: without one)."""
    import jax
    import numpy as np

    from gemma3_jax import settings, sharding
    from gemma3_jax.cli import configs
    from gemma3_jax.model import parameters
    from gemma3_jax.stages import step as stage_step

    fields = {"batch_size": flags.batch_size, **fields}
    overrides = [f"--config.stages.{stage}.{name}={value}" for name, value in fields.items()]
    config = settings.resolve(configs.load(str(EXPERIMENTS / "demo.py"), overrides, settings.Train), stage)
    mesh = sharding.make_mesh(data=flags.devices)
    num_bytes = np.zeros(config.model.vocab_size, np.int32)
    program = stage_step.make(config, mesh, num_bytes, teacher_model=teacher_model)
    frozen = {}
    if teacher_model:
        fresh = parameters.init(teacher_model, jax.random.key(1), mesh)
        frozen = jax.tree.map(lambda x, shape: x.astype(shape.dtype), {"teacher": fresh}, program.frozen_shapes)
    return Step(config, program, frozen)


def make_rows(step: Step):
    """Random rows: what is in them costs nothing more or less."""
    import jax
    import numpy as np

    from gemma3_jax import sharding
    from gemma3_jax.data import stream

    shape = (step.config.batch_size, step.config.seq_len)
    ids = np.random.default_rng(0).integers(1, step.config.model.vocab_size, (2, *shape)).astype(np.int32)
    places = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    numbers = np.broadcast_to(np.arange(shape[0], dtype=np.int32)[:, None], shape)
    rows = stream.Rows(*ids, np.ones(shape, bool), np.ones(shape, np.int32), places, numbers)
    return jax.device_put(rows, sharding.batch_sharding(step.program.mesh))


def race(runs: Mapping[str, Callable], mesh, *, num_rounds: int, num_steps: int) -> dict[str, float]:
    """Seconds of each, once: of the fastest of rounds that alternate, and of which the first is not counted."""
    import jax

    times: dict[str, list[float]] = {name: [] for name in runs}
    with jax.set_mesh(mesh):
        for number in range(num_rounds + 1):
            for name, run in runs.items():
                started, reported = time.perf_counter(), None
                for _ in range(num_steps if number else 2):
                    reported = run()
                jax.block_until_ready(reported)
                if number:
                    times[name].append((time.perf_counter() - started) / num_steps)
    return {name: min(of) for name, of in times.items()}
