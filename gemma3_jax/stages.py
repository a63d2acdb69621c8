"""From settings to stages: where model, data and loss meet the loop. Read this first.

A recipe is a list of legs, each a stage of four fields and how far it goes:

    stage          loss                  next_batch      view_params    what the settings say
    pretrain       sampled distillation  packed rows     themselves     32K rows
    long_context   sampled distillation  packed rows     themselves     128K rows, RoPE scale 8 on global layers
    qat            distillation          packed rows     rounded        5,000 steps, a teacher that is its own start

The teacher's word comes with the rows, from targets that `teach` stored, or from a teacher beside the student, whose
parameters are what is frozen in a leg. A stage can learn the next token alone, too.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from gemma3_jax import evaluation, settings, sharding
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.data import dataset, order, stream
from gemma3_jax.data.targets import reader as targets_reader
from gemma3_jax.distill import estimators, teacher
from gemma3_jax.losses import objectives
from gemma3_jax.model import config, execution, flops, parameters
from gemma3_jax.quant import view
from gemma3_jax.tokenizer import vocabulary
from gemma3_jax.train import optimizer, stage


def _no_data(*_):
    raise AssertionError("this leg has no data")


def build(
    given: settings.Train,
    names: Sequence[str],
    checkpoints: pathlib.Path,
    *,
    warn: Callable = print,
    allow_data_change: bool = False,
) -> list[stage.Leg]:
    """The legs of these names. Everything is checked that can be before memory is taken.

    `checkpoints` is where the run has its own: a stage may read there, later, what it began with.
    Raises: ValueError that names the field.
    """
    legs = []
    for name in names:
        try:
            legs.append(_leg(given, name, checkpoints, warn, allow_data_change))
        except ValueError as error:
            raise ValueError(f"config.stages.{name}: {error}") from error
    return legs


def _leg(
    given: settings.Train, name: str, checkpoints: pathlib.Path, warn: Callable, allow_data_change: bool
) -> stage.Leg:
    asked, mesh = given.stages[name], stage_mesh(given, name)
    data, tokenizer, rows = open_rows(given, name)
    num_bytes = np.zeros(given.model.vocab_size, np.int32)
    num_bytes[: tokenizer.size] = tokenizer.num_bytes()

    def check_cursor(cursor: Mapping) -> None:
        for change in rows.check_cursor(cursor, allow_data_change=allow_data_change):
            warn(f"warning: {change}")

    def load_start(dtype: str) -> dict:
        return _open_begun(given, name, checkpoints).load(mesh, dtype)

    told = _open_told(given, name, rows, tokenizer=tokenizer.digest, load_start=load_start, warn=warn)
    leg = abstract_leg(
        given,
        name,
        mesh,
        num_bytes,
        teacher_model=told.model,
        load_teacher=functools.partial(told.load, mesh, given.execution.dtype),
    )
    return dataclasses.replace(
        leg,
        stage=dataclasses.replace(
            leg.stage, next_batch=Batches(data, rows, mesh, asked.num_steps, given.num_data_workers, told.stored)
        ),
        cursor=rows.cursor,
        check_cursor=check_cursor,
        identity={**leg.identity, "tokenizer": tokenizer.digest, "teacher": told.digest},
        about={**leg.about, "tokenizer": tokenizer.digest},
        beside={dataset.TOKENIZER: tokenizer.model},
        evaluation=evaluation.make(
            given,
            leg,
            stage_model(given, name),
            num_bytes=num_bytes,
            tokenizer=tokenizer,
            open_rows=lambda: evaluation.open_rows(given, leg, data, rows, warn=warn),
            load_start=load_start,
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Told:
    """Who tells a stage what to learn, beside the rows: stored targets, or a teacher with its parameters."""

    digest: str = "none"
    stored: targets_reader.Taught | None = None
    model: config.Config | None = None
    load: Callable[..., dict] = _no_data  # (mesh, dtype) -> its parameters


def _open_told(
    given: settings.Train, name: str, rows: order.Order, *, tokenizer: str, load_start: Callable[[str], dict], warn
) -> _Told:
    asked = given.stages[name]
    if asked.loss != "distill":
        return _Told()
    if asked.targets:
        stored = targets_reader.open_taught(pathlib.Path(asked.targets)).of_stage(
            rows,
            tokenizer,
            asked.samples,
            vocab_size=given.model.vocab_size,
            num_rows=asked.num_steps * asked.batch_size,
        )
        return _Told(stored.teacher, stored=stored)
    if asked.teacher == settings.START:
        if name == given.stage_order[0] and not given.init_from:
            warn(f"warning: the teacher of {name} is what the run begins with: fresh parameters, that know nothing")
        return _Told(settings.START, model=stage_model(given, name), load=lambda _, dtype: load_start(dtype))
    found = open_teacher(given, name, tokenizer, warn)

    def load(mesh: Mesh, dtype: str) -> dict:
        warn(f"reading teacher {found.path} ({found.kind}, {found.num_bytes() / 2**20:.1f} MiB)", *found.notes)
        return found.load(mesh, dtype)

    return _Told(found.fingerprint(), model=found.model, load=load)


def _open_begun(given: settings.Train, name: str, checkpoints: pathlib.Path) -> checkpoint_open.Checkpoint:
    """The checkpoint of the run that a stage began with.

    Raises: ValueError if it is gone.
    """
    before = given.stage_order[: given.stage_order.index(name)]
    path = checkpoints / str(sum(given.stages[other].num_steps for other in before))
    if not path.is_dir():
        raise ValueError(
            f"{path} is not there, which {name} began with and is held against, by its teacher or its evaluation; put "
            "it back, begin the stage again in another --workdir, or do without those"
        )
    return checkpoint_open.open_checkpoint(path)


def abstract_leg(
    given: settings.Train,
    name: str,
    mesh: sharding.AnyMesh,
    num_bytes: np.ndarray,
    *,
    teacher_model: config.Config | None = None,
    load_teacher: Callable[[], dict] = _no_data,
) -> stage.Leg:
    """A leg without its data and its teacher's parameters: enough to trace and compile its step.

    `num_bytes`: int32[V], the bytes of text that each id stands for. `teacher_model`: of the one beside the
    student; None for a stage that distils: its targets come with the rows.
    Raises: ValueError if the rows do not split over the mesh.
    """
    asked, model = given.stages[name], stage_model(given, name)
    sharding.check_batch(mesh, asked.batch_size // asked.grad_accum_steps, asked.seq_len)
    columns, frozen = dataclasses.asdict(model), stage.NOTHING
    if teacher_model:
        frozen = stage.Frozen(
            shapes=parameters.shapes(teacher_model, execution.DTYPES[given.execution.dtype]),
            places=parameters.shardings(teacher_model, mesh),
            load=load_teacher,
            flops_per_token=flops.per_token(teacher_model, asked.seq_len) / 3,  # forward alone
        )
    view_params = view.make(asked.quant, parameters.dims(model))
    jax.eval_shape(view_params, parameters.shapes(model))  # refuses what cannot be rounded so
    return stage.Leg(
        name=name,
        frozen=frozen,
        stage=stage.Stage(
            loss=_loss(given, name, num_bytes, teacher_model),
            next_batch=_no_data,
            view_params=view_params,
            optimizer=optimizer.make(asked.optimizer, asked.num_steps),
        ),
        num_steps=asked.num_steps,
        mesh=mesh,
        param_shapes=parameters.shapes(model),
        param_shardings=parameters.shardings(model, mesh),
        batch_shardings=sharding.batch_sharding(mesh),
        grad_accum_steps=asked.grad_accum_steps,
        spike_guard=asked.spike_guard,
        ema_decay=asked.ema_decay,
        tokens_per_step=asked.batch_size * asked.seq_len,
        flops_per_token=flops.per_token(model, asked.seq_len) + frozen.flops_per_token,
        cursor=_no_data,
        check_cursor=_no_data,
        identity={f"model.{column}": str(value) for column, value in columns.items()} | {"quant": asked.quant.name},
        about={"model": columns} | ({"quant": dataclasses.asdict(asked.quant)} if asked.quant.format else {}),
        needs_start=asked.teacher == settings.START or (bool(asked.quant.format) and asked.evaluation.every_steps > 0),
    )


def _loss(given: settings.Train, name: str, num_bytes: np.ndarray, teacher_model: config.Config | None) -> stage.Loss:
    asked, model = given.stages[name], stage_model(given, name)
    if asked.loss == "next_token":
        next_token = objectives.next_token(model, given.execution, num_bytes=num_bytes, z_loss=asked.z_loss)
        return lambda params, _, rows: next_token(params, rows)
    estimators.check(asked.samples, model.vocab_size)
    distilled = objectives.distilled(
        model,
        given.execution,
        num_bytes=num_bytes,
        samples=asked.samples,
        hard_label_weight=asked.hard_label_weight,
        z_loss=asked.z_loss,
        targets_of=make_teacher(given, name, teacher_model) if teacher_model else lambda said, rows: said,
    )
    return distilled if teacher_model else lambda params, _, batch: distilled(params, batch.targets, batch.rows)


def make_teacher(given: settings.Train, name: str, model: config.Config):
    """`(the teacher's parameters, rows) -> targets` of a stage."""
    return teacher.make(model, given.execution, samples=given.stages[name].samples, seed=given.seed)


def open_rows(given: settings.Train, name: str) -> tuple[dataset.Dataset, vocabulary.Tokenizer, order.Order]:
    """The data of a stage, its tokenizer, and which row comes when.

    Raises: ValueError if they do not fit the model.
    """
    asked = given.stages[name]
    path = asked.data or given.data
    if not path:
        raise ValueError("data is empty, as config.data is; name the directory that prepare wrote: --config.data=DIR")
    data = dataset.open_dataset(pathlib.Path(path))
    tokenizer = data.tokenizer()
    if tokenizer.size > given.model.vocab_size:
        raise ValueError(
            f"the tokenizer of {path} has {tokenizer.size} pieces, config.model.vocab_size is "
            f"{given.model.vocab_size}; the second must be at least the first"
        )
    rows = order.find(
        data,
        seq_len=asked.seq_len,
        batch_size=asked.batch_size,
        seed=given.seed,
        buckets=asked.mixture or None,
    )
    return data, tokenizer, rows


def open_teacher(given: settings.Train, name: str, tokenizer: str, warn) -> checkpoint_open.Checkpoint:
    """The checkpoint that speaks as teacher in a stage whose data has this tokenizer.

    Raises: ValueError if none is named, or if it has other ids.
    """
    path = given.stages[name].teacher or given.teacher
    if not path:
        raise ValueError(
            "loss is distill, and teacher is empty, as config.teacher is; name a checkpoint: --config.teacher=DIR, or "
            f"what teach wrote: --config.stages.{name}.targets=DIR"
        )
    if path == settings.START:
        raise ValueError("teacher is start, which only the run itself has; name a checkpoint to be asked before")
    found = checkpoint_open.open_checkpoint(pathlib.Path(path))
    if found.model.vocab_size != given.model.vocab_size:
        raise ValueError(
            f"teacher {path} has {found.model.vocab_size} ids, config.model.vocab_size is {given.model.vocab_size}; "
            "both must have one tokenizer"
        )
    if found.tokenizer:
        vocabulary.check_same(
            tokenizer, found.tokenizer, got_from=f"the data of {name}", expected_from=f"teacher {path}"
        )
    else:
        warn(f"warning: teacher {path} does not say which tokenizer it was trained with")
    return found


def stage_model(given: settings.Train, name: str) -> config.Config:
    """The model as a stage has it: with the stage's RoPE scale."""
    scale = given.stages[name].rope_scale
    return dataclasses.replace(given.model, rope_scale=scale) if scale else given.model


