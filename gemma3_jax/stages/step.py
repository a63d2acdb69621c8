"""The step of a stage, from its config: model, loss, teacher, view of the parameters and optimizer, on a mesh."""

from collections.abc import Callable

import numpy as np

from gemma3_jax import settings, sharding
from gemma3_jax.data import batches
from gemma3_jax.distill import estimators, teacher
from gemma3_jax.losses import distillation, next_token
from gemma3_jax.model import adapters, execution, flops, parameters
from gemma3_jax.model import config as model_config
from gemma3_jax.stages import mesh as stage_mesh
from gemma3_jax.stages import trained
from gemma3_jax.train import optimizer, program


def make(
    config: settings.StageConfig,
    mesh: sharding.AnyMesh,
    num_bytes: np.ndarray,
    *,
    teacher_model: model_config.Config | None = None,
    next_batch: Callable | None = None,
) -> program.Program:
    """Returns the step of a stage on a mesh.

    `num_bytes`: int32[V], the bytes of text that each id stands for. `teacher_model`: of the teacher that
    runs in the step; None if targets come with the batch. `next_batch`: None for a program that is only compiled.
    Raises: ValueError if the batch does not split over the mesh, weights cannot be rounded as the config says, or
    adapters do not fit the model.
    """
    sharding.check_batch(mesh, config.batch_size // config.grad_accum_steps, config.seq_len)
    has_stored_targets = config.loss == "distill" and teacher_model is None
    batch_shapes = batches.shapes(
        mesh,
        config.batch_size,
        config.seq_len,
        num_samples=config.samples.num_samples if has_stored_targets else None,
    )
    trains = trained.make(config, mesh)
    frozen_flops = flops.per_token(teacher_model, config.seq_len) / 3 if teacher_model else 0.0  # forward alone
    num_factors = adapters.count(config.model, config.lora) if config.lora.rank else None
    return program.Program(
        name=config.name,
        stage=program.Stage(
            loss=make_loss(config, num_bytes, teacher_model),
            frozen=trains.frozen | _teacher(config, mesh, teacher_model),
            next_batch=next_batch,
            view_params=trains.view_params,
            optimizer=optimizer.make(config.optimizer, config.num_steps),
        ),
        num_steps=config.num_steps,
        mesh=mesh,
        param_shapes=trains.shapes,
        param_shardings=trains.shardings,
        batch_shapes=batch_shapes,
        grad_accum_steps=config.grad_accum_steps,
        spike_guard=config.spike_guard,
        seed=config.seed,
        ema_decay=config.ema_decay,
        tokens_per_step=config.tokens_per_step,
        flops_per_token=flops.per_token(config.model, config.seq_len, num_factors) + frozen_flops,
        frozen_flops_per_token=frozen_flops,
        compiler_options=stage_mesh.compiler_options(mesh),
    )


def _teacher(config: settings.StageConfig, mesh: sharding.AnyMesh, teacher_model: model_config.Config | None) -> dict:
    if teacher_model is None:
        return {}
    shapes = parameters.shapes(teacher_model, execution.DTYPES[config.execution.dtype])
    return {"teacher": program.with_shardings(shapes, parameters.shardings(teacher_model, mesh))}


def make_loss(
    config: settings.StageConfig, num_bytes: np.ndarray, teacher_model: model_config.Config | None
) -> program.Loss:
    """Returns `loss(params, frozen, batch)` of a stage."""
    if config.loss == "next_token":
        return next_token.make(config.model, config.execution, num_bytes=num_bytes, z_loss=config.z_loss)
    estimators.check(config.samples, config.model.vocab_size)
    return distillation.make(
        config.model,
        config.execution,
        num_bytes=num_bytes,
        temperature=config.samples.temperature,
        knows_kl=config.samples.knows_kl(config.model.vocab_size),
        hard_label_weight=config.hard_label_weight,
        z_loss=config.z_loss,
        targets_of=make_teacher(config, teacher_model) if teacher_model else distillation.stored_targets,
    )


def make_teacher(config: settings.StageConfig, model: model_config.Config) -> Callable:
    """Returns `(frozen, batch) -> soft targets`, from a teacher that runs in the step; `frozen` has the seed."""
    targets_of = teacher.make(model, config.execution, samples=config.samples, in_loss=True)
    return lambda frozen, batch: targets_of(frozen["teacher"], batch, frozen["seed"])
