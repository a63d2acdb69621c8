"""From settings to stages: where model, data and loss meet the loop. Read this first.

A recipe is a list of legs, each a stage of four fields and how far it goes:

    stage          loss                  next_batch      view_params    what the settings say
    pretrain       next token            packed rows     themselves     32K rows
    long_context   next token            packed rows     themselves     128K rows, RoPE scale 8 on global layers
    qat            next token            packed rows     themselves     5,000 steps
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from gemma3_jax import settings, sharding
from gemma3_jax.checkpoint import convert
from gemma3_jax.data import dataset, order, stream
from gemma3_jax.distill import loss
from gemma3_jax.model import config, flops, parameters
from gemma3_jax.tokenizer import vocabulary
from gemma3_jax.train import optimizer, stage


def build(
    given: settings.Train, names: Sequence[str], *, warn=print, allow_data_change: bool = False
) -> list[stage.Leg]:
    """The legs of these names. Everything is checked that can be before memory is taken.

    Raises: ValueError that names the field.
    """
    legs = []
    for name in names:
        try:
            legs.append(_leg(given, name, warn, allow_data_change))
        except ValueError as error:
            raise ValueError(f"config.stages.{name}: {error}") from error
    return legs


def _leg(given: settings.Train, name: str, warn, allow_data_change: bool) -> stage.Leg:
    asked = given.stages[name]
    model, mesh = stage_model(given, name), stage_mesh(given, name)
    data = _open_data(asked.data or given.data)
    tokenizer = data.tokenizer()
    if tokenizer.size > model.vocab_size:
        raise ValueError(
            f"the tokenizer of {data.path} has {tokenizer.size} pieces, config.model.vocab_size is {model.vocab_size}; "
            "the second must be at least the first"
        )
    rows = order.find(
        data,
        row_length=asked.row_length,
        rows_per_step=asked.rows_per_step,
        seed=given.seed,
        buckets=asked.mixture or None,
    )
    num_bytes = np.zeros(model.vocab_size, np.int32)
    num_bytes[: tokenizer.size] = tokenizer.num_bytes()

    def check_cursor(cursor: Mapping) -> None:
        for change in rows.check_cursor(cursor, allow_data_change=allow_data_change):
            warn(f"warning: {change}")

    leg = abstract_leg(given, name, mesh, num_bytes)
    return dataclasses.replace(
        leg,
        stage=dataclasses.replace(
            leg.stage, next_batch=_Rows(data, rows, mesh, asked.num_steps, given.num_data_workers)
        ),
        cursor=rows.cursor,
        check_cursor=check_cursor,
        identity={**leg.identity, "tokenizer": tokenizer.digest},
        about={**leg.about, "tokenizer": tokenizer.digest},
    )


def abstract_leg(given: settings.Train, name: str, mesh: sharding.AnyMesh, num_bytes: np.ndarray) -> stage.Leg:
    """A leg without its data: enough to trace and compile its step.

    `num_bytes`: int32[V], the bytes of text that each id stands for.
    Raises: ValueError if the rows do not split over the mesh.
    """
    asked, model = given.stages[name], stage_model(given, name)
    sharding.check_batch(mesh, asked.rows_per_step // asked.num_microbatches, asked.row_length)
    next_token = loss.next_token(model, given.execution, mesh.shape, num_bytes=num_bytes, z_loss=asked.z_loss)
    columns = dataclasses.asdict(model)
    return stage.Leg(
        name=name,
        stage=stage.Stage(
            loss=next_token,
            next_batch=_no_data,
            view_params=lambda params: params,
            optimizer=optimizer.make(asked.optimizer, asked.num_steps),
        ),
        num_steps=asked.num_steps,
        mesh=mesh,
        param_shapes=parameters.shapes(model),
        param_places=parameters.shardings(model, mesh),
        row_places=sharding.batch_sharding(mesh),
        num_microbatches=asked.num_microbatches,
        watch=asked.watch,
        average_decay=asked.average_decay,
        tokens_per_step=asked.rows_per_step * asked.row_length,
        flops_per_token=flops.per_token(model, asked.row_length),
        cursor=_no_data,
        check_cursor=_no_data,
        identity={f"model.{column}": str(value) for column, value in columns.items()},
        about={"model": columns},
    )


def _no_data(*_):
    raise AssertionError("this leg has no data")


def stage_model(given: settings.Train, name: str) -> config.Config:
    """The model as a stage has it: with the stage's RoPE scale."""
    scale = given.stages[name].rope_scale
    return dataclasses.replace(given.model, rope_scale=scale) if scale else given.model


