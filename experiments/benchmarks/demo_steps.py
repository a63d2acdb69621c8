"""Compiles training steps of the demo's student and times them in turn; shared by rounding.py and distill.py."""

import argparse
import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping

EXPERIMENTS = pathlib.Path(__file__).parents[1]


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses the flags, with those that these benchmarks share, and sets the number of virtual devices."""
    parser.add_argument("--devices", type=int, default=1, help="virtual ones, where there is no accelerator")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={flags.devices}"
    sys.path.insert(0, str(EXPERIMENTS))
    return flags


@dataclasses.dataclass
class Step:
    """The training step of a stage: its config, its program, and its frozen parameters."""

    config: object
    program: object
    frozen: dict

    def compile(self, rows) -> tuple[Callable, Callable]:
        """The compiled step, and a function that takes one more step and returns its metrics."""
        import jax

        from gemma3_jax.model import parameters

        with jax.set_mesh(self.program.mesh):
            params = parameters.init(self.config.model, jax.random.key(0), self.program.mesh)
            state = self.program.begin(params)
            hyperparameters = self.program.place_hyperparameters()
            compiled = self.program.jitted().lower(state, self.frozen, hyperparameters, rows).compile()

        def take_step():
            nonlocal state
            state, metrics = compiled(state, self.frozen, hyperparameters, rows)
            return metrics

        return compiled, take_step


def make(stage: str, stage_options: Mapping, teacher_model, flags: argparse.Namespace) -> Step:
    """The step of a demo stage with these options, and with a fresh teacher of that model (None: without a teacher)."""
    import jax
    import numpy as np

    from gemma3_jax import settings, sharding
    from gemma3_jax.cli import configs
    from gemma3_jax.model import parameters
    from gemma3_jax.stages import step as stage_step

    stage_options = {"batch_size": flags.batch_size, **stage_options}
    overrides = [f"--config.stages.{stage}.{name}={value}" for name, value in stage_options.items()]
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
    """Rows of random ids, as their content does not change the time."""
    import jax
    import numpy as np

    from gemma3_jax import sharding
    from gemma3_jax.data import stream

    shape = (step.config.batch_size, step.config.seq_len)
    ids = np.random.default_rng(0).integers(1, step.config.model.vocab_size, (2, *shape)).astype(np.int32)
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    row_ids = np.broadcast_to(np.arange(shape[0], dtype=np.int32)[:, None], shape)
    rows = stream.Rows(*ids, np.ones(shape, bool), np.ones(shape, np.int32), positions, row_ids)
    return jax.device_put(rows, sharding.batch_sharding(step.program.mesh))


def time_steps(steps: Mapping[str, Callable], mesh, *, num_rounds: int, num_steps: int) -> dict[str, float]:
    """Seconds of one call of each, in its fastest round. Rounds alternate, and the first one is not counted."""
    import jax

    times: dict[str, list[float]] = {name: [] for name in steps}
    with jax.set_mesh(mesh):
        for number in range(num_rounds + 1):
            for name, step in steps.items():
                started, metrics = time.perf_counter(), None
                for _ in range(num_steps if number else 2):
                    metrics = step()
                jax.block_until_ready(metrics)
                if number:
                    times[name].append((time.perf_counter() - started) / num_steps)
    return {name: min(seconds) for name, seconds in times.items()}
