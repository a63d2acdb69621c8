"""experiments/finetune.py: the model is the checkpoint's, steps and lengths follow from the data, and it trains."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from gemma3_jax import settings
from gemma3_jax.cli import program, recipes
from gemma3_jax.data import dataset
from gemma3_jax.model import config as model_config
from tests import texts, toys
from tests.checkpoint.test_hf import make_directory
from tests.test_cli import fails, run
from tests.test_prepare_input import CHATS

FILE = str(pathlib.Path(__file__).parents[1] / "experiments" / "finetune.py")
MODEL = dataclasses.replace(
    toys.TOY, embed_dim=32, mlp_dim=64, num_layers=2, num_local_per_global=1, vocab_size=texts.TOKENIZER_SIZE
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A checkpoint, documents and chats, prepared with its tokenizer: in sequences of 64 tokens."""
    path = tmp_path_factory.mktemp("finetune")
    make_directory(path / "checkpoint", toys.hf_weights(MODEL), MODEL)
    (path / "checkpoint" / "tokenizer.model").write_bytes(texts.tokenizer_model())
    texts.write_lines(path / "documents.jsonl", [text[:2_000] for text in texts.library()[:12]])
    texts.write_lines(path / "chats.jsonl", [{"messages": turns} for turns in CHATS])
    for name in ("documents", "chats"):
        flags = [f"--input={path / name}.jsonl", f"--tokenizer={path / 'checkpoint'}", f"--output={path / name}"]
        flags += ["--config.seq_lens=(64,)", "--config.duplicates.near=False", "--processes=0"]
        assert program.main(["prepare", *flags]) == 0
    return path


def load(directory, *overrides, data="documents"):
    given = [f"--config.init_from={directory / 'checkpoint'}", f"--config.data={directory / data}"]
    return recipes.load(FILE, [*given, *overrides])


def test_what_the_recipe_leaves_open_is_of_the_checkpoint_and_the_data(directory):
    config = load(directory, "--config.stages.tune.batch_size=4", "--config.stages.tune.epochs=1.5")
    assert config.model == MODEL and config.model.rope_scale == MODEL.rope_scale
    stage = config.stages["tune"]
    num_rows = sum(
        part["rows"]["64"] for part in dataset.open_dataset(directory / "documents").manifest["parts"].values()
    )
    assert stage.seq_len == 64 and num_rows > 20 and (stage.num_steps - 1) * 4 < 1.5 * num_rows <= stage.num_steps * 4
    assert stage.optimizer.peak_lr == settings.TRAINED_LR / 32
    assert stage.optimizer.warmup_steps == round(0.05 * stage.num_steps)
    adapted = load(directory, "--config.lora.rank=2")
    assert adapted.stages["tune"].optimizer.peak_lr == settings.ADAPTERS_LR * settings.TRAINED_LR / 32


def test_what_is_set_stays_as_it_is_set(directory):
    overrides = ["num_steps=7", "optimizer.peak_lr=0.5", "optimizer.warmup_steps=3", "rope_scale=2.0"]
    config = load(directory, *(f"--config.stages.tune.{override}" for override in overrides))
    stage = config.stages["tune"]
    assert (stage.num_steps, stage.optimizer.peak_lr, stage.optimizer.warmup_steps) == (7, 0.5, 3)
    assert settings.resolve(config, "tune").model.rope_scale == 2.0
    load(directory, "--config.model.num_layers=2", f"--config.model.rope_scale={MODEL.rope_scale}")