def stage_mesh(given: settings.Train, name: str) -> Mesh:
    """The mesh of a stage: what its own settings leave open is as config.mesh says.

    Raises: ValueError if the axes do not multiply to the devices there are, or to a part of them on one host.
    """
    sizes = {axis: getattr(given.stages[name].mesh, axis) or getattr(given.mesh, axis) for axis in sharding.AXES}
    others = math.prod(sizes[axis] or 1 for axis in sharding.AXES if axis != "data")
    if not sizes["data"]:
        if jax.device_count() % others:
            raise ValueError(
                f"mesh has replica x seq x model = {others}, which does not divide the {jax.device_count()} devices; "
                "change one, or name data to use fewer devices"
            )
        sizes["data"] = jax.device_count() // others
    mesh = sharding.make_mesh(**{axis: size or 1 for axis, size in sizes.items()})
    if jax.process_count() > 1 and mesh.size != jax.device_count():
        raise ValueError(
            f"mesh has {mesh.size} devices of {jax.device_count()} on {jax.process_count()} hosts; all devices of "
            "all hosts must be in it: make the axes multiply to the number of devices"
        )
    return mesh


def fresh_params(given: settings.Train, leg: stage.Leg, model: config.Config) -> dict:
    """What a run begins with if nothing is named: float32, on the leg's mesh, the same numbers on any."""
    return parameters.init(model, jax.random.key(given.seed), leg.mesh)


def open_start(given: settings.Train, leg: stage.Leg, model: config.Config) -> convert.Checkpoint:
    """The checkpoint that `config.init_from` names.

    Raises: ValueError if it is of another model or tokenizer.
    """
    found = convert.open_checkpoint(pathlib.Path(given.init_from))
    theirs, ours = dataclasses.asdict(found.model), dataclasses.asdict(model)
    for column in ours.keys() - {"rope_scale"}:  # which extension to longer rows changes
        if theirs[column] != ours[column]:
            raise ValueError(
                f"config.init_from {given.init_from} has {column} {theirs[column]}, config.model.{column} is "
                f"{ours[column]}; make them one"
            )
    if found.tokenizer:
        vocabulary.check_same(
            leg.identity["tokenizer"],
            found.tokenizer,
            got_from=f"the data of {leg.name}",
            expected_from=f"config.init_from {given.init_from}",
        )
    return found


def _open_data(path: str) -> dataset.Dataset:
    if not path:
        raise ValueError("data is empty, as config.data is; name the directory that prepare wrote: --config.data=DIR")
    return dataset.open_dataset(pathlib.Path(path))


class _Rows:
    """step -> its batch. Reads ahead as long as steps come one after the other, up to the last one."""

    def __init__(self, data: dataset.Dataset, rows: order.Order, mesh: Mesh, num_steps: int, num_workers: int):
        self._num_steps = num_steps
        self._open = lambda step: stream.Stream(data, rows, mesh, first_step=step, num_workers=num_workers)
        self._stream: stream.Stream | None = None

    def __call__(self, step: int) -> stream.Batch:
        if self._stream is None or self._stream.step != step:
            if self._stream is not None:
                self._stream.close()
            self._stream = self._open(step)
        batch = next(self._stream)
        if step + 1 == self._num_steps:
            self._stream.close()
        return batch
