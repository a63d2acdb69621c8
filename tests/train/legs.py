"""A leg that trains nothing, for what goes on around the steps."""

import optax

from gemma3_jax import sharding
from gemma3_jax.train import optimizer, settings, stage

SGD = optimizer.Optimizer(optax.sgd(0.1), lambda number: 0.1)


def make(num_devices: int) -> stage.Leg:
    """A leg of 100 steps, each of 1,000 tokens at 6e6 operations a token."""
    mesh = sharding.make_mesh(data=num_devices)
    nothing = stage.Stage(
        loss=lambda params, rows: (0.0, 0, {}),
        next_batch=lambda number: None,
        view_params=lambda params: params,
        optimizer=SGD,
    )
    return stage.Leg(
        name="first",
        stage=nothing,
        num_steps=100,
        mesh=mesh,
        param_shapes={},
        param_shardings={},
        batch_shardings=sharding.batch_sharding(mesh),
        grad_accum_steps=1,
        spike_guard=settings.SpikeGuard(),
        ema_decay=0.0,
        tokens_per_step=1_000,
        flops_per_token=6e6,
        cursor=lambda number: {"row": 8 * number},
        check_cursor=lambda cursor: None,
        identity={"seed": "7"},
        about={"tokenizer": "abc"},
    )
