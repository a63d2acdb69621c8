"""A stage is four fields; a leg is a stage and how far it goes; a recipe is a list of legs."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from gemma3_jax.train import optimizer, settings, step


@runtime_checkable
class Batch(Protocol):
    """The rows of one step, on the mesh, and a digest of them."""

    @property
    def id(self) -> str: ...
    @property
    def rows(self) -> object: ...


# (parameters, what is frozen, rows) -> (summed loss in nats, number of targets, sums)
Loss = Callable[[dict, dict, object], tuple[jax.Array, jax.Array, step.Sums]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """What is minimised, over which rows, of parameters seen through what, and how."""

    loss: Loss
    next_batch: Callable[[int], Batch]  # of step 0, 1, ...; asked for in order it reads ahead
    view_params: Callable[[dict], dict]  # what the loss sees of the parameters: themselves, or quantised
    optimizer: optimizer.Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frozen:
    """What a loss reads and no step changes: the parameters of a teacher."""

    shapes: dict
    places: dict  # a NamedSharding each
    load: Callable[[], dict]
    flops_per_token: float = 0.0  # of its pass over a row

    def bytes_per_device(self) -> int:
        leaves = zip(jax.tree.leaves(self.shapes), jax.tree.leaves(self.places), strict=True)
        return sum(math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, place in leaves)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured beside training."""

    every_steps: int  # and after the last one
    begin: Callable[[dict], Callable[[dict], dict[str, float]]]  # what is frozen -> (parameters -> numbers)

    def is_due(self, done: int, num_steps: int) -> bool:
        return done % self.every_steps == 0 or done == num_steps


NOTHING = Frozen(shapes={}, places={}, load=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leg:
    """A stage, and how far it goes, on which devices."""

    name: str
    stage: Stage
    num_steps: int
    mesh: Mesh | AbstractMesh
    param_shapes: dict
    param_shardings: dict  # a NamedSharding each
    batch_shardings: NamedSharding  # of every array of a batch, [B, T, ...]
    grad_accum_steps: int
    spike_guard: settings.SpikeGuard
    ema_decay: float  # 0: no average of the parameters is kept
    tokens_per_step: int
    flops_per_token: float
    cursor: Callable[[int], dict]  # what a checkpoint remembers of the data, before a step
    check_cursor: Callable[[Mapping], None]  # raises ValueError if the data is not what it was
    identity: dict[str, str]  # what a checkpoint has to agree in: field -> value
    about: dict  # the model's columns and the tokenizer's digest, for whoever opens a checkpoint by itself
    beside: Mapping[str, bytes] = dataclasses.field(default_factory=dict)  # files that users of its checkpoints want
    frozen: Frozen = NOTHING
    evaluation: Evaluation | None = None
    needs_start: bool = False  # whether the checkpoint it begins with has to be there as long as it trains

    def init(self, params: dict) -> step.State:
        """The state before the first step; to be traced."""
        return step.init(params, self.stage.optimizer, average=self.ema_decay > 0)

    def places(self) -> step.State:
        """Where a state of this leg rests."""
        shapes = jax.eval_shape(self.init, self.param_shapes)
        return step.places(shapes, self.stage.optimizer, self.param_shardings)

    def abstract(self) -> step.State:
        """A state's shapes, dtypes and places."""
        shapes = jax.eval_shape(self.init, self.param_shapes)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, self.places()
        )

    def begin(self, params: dict) -> step.State:
        """The state before the first step; `params` are given away."""
        params = jax.device_put(params, self.param_shardings)
        make = jax.jit(self.init, donate_argnums=0, out_shardings=self.places())
        with jax.set_mesh(self.mesh):
            return make(params)

    def step(self) -> Callable[[step.State, dict, object], tuple[step.State, step.Sums]]:
        """`(state, frozen, rows) -> (state, reported)`, to be traced with the leg's mesh set."""

        def one(state, frozen, rows):
            def loss(params, rows):
                return self.stage.loss(self.stage.view_params(params), frozen, rows)

            take = step.make(
                loss,
                self.stage.optimizer,
                grad_accum_steps=self.grad_accum_steps,
                spike_guard=self.spike_guard,
                ema_decay=self.ema_decay,
            )
            return take(state, rows)

        return one

    def jitted(self):
        """The step as it is compiled: its state donated, everything where it rests."""
        places = self.places()
        return jax.jit(
            self.step(),
            donate_argnums=0,
            in_shardings=(places, self.frozen.places, self.batch_shardings),
            out_shardings=(places, None),
        )
