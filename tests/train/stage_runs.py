"""A stage that trains nothing, for tests of what goes on around the steps."""

import optax

from gemma3_jax import sharding
from gemma3_jax.train import optimizer, program, settings, stage_run

SGD = optimizer.Optimizer((), lambda _: optax.sgd(0.1), lambda _, number: 0.1)


def make(num_devices: int) -> stage_run.StageRun:
    """A stage of 100 steps, each of 1,000 tokens at 6e6 FLOPs a token."""
    nothing = program.Stage(
        loss=lambda params, frozen, batch: (0.0, 0, {}),
        frozen={},
        next_batch=lambda number, now: None,
        view_params=lambda params, frozen: params,
        optimizer=SGD,
    )
    return stage_run.StageRun(
        program=program.Program(
            name="first",
            stage=nothing,
            num_steps=100,
            mesh=sharding.make_mesh(data=num_devices),
            param_shapes={},
            param_shardings={},
            batch_shapes={},
            grad_accum_steps=1,
            spike_guard=settings.SpikeGuard(),
            seed=0,
            ema_decay=0.0,
            tokens_per_step=1_000,
            flops_per_token=6e6,
        ),
        load_frozen=dict,
        cursor=lambda number: {"row": 8 * number},
        check_cursor=lambda cursor: None,
        compat_keys={"seed": "7"},
        checkpoint_metadata={"tokenizer": "abc"},
    )
