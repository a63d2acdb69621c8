"""Small states of a run, sharded, as checkpoints hold them."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemma3_jax.checkpoint import manager

CURSOR, META = {"row": 24, "epoch": 1}, {"stage": "first", "seed": "7"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossStats:
    mean: jax.Array
    num_seen: jax.Array


class Moments(NamedTuple):
    count: jax.Array
    mu: dict
    nu: dict


def everywhere(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def make(mesh: Mesh, seed: int = 0) -> tuple[dict, dict]:
    """Parameters, spread over the mesh, and all else that a step may change: of every class that a state has."""
    draw = np.random.default_rng(seed)
    spread = NamedSharding(mesh, PartitionSpec("data", "model"))

    def weights(dtype="float32"):
        numbers = {"w": draw.normal(size=(16, 8)), "inner": {"v": draw.normal(size=(8, 4))}}
        return jax.tree.map(lambda x: jax.device_put(jnp.asarray(x, dtype), spread), numbers)

    def whole(x, dtype):
        return jax.device_put(jnp.asarray(x, dtype), everywhere(mesh))

    state = {
        "step": whole(seed, "int32"),
        "opt_state": (Moments(whole(seed, "int32"), weights("bfloat16"), weights()), {}),
        "ema_params": None,
        "loss_stats": LossStats(whole(draw.normal(size=2), "float32"), whole(2**31 - 1, "int32")),
    }
    return weights(), state


def abstract(tree):
    """Shapes, dtypes and places."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(one, other) -> None:
    """The same tree, to the bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def in_directory(
    directory: pathlib.Path, say: Callable[[str], None], *, keep_last=3, keep_every_steps=0, keep_steps=()
) -> manager.CheckpointManager:
    return manager.CheckpointManager(
        directory, keep_last=keep_last, keep_every_steps=keep_every_steps, keep_steps=keep_steps, say=say
    )


def save(of: manager.CheckpointManager, step: int, mesh: Mesh, **changes) -> None:
    """Saves the state that is drawn from the step's number, and waits."""
    params, state = make(mesh, step)
    notes = {"cursor": CURSOR | {"row": step}, "meta": META, "checkpoint_metadata": {"tokenizer": "abc"}} | changes
    of.save(step, params, state, **notes)
    of.finish()


def restore(of: manager.CheckpointManager, mesh: Mesh) -> manager.Restored | None:
    return of.restore(lambda step, cursor, meta: abstract(make(mesh)))
