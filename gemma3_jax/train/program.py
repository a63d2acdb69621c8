"""What a step of training is: a stage of five fields, and the program that takes its steps on a mesh.

`planning` compiles the same program for a topology without devices; `train/stage_run.py` adds what a run needs.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from gemma3_jax.train import optimizer, settings, step


@runtime_checkable
class Batch(Protocol):
    """The arrays of one step, on the mesh, and a digest of them."""

    @property
    def id(self) -> str: ...
    @property
    def rows(self) -> object: ...


@dataclasses.dataclass(frozen=True)
class Now:
    """The run as it is before a step, for batches that depend on it: a rollout reads the parameters."""

    state: step.State
    frozen: dict


class Hyperparameters(NamedTuple):
    """Numbers that a step takes as inputs, so that a run with others compiles nothing."""

    optimizer: object
    seed: object  # uint32, of what the loss draws


# loss(params, frozen, batch) -> (summed loss in nats, number of targets, sums of what is logged); `frozen` has the
# frozen parameters by role, and the "seed"
Loss = Callable[[dict, dict, object], tuple[jax.Array, jax.Array, step.Sums]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage: its loss, the frozen parameters and batches it reads, its view of the parameters, and its optimizer."""

    loss: Loss
    frozen: Mapping[str, dict]  # by role, e.g. "teacher": shapes, dtypes and shardings of parameters that do not train
    # (step of the stage, now): reads ahead while steps come in order; None for a program that is only compiled
    next_batch: Callable[[int, Now], Batch] | None
    # (parameters, frozen) -> the parameters as the loss sees them: themselves, quantized, or beside a frozen base
    view_params: Callable[[dict, dict], dict]
    optimizer: optimizer.Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """The step of a stage on a mesh: enough to trace and compile it, with no data and no array."""

    name: str  # of the stage
    stage: Stage
    num_steps: int
    mesh: Mesh | AbstractMesh
    param_shapes: dict
    param_shardings: dict  # a NamedSharding for each parameter
    batch_shapes: object  # shapes, dtypes and shardings of a batch's arrays
    grad_accum_steps: int
    spike_guard: settings.SpikeGuard
    seed: int
    ema_decay: float  # 0: no moving average of the parameters
    tokens_per_step: int
    flops_per_token: float  # of the student and of what is frozen
    frozen_flops_per_token: float = 0.0
    compiler_options: dict[str, str] = dataclasses.field(default_factory=dict)  # of XLA

    def init(self, params: dict) -> step.State:
        """Returns the state before the first step; to be traced."""
        return step.init(params, self.stage.optimizer, ema=self.ema_decay > 0)

    def state_shardings(self) -> step.State:
        shapes = jax.eval_shape(self.init, self.param_shapes)
        return step.shardings(shapes, self.stage.optimizer, self.param_shardings)

    def state_shapes(self) -> step.State:
        """Returns the shapes, dtypes and shardings of a state."""
        return with_shardings(jax.eval_shape(self.init, self.param_shapes), self.state_shardings())

    def begin(self, params: dict) -> step.State:
        """Returns the state before the first step. Donates `params`."""
        params = jax.device_put(params, self.param_shardings)
        make = jax.jit(self.init, donate_argnums=0, out_shardings=self.state_shardings())
        with jax.set_mesh(self.mesh):
            return make(params)

    def hyperparameters(self) -> Hyperparameters:
        """Returns the numbers of this stage, on the host."""
        return Hyperparameters(self.stage.optimizer.hyperparameters, np.uint32(self.seed))

    def place_hyperparameters(self) -> Hyperparameters:
        """Returns them on each device of the mesh."""
        return jax.device_put(self.hyperparameters(), self._replicated)

    @property
    def _replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def step(self) -> Callable[[step.State, dict, Hyperparameters, object], tuple[step.State, step.Sums]]:
        """Returns `(state, frozen, hyperparameters, batch) -> (state, logged)`, to be traced with the mesh set."""

        def one(state, frozen, hyperparameters, batch):
            def loss(params, batch):
                inputs = {**frozen, "seed": hyperparameters.seed}
                return self.stage.loss(self.stage.view_params(params, frozen), inputs, batch)

            take = step.make(
                loss,
                self.stage.optimizer,
                grad_accum_steps=self.grad_accum_steps,
                spike_guard=self.spike_guard,
                ema_decay=self.ema_decay,
            )
            return take(state, batch, hyperparameters.optimizer)

        return one

    def jitted(self):
        """Returns the jitted step: the state is donated, and everything is sharded as it rests."""
        state = self.state_shardings()
        frozen, batch = (
            jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in (self.frozen_shapes, self.batch_shapes)
        )
        return jax.jit(
            self.step(),
            donate_argnums=0,
            in_shardings=(state, frozen, self._replicated, batch),
            out_shardings=(state, None),
            compiler_options=self.compiler_options,
        )

    def lower(self) -> jax.stages.Lowered:
        """Traces the step from shapes alone."""
        hyperparameters = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._replicated), self.hyperparameters()
        )
        jitted = self.jitted()
        arguments = self.state_shapes(), self.frozen_shapes, hyperparameters, self.batch_shapes
        with jax.set_mesh(self.mesh):  # for tracing alone: nothing can be computed on the devices of a topology
            return jitted.lower(*arguments)

    @property
    def frozen_shapes(self) -> dict:
        return dict(self.stage.frozen)


def with_shardings(shapes: object, shardings: object) -> object:
    """Returns a tree of shapes and dtypes, each with its sharding."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def bytes_per_device(shapes: object) -> int:
    """Bytes that one device holds of arrays of these shapes, dtypes and shardings."""
    leaves = jax.tree.leaves(shapes)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * _bits(leaf.dtype) // 8 for leaf in leaves)


def _bits(dtype: jnp.dtype) -> int:
    """Returns the bits of a number on a device, where two of four bits share a byte."""
    return jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else 8 * dtype.itemsize
