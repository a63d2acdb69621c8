"""Every experiment builds; those for pods are traced on their meshes, with nothing allocated."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from gemma3_jax import settings, sharding
from gemma3_jax.cli import configs
from gemma3_jax.data import stream
from gemma3_jax.model import config
from gemma3_jax.stages import step as stage_step

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"
STARTER_CHIPS = {"270m": 4, "1b": 16, "4b": 64, "12b": 128, "27b": 256}
CHIPS = {"270m": 256, "1b": 512, "4b": 2_048, "12b": 6_144, "27b": 6_144}  # report, Table 2; 270m: ours


def load(argument: str) -> settings.Train:
    return configs.load(f"{EXPERIMENTS / 'recipe.py'}:{argument}", [], settings.Train)


def mesh_of(run_config: settings.Train, name: str) -> AbstractMesh:
    sizes = [
        getattr(run_config.stages[name].mesh, axis) or getattr(run_config.mesh, axis) or 1 for axis in sharding.AXES
    ]
    return AbstractMesh(tuple(sizes), sharding.AXES, axis_types=(AxisType.Auto,) * 4)


def rows_of(num_rows: int, seq_len: int) -> stream.Rows:
    ids = jnp.zeros((num_rows, seq_len), jnp.int32)
    return stream.Rows(ids, ids, ids > 0, ids, ids, ids)


SLOW_ONES = [pytest.param(size, marks=pytest.mark.slow) for size in ("1b", "4b", "12b", "27b")]


@pytest.mark.parametrize("size", ["270m", *SLOW_ONES])
def test_the_recipe_of_a_size_traces_on_its_published_mesh(size):
    run_config = load(size)
    for name in run_config.stage_order:
        mesh = mesh_of(run_config, name)
        assert mesh.size == CHIPS[size]
        num_bytes = np.zeros(run_config.model.vocab_size, np.int32)
        program = stage_step.make(
            settings.resolve(run_config, name), mesh, num_bytes, teacher_model=config.SIZES["12b"]
        )
        with jax.sharding.use_abstract_mesh(mesh):
            shapes = program.state_shapes()
            inputs = program.frozen_shapes, program.hyperparameters(), program.batch_shapes
            state, logged = jax.eval_shape(program.step(), shapes, *inputs)
        assert logged["kl_to_teacher"].shape == () and jax.tree.structure(state) == jax.tree.structure(shapes)


@pytest.mark.parametrize("size", config.SIZES)
def test_the_recipe_of_a_size_is_the_reports(size):
    run_config = load(size)
    names = ["pretrain", "qat"] if size in ("270m", "1b") else ["pretrain", "long_context", "qat"]
    assert list(run_config.stage_order) == names and run_config.stages["qat"].num_steps == 5_000
    stages = [run_config.stages[name] for name in names]
    assert [stage.seq_len for stage in stages[:2]] == [32_768, 131_072 if len(names) == 3 else 32_768]
    assert [settings.resolve(run_config, name).model.rope_scale for name in names] == [
        1.0,
        *[run_config.model.rope_scale] * (len(names) - 1),
    ]
    tokens = stages[0].num_steps * stages[0].batch_size * stages[0].seq_len
    assert tokens == pytest.approx({"270m": 6e12, "1b": 2e12, "4b": 4e12, "12b": 12e12, "27b": 14e12}[size], rel=1e-5)
    assert len({stage.batch_size * stage.seq_len for stage in stages}) == 1


def test_a_size_that_is_not_published_is_named():
    with pytest.raises(ValueError, match=r"size is '2b'; it must be one of 270m, 1b, 4b, 12b, 27b: --config="):
        load("2b")


@pytest.mark.parametrize("size", config.SIZES)
def test_the_starter_of_a_size_fills_its_slice(size):
    override = "--config.stages.continued.z_loss=0.0"
    run_config = configs.load(f"{EXPERIMENTS / 'starter.py'}:{size}", [override], settings.Train)
    stage = run_config.stages["continued"]
    assert stage.z_loss == 0  # a stage named by a word of Python could not be overridden
    assert run_config.mesh.data == stage.batch_size == STARTER_CHIPS[size] and run_config.model == config.SIZES[size]
    assert stage.num_steps * stage.batch_size * stage.seq_len == pytest.approx(1e9, rel=1e-3)


def test_a_starter_that_there_is_not_is_named():
    with pytest.raises(ValueError, match=r"size is '2b'; it must be one of 270m, 1b, 4b, 12b, 27b: --config="):
        configs.load(f"{EXPERIMENTS / 'starter.py'}:2b", [], settings.Train)


def test_the_demo_is_built():
    run_config = configs.load(str(EXPERIMENTS / "demo.py"), [], settings.Train)
    assert math.prod(getattr(run_config.mesh, axis) or 1 for axis in sharding.AXES) == 1
