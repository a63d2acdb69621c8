"""What trains in a stage: all parameters, or adapters on a base that does not; and how the loss sees them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from gemma3_jax import settings, sharding
from gemma3_jax.model import adapters, execution, parameters
from gemma3_jax.quant import view
from gemma3_jax.train import program

BASE = "base"  # the role of the frozen parameters that adapters are added to


class Trained(NamedTuple):
    """The parameters that train, and what they are beside the frozen ones."""

    shapes: dict
    shardings: dict
    frozen: dict  # by role: shapes, dtypes and shardings
    view_params: Callable[[dict, dict], dict]  # (parameters, frozen) -> those of the model, to bind


def make(config: settings.StageConfig, mesh: sharding.AnyMesh) -> Trained:
    """Returns what trains in a stage.

    Raises: ValueError if weights cannot be rounded as the config says, or adapters do not fit the model.
    """
    model, lora = config.model, config.lora
    if not lora.rank:
        rounded = view.make(config.quant, parameters.dims(model))
        jax.eval_shape(rounded, parameters.shapes(model))  # refuses what cannot be rounded
        return Trained(
            parameters.shapes(model), parameters.shardings(model, mesh), {}, lambda params, frozen: rounded(params)
        )
    dtype = execution.DTYPES[config.execution.dtype]
    base = program.with_shardings(
        adapters.base_shapes(model, lora, dtype), adapters.base_shardings(model, lora, dtype, mesh)
    )

    def view_params(factors: dict, frozen: dict) -> dict:
        return adapters.attach(model, lora, factors, frozen[BASE])

    return Trained(adapters.shapes(model, lora), adapters.shardings(model, lora, mesh), {BASE: base}, view_params)


def fresh(config: settings.StageConfig, mesh: jax.sharding.Mesh) -> dict:
    """Returns random parameters or factors, float32, sharded over the mesh: the same numbers on any mesh."""
    key = jax.random.key(config.seed)
    if config.lora.rank:
        return adapters.init(config.model, config.lora, key, mesh)
    return parameters.init(config.model, key, mesh)


def freeze(config: settings.StageConfig, mesh: jax.sharding.Mesh, params: dict) -> dict:
    """Returns the base of adapters, from float32 parameters, which are donated."""
    dtype = execution.DTYPES[config.execution.dtype]
    convert = jax.jit(
        functools.partial(adapters.freeze, config.model, config.lora, dtype),
        donate_argnums=0,
        out_shardings=adapters.base_shardings(config.model, config.lora, dtype, mesh),
    )
    return convert(params)