def test_the_rate_of_every_size_is_that_of_its_width():
    rates = [settings.TRAINED_LR / model.embed_dim for model in model_config.SIZES.values()]
    assert rates == sorted(rates, reverse=True) and 5e-6 < rates[-1] < rates[0] < 5e-5


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["--config.init_from="], "config.model and config.init_from are empty; name the checkpoint whose model is"),
        (["--config.init_from=nowhere"], "config.init_from: nowhere is no directory, and no GGUF file"),
        (["--config.data="], r"tune: seq_len or num_steps is left to the data, and config\.data is empty"),
        (["--config.data=nowhere"], r"config\.stages\.tune: nowhere is not a prepared data set"),
        (["--config.stages.tune.seq_len=65"], r"config\.stages\.tune: .* has no sequences of 65 tokens \(it has: 64\)"),
        (["--config.stages.tune.epochs=0"], r"config\.stages\.tune: num_steps is 0; it must be at least 1"),
        (["--config.optimizer.lr=1"], r"no config\.optimizer; did you mean config\.stages\.tune\.optimizer\.peak_lr\?"),
        (["--config.learning_rate=1"], r"config\.learning_rate; did you mean config\.stages\.tune\.optimizer\.peak_lr"),
        (["--config.stages.tune.lr=1"], r"config\.stages\.tune\.lr; did you mean config\.stages\.tune\.optimizer\.p"),
        (["--config.batch_size=1"], r"no config\.batch_size; did you mean config\.stages\.tune\.batch_size\?"),
        (["--config.stages.tune.epochs=inf"], r"config\.stages\.tune: epochs is inf; it must be at least 0"),
        (["--config.stages.tune.optimizer.warmup_fraction=nan"], r"warmup_fraction is nan; it must be from 0 to 1"),
        (["--config.stages.tune.epochs=-1"], r"config\.stages\.tune: epochs is -1.0; it must be at least 0"),
        (["--config.stages.tune.optimizer.warmup_fraction=2.0"], r"warmup_fraction is 2.0; it must be from 0 to 1"),
        (["--config.model.num_layers=3"], r"init_from .* has num_layers 2, config\.model\.num_layers is 3; leave the"),
        (
            ["--config.model.rope_scale=4.0"],
            r"has rope_scale 8.0, config\.model\.rope_scale is 4.0; leave the second out; a stage may have another",
        ),
    ],
)  # fmt: skip
def test_what_does_not_follow_is_named(directory, overrides, problem):
    with pytest.raises(ValueError, match=problem):
        load(directory, *overrides)


@pytest.mark.parametrize(
    ("flag", "meant"),
    [("--data=x", "--config.data"), ("--epochs=1", "--config.stages.NAME.epochs"), ("--workdr=x", "--workdir")],
)
def test_a_field_without_its_prefix_is_told_from_a_flag(capsys, flag, meant):
    line = fails(capsys, "train", f"--config={FILE}", "--workdir=run", flag)
    assert f"train has no flag {flag.partition('=')[0]}; did you mean {meant}? (" in line


def test_a_length_that_is_not_the_only_one_has_to_be_set(directory, tmp_path):
    flags = [f"--input={directory}/documents.jsonl", f"--tokenizer={directory}/checkpoint", f"--output={tmp_path}/two"]
    assert program.main(["prepare", *flags, "--config.seq_lens=(32,64)", "--processes=0"]) == 0
    with pytest.raises(ValueError, match=r"tune: seq_len is 0, and .*two has sequences of 32, 64 tokens; set one"):
        load(directory, data=tmp_path / "two")
    assert load(directory, "--config.stages.tune.seq_len=32", data=tmp_path / "two").stages["tune"].seq_len == 32


@pytest.mark.parametrize("data", ["documents", "chats"])
def test_a_checkpoint_is_tuned_and_the_run_resumes(directory, tmp_path, capsys, data):
    flags = [f"--config={FILE}", f"--config.init_from={directory}/checkpoint", f"--config.data={directory / data}"]
    flags += [f"--workdir={tmp_path}/run", "--config.execution.dtype=float32", f"--cache={directory}/cache"]
    flags += [f"--config.stages.tune.batch_size={jax.device_count()}"]
    status, _, err = run(capsys, "train", *flags)
    assert status == 0, err
    assert "config.model.num_layers: 0 -> 2" in err and "config.stages.tune.num_steps: 0 -> " in err
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert len(rows) == written["stages"]["tune"]["num_steps"] and written["model"]["embed_dim"] == 32
    assert np.mean([row["loss"] for row in rows[-2:]]) < rows[0]["loss"]
    status, _, err = run(capsys, "train", *flags)
    assert status == 0 and "resuming from step" in err and "changed since the last start" not in err


def test_data_of_another_tokenizer_is_refused_before_training(directory, tmp_path, capsys):
    flags = [f"--input={directory}/documents.jsonl", f"--output={tmp_path}/data", "--config.tokenizer.size=700"]
    assert program.main(["prepare", *flags, "--config.seq_lens=(64,)", "--processes=0"]) == 0
    capsys.readouterr()
    flags = [f"--config={FILE}", f"--config.init_from={directory}/checkpoint", f"--config.data={tmp_path}/data"]
    line = fails(capsys, "train", *flags, f"--workdir={tmp_path}/run")
    assert "another tokenizer than that of config.init_from" in line and "prepare the data with --tokenizer=" in line