def mesh_sizes(given: settings.Train, name: str) -> dict[str, int]:
    """What is asked of the mesh of a stage; 0 where it is left open."""
    return {axis: getattr(given.stages[name].mesh, axis) or getattr(given.mesh, axis) for axis in sharding.AXES}


def stage_mesh(given: settings.Train, name: str, devices: Sequence | None = None) -> Mesh:
    """The mesh of a stage: what its own settings leave open is as config.mesh says. `devices`: None for all of JAX's.

    Raises: ValueError if the axes do not multiply to the devices there are, or to a part of them on one host.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(given, name)
    others = math.prod(sizes[axis] or 1 for axis in sharding.AXES if axis != "data")
    if not sizes["data"]:
        if len(devices) % others:
            raise ValueError(
                f"mesh has replica x seq x model = {others}, which does not divide the {len(devices)} devices; "
                "change one, or name data to use fewer devices"
            )
        sizes["data"] = len(devices) // others
    mesh = sharding.make_mesh(**{axis: size or 1 for axis, size in sizes.items()}, devices=devices)
    if jax.process_count() > 1 and mesh.size != jax.device_count():
        raise ValueError(
            f"mesh has {mesh.size} devices of {jax.device_count()} on {jax.process_count()} hosts; all devices of "
            "all hosts must be in it: make the axes multiply to the number of devices"
        )
    return mesh


def fresh_params(given: settings.Train, leg: stage.Leg, model: config.Config) -> dict:
    """What a run begins with if nothing is named: float32, on the leg's mesh, the same numbers on any."""
    return parameters.init(model, jax.random.key(given.seed), leg.mesh)


def open_start(given: settings.Train, leg: stage.Leg, model: config.Config) -> checkpoint_open.Checkpoint:
    """The checkpoint that `config.init_from` names.

    Raises: ValueError if it is of another model or tokenizer.
    """
    found = checkpoint_open.open_checkpoint(pathlib.Path(given.init_from))
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


class Batches:
    """step -> its batch. Reads ahead as long as steps come one after the other, up to the last one."""

    def __init__(
        self,
        data: dataset.Dataset,
        rows: order.Order,
        mesh: Mesh,
        num_steps: int,
        num_workers: int,
        stored: targets_reader.Taught | None = None,
    ):
        self._num_steps = num_steps
        self._open = lambda step: stream.Stream(
            data, rows, mesh, first_step=step, num_workers=num_workers, taught=stored
        )
        self._stream: stream.Stream | None = None

    def __call__(self, step: int) -> stream.Batch:
        if self._stream is None or self._stream.step != step:
            self.close()
            self._stream = self._open(step)
        batch = next(self._stream)
        if step + 1 == self._num_steps:
            self.close()
        return batch

    def close(self) -> None:
        """Ends what reads ahead."""
        if self._stream is not None:
            self._stream.close()
