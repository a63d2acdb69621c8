"""From a config to the stages of a run: where model, data and loss meet the training loop. Read this first.

    stage          loss          frozen   next_batch                     view_params
    pretrain       distillation  teacher  packed sequences of 32K        identity
    long_context   distillation  teacher  packed sequences of 128K       identity
    qat            distillation  teacher  packed sequences of 32K        fake quantization

The teacher of `qat` is the checkpoint that the stage begins with. Where `teach` has stored a teacher's targets they
come with the batch, and nothing is frozen. A stage may also train on the next token alone. With adapters
(config.lora) `frozen` has the base as well, and the view has the factors, which alone train, beside its matrices.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from gemma3_jax import settings
from gemma3_jax.data import batches, dataset
from gemma3_jax.stages import adapter_inputs, evaluation, inputs, trained
from gemma3_jax.stages import mesh as stage_mesh
from gemma3_jax.stages import step as stage_step
from gemma3_jax.train import stage_run


def build(
    configs: Sequence[settings.StageConfig],
    checkpoints: pathlib.Path,
    *,
    warn: Callable = print,
    allow_data_change: bool = False,
) -> list[stage_run.StageRun]:
    """Returns the stages of a run. Everything that can be checked is checked before memory is allocated.

    `checkpoints` is the directory of the run's own checkpoints: a stage may read, later, the one it began with.
    Raises: ValueError that names the field.
    """
    runs = []
    for config in configs:
        try:
            runs.append(_build(config, configs, checkpoints, warn, allow_data_change))
        except ValueError as error:
            raise ValueError(f"config.stages.{config.name}: {error}") from error
    return runs


def _build(
    config: settings.StageConfig,
    configs: Sequence[settings.StageConfig],
    checkpoints: pathlib.Path,
    warn: Callable,
    allow_data_change: bool,
) -> stage_run.StageRun:
    mesh, data = stage_mesh.make(config), inputs.open_data(config)

    def load_initial(mesh: Mesh, dtype: str) -> dict:
        return inputs.open_initial(config, checkpoints).load(mesh, dtype)

    def check_cursor(cursor: Mapping) -> None:
        for change in data.rows.check_cursor(cursor, allow_data_change=allow_data_change):
            warn(f"warning: {change}")

    files = {dataset.TOKENIZER: data.tokenizer.model}
    base = adapter_inputs.open_base(config, files, warn)
    source = inputs.open_targets(config, data, load_initial=load_initial, warn=warn)
    num_bytes = np.zeros(config.model.vocab_size, np.int32)
    num_bytes[: data.tokenizer.size] = data.tokenizer.num_bytes()
    next_batch = batches.Batches(
        data.dataset, data.rows, mesh, config.num_steps, config.num_data_workers, source.stored
    )
    program = stage_step.make(config, mesh, num_bytes, teacher_model=source.model, next_batch=next_batch)
    columns = dataclasses.asdict(config.model)
    compat_keys = {f"model.{field}": str(value) for field, value in columns.items() if field != "context_length"}
    compat_keys |= {"quant": config.quant.name, "tokenizer": data.tokenizer.digest, "teacher": source.digest}
    compat_keys |= {"lora": config.lora.name, "base": base.digest if base else "none"}
    metadata = {"model": columns, "tokenizer": data.tokenizer.digest}
    if config.quant.format:
        metadata["quant"] = dataclasses.asdict(config.quant)
    if base:
        metadata["lora"] = dataclasses.asdict(config.lora) | {"base": base.path, "base_digest": base.digest}
    return stage_run.StageRun(
        program=program,
        load_frozen=functools.partial(_load_frozen, config, mesh, source, base),
        cursor=data.rows.cursor,
        check_cursor=check_cursor,
        compat_keys=compat_keys,
        checkpoint_metadata=metadata,
        extra_files=files,
        evaluation=evaluation.make(
            config,
            program,
            num_bytes=num_bytes,
            tokenizer=data.tokenizer,
            open_rows=lambda: evaluation.open_rows(configs, program, data, warn=warn),
            load_initial=functools.partial(load_initial, mesh),
        ),
        keep_initial_checkpoint=config.teacher == settings.START
        or (bool(config.quant.format) and config.evaluation.every_steps > 0),
    )


def _load_frozen(
    config: settings.StageConfig, mesh: Mesh, source: inputs.TeacherSource, base: adapter_inputs.BaseSource | None
) -> dict:
    """Returns the arrays of what is frozen, by role."""
    frozen = {trained.BASE: base.load(mesh)} if base else {}
    return frozen | ({"teacher": source.load(mesh, config.execution.dtype)} if source.load else {})
