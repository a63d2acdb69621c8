"""A run with another learning rate, schedule, number of steps, clip or seed has the program of the first one."""

import dataclasses

import numpy as np
import pytest

from gemma3_jax import settings, sharding
from gemma3_jax.model import execution
from gemma3_jax.stages import step as stage_step
from gemma3_jax.train import settings as train_settings
from tests import toys

MODEL = dataclasses.replace(toys.TOY, num_layers=2, num_local_per_global=1)
STAGE = settings.StageEntry(
    num_steps=10,
    seq_len=16,
    batch_size=8,
    loss="distill",
    optimizer=train_settings.AdamW(peak_lr=1e-3, warmup_steps=1),
)


def lowered(seed=0, optimizer=None, **fields) -> str:
    """The step of a student beside its teacher, whose targets are drawn, before it is compiled."""
    stage = dataclasses.replace(
        STAGE,
        samples=dataclasses.replace(STAGE.samples, num_samples=8),
        optimizer=dataclasses.replace(STAGE.optimizer, **optimizer or {}),
        **fields,
    )
    recipe = settings.Train(
        model=MODEL,
        stage_order=("only",),
        stages={"only": stage},
        execution=execution.Execution(dtype="float32"),
        seed=seed,
    )
    num_bytes = np.zeros(MODEL.vocab_size, np.int32)
    program = stage_step.make(settings.resolve(recipe, "only"), sharding.make_mesh(), num_bytes, teacher_model=MODEL)
    return program.lower().as_text()


@pytest.fixture(scope="module")
def one():
    return lowered()


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 2**32 - 1},
        {"num_steps": 20},
        {"optimizer": {"peak_lr": 3e-4}},
        {"optimizer": {"warmup_steps": 5, "final_lr_fraction": 0.0}},
        {"optimizer": {"decay": "linear"}},
        {"optimizer": {"decay": "constant", "decay_steps": 3}},
        {"optimizer": {"clip_norm": 0.5}},
    ],
    ids=str,
)
def test_what_a_sweep_changes_is_an_input_of_the_step(one, changed):
    assert lowered(**changed) == one


def test_what_a_constant_changes_is_another_program(one):
    assert lowered(optimizer={"beta2": 0.99}) != one
