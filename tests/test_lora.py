"""Runs with adapters: the base stays, the factors alone train and are saved, and a run goes on to the last bit."""

import re
import shutil

import pytest

from gemma3_jax import settings
from gemma3_jax.checkpoint import manager
from gemma3_jax.cli import configs, program
from tests import runs, toys
from tests.checkpoint.test_hf import make_directory

data = runs.data  # a fixture
MESH = "--config.mesh.data=2"


@pytest.fixture(scope="module")
def base(data):
    """The model of the toy runs, as a Hugging Face directory."""
    model = configs.load(f"{data.parent / 'toy_run.py'}:{data}", [], settings.Train).model
    return make_directory(data.parent / "base", toys.hf_weights(model), model)


@pytest.fixture(scope="module")
def flags(base):
    return [f"--config.init_from={base}", "--config.lora.rank=4", "--config.lora.alpha=8.0"]


@pytest.fixture(scope="module")
def straight(data, flags, tmp_path_factory):
    """A run of two stages that nobody disturbs."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    assert program.main(runs.command(data, workdir, MESH, *flags)) == 0
    return workdir


@pytest.fixture
def train(data, tmp_path, capsys, flags):
    def run(*more, workdir=tmp_path / "run", lora=True):
        capsys.readouterr()
        status = program.main(runs.command(data, workdir, MESH, *(flags if lora else ()), *more))
        return status, capsys.readouterr().err

    run.workdir = tmp_path / "run"
    return run


def test_the_loss_falls_and_the_factors_alone_are_saved(straight):
    rows = runs.rows(straight)
    assert len(rows) == 40 and rows[-1]["loss"] < rows[0]["loss"] - 0.2
    names = [name for name in runs.arrays(straight, 40) if "params" in name]
    assert names and all(name.endswith(("['down']", "['up']")) for name in names)
    moments = [name for name in runs.arrays(straight, 40) if ".mu" in name or "/mu/" in name]
    assert len(moments) == len(names)


def test_a_run_that_was_killed_goes_on_to_the_last_bit(straight, train):
    shutil.copytree(straight, train.workdir)
    for step in (36, 20):
        for saved in manager.steps(train.workdir / "checkpoints"):
            if saved > step:
                shutil.rmtree(train.workdir / "checkpoints" / str(saved))
        status, err = train()
        assert status == 0 and f"resuming from step {step}" in err and "reading base" in err
        runs.assert_same_end(straight, train.workdir)


@pytest.mark.parametrize(
    "change, problem",
    [
        (
            "--config.lora.rank=2",
            "lora of the checkpoint of step 40 is rank 4, alpha 8, attention/ mlp/, but",
        ),
        ("--config.lora.targets=('mlp/',)", "but the config says rank 4, alpha 8, mlp/; restore it"),
        ("--config.lora.rank=0", "lora of the checkpoint of step 40 is rank 4, .*but the config says none; restore it"),
    ],
)
def test_other_adapters_do_not_go_on(straight, train, change, problem):
    status, err = train(change, workdir=straight)
    assert status == 1
    assert re.search(problem, runs.error(err)), err


def test_another_base_does_not_go_on(straight, train, base, tmp_path):
    model = configs.load(f"{base.parent / 'toy_run.py'}:data", [], settings.Train).model
    other = make_directory(tmp_path / "other", toys.hf_weights(model, seed=1), model)
    status, err = train(f"--config.init_from={other}", workdir=straight)
    assert status == 1 and "base of the checkpoint of step 40 is " in runs.error(err)


def test_adapters_need_a_base_of_the_model_s_shape(train, tmp_path):
    _, err = train("--config.init_from=")
    assert "stages.first: lora.rank is 4, and config.init_from is empty; adapters train on a model" in runs.error(err)
    other = make_directory(tmp_path / "other")
    _, err = train(f"--config.init_from={other}")
    assert f"config.stages.first: config.init_from {other} has num_layers 8, config.model.num_layers is 2" in err
    assert not train.workdir.exists()
    _, err = train("--config.lora.rank=9")
    assert "stages.first: lora.rank is 9, but periods/global_layer/attention/key has 16 inputs and 8" in runs.error(err)
    _, err = train("--config.lora.targets=('q_proj',)")
    assert "lora.targets has 'q_proj', which matches no matrix" in runs.error(err)
    _, err = train("--config.stages.second.quant.format=int4")
    assert "lora.rank is 4, and stage second rounds weights that it trains" in runs.error(err)


def test_the_first_line_says_how_much_trains(train):
    first = "--config.stages.first"
    _, err = train("--stage=first", f"{first}.num_steps=1", f"{first}.optimizer.warmup_steps=0")
    assert "trains 2,048 parameters of adapters; their base: " in err
