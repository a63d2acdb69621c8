"""Runs with adapters: the base stays, the factors alone train and are saved, and a run goes on to the last bit."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from gemma3_jax import settings
from gemma3_jax.checkpoint import manager
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.cli import configs, program
from gemma3_jax.stages import build
from tests import runs, toys
from tests.checkpoint.test_hf import make_directory

data = runs.data  # a fixture
MESH = "--config.mesh.data=2"
EVALUATED = ["--config.stages.first.evaluation.every_steps=20", "--config.stages.first.evaluation.num_rows=8"]


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


def fall(workdir) -> float:
    """From the mean loss of the first ten rows to that of the last ten: batches of other texts differ by 0.1."""
    losses = [row["loss"] for row in runs.rows(workdir)]
    return float(np.mean(losses[:10]) - np.mean(losses[-10:]))


def test_the_loss_falls_and_the_factors_alone_are_saved(straight):
    assert len(runs.rows(straight)) == 40 and fall(straight) > 0.08
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
    assert re.search(r" convert --source=(\S+) --target=\1-peft --format=peft\n$", err)


def test_beside_a_base_of_int4_the_loss_falls_and_the_step_compiles_once(train, caplog):
    """Its codes are arrays of 4 bits."""
    first = "--config.stages.first"
    with jax.log_compiles():
        changes = ("--config.lora.base_format=int4", "--config.lora.alpha=32.0", f"{first}.evaluation.every_steps=10")
        status, err = train(*changes, "--stage=first")
    assert status == 0, err
    assert len(runs.rows(train.workdir)) == 20 and fall(train.workdir) > 0.06
    assert len([text for text in caplog.messages if text.startswith("Finished XLA compilation of jit(one)")]) == 1
    assert "first 20 evaluated: nats" in err


# --- what becomes of them ---


def main(capsys, *arguments):
    """What a verb prints, once it has ended well."""
    status = program.main(list(arguments))
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


def logprobs(capsys, path, tmp_path, *flags):
    lists = tmp_path / "lists.json"
    lists.write_text(json.dumps([[2, 17, 99, 300, 5], [2, 700, 41]]))
    out = main(capsys, "evaluate", f"--checkpoint={path}", "--task=logprobs", f"--input={lists}", "--json", *flags)
    return np.concatenate(json.loads(out)["logprobs"])


@pytest.fixture(scope="module")
def exported(straight, tmp_path_factory):
    """The adapters of the run as a directory of PEFT."""
    target = tmp_path_factory.mktemp("peft") / "peft"
    assert program.main(["convert", f"--source={straight}", f"--target={target}", "--format=peft"]) == 0
    return target


def test_a_run_opens_as_its_base_with_the_factors_merged(straight, base, tmp_path, capsys):
    """Its last stage is at another RoPE scale than its base, which the merged model has."""
    run = logprobs(capsys, straight, tmp_path)
    assert np.abs(run - logprobs(capsys, base, tmp_path)).max() > 0.1
    for format in ("hf", "orbax"):
        target = tmp_path / format
        main(capsys, "convert", f"--source={straight}", f"--target={target}", f"--format={format}", "--merge")
        np.testing.assert_allclose(logprobs(capsys, target, tmp_path), run, atol=1e-5)
    out = main(capsys, "generate", f"--checkpoint={straight}", "--prompt_ids=2,17,99", "--max_new_tokens=4", "--json")
    merged = main(
        capsys, "generate", f"--checkpoint={tmp_path / 'hf'}", "--prompt_ids=2,17,99", "--max_new_tokens=4", "--json"
    )
    assert json.loads(out)["ids"] == json.loads(merged)["ids"]


@pytest.mark.slow
def test_adapters_begin_where_a_directory_of_peft_ends(straight, exported, train, capsys):
    """The first loss of a run that begins with them is the loss that they have, not that of the base."""
    status, err = train(f"--config.lora.init_from={exported}", "--stage=first")
    assert status == 0, err
    assert runs.rows(train.workdir)[0]["loss"] < runs.rows(straight)[0]["loss"] - 0.2
    again = train.workdir.with_name("again")  # from the run itself
    assert train(f"--config.lora.init_from={straight}", "--stage=first", workdir=again)[0] == 0
    runs.assert_same_end(train.workdir, again, 20)


@pytest.mark.parametrize(
    "changes, problem",
    [
        (["--config.lora.rank=2"], "lora.rank is 2, and lora.init_from .* has 4; make them one"),
        (["--config.lora.alpha=9"], "lora.alpha is 9.0, and lora.init_from .* has 8.0; make them one"),
        (
            ["--config.lora.targets=('mlp/',)"],
            "targets name 6 matrices, and lora.init_from .* has attention/key of layer 0; let them name the matrices",
        ),
    ],
)
def test_other_adapters_are_nothing_to_begin_with(exported, train, changes, problem):
    status, err = train(f"--config.lora.init_from={exported}", *changes)
    assert status == 1 and re.search(problem, runs.error(err)), err
    assert not train.workdir.exists()


def test_adapters_of_another_base_are_nothing_to_begin_with(straight, train, base, tmp_path):
    model = configs.load(f"{base.parent / 'toy_run.py'}:data", [], settings.Train).model
    other = make_directory(tmp_path / "other", toys.hf_weights(model, seed=1), model)
    begin = f"--config.lora.init_from={straight}"
    for change, problem in (
        (
            f"--config.init_from={other}",
            f"{straight} holds adapters of another base than config.init_from {other}: its",
        ),
        (
            "--config.lora.base_format=int4",
            f"lora.base_format is 'int4', and lora.init_from {straight} has ''; make them one",
        ),
    ):
        status, err = train(begin, change)
        assert status == 1 and problem in runs.error(err), err
    assert not train.workdir.exists()


def test_a_run_with_adapters_is_no_base_of_others(straight, train):
    status, err = train(f"--config.init_from={straight}")
    assert status == 1 and "holds adapters, and config.lora trains others; name their base" in runs.error(err)


def test_a_base_that_has_changed_is_noticed(straight, base, tmp_path, capsys):
    model = configs.load(f"{base.parent / 'toy_run.py'}:data", [], settings.Train).model
    weights = base / "model.safetensors"
    kept = weights.read_bytes()
    try:
        make_directory(base, toys.hf_weights(model, seed=1), model)
        status = program.main(["generate", f"--checkpoint={straight}", "--prompt_ids=2", "--max_new_tokens=1"])
        assert status == 1 and "is not what it was when" in runs.error(capsys.readouterr().err)
    finally:
        weights.write_bytes(kept)
    copy = shutil.copytree(base, tmp_path / "copy")
    np.testing.assert_array_equal(
        logprobs(capsys, straight, tmp_path, f"--base={copy}"), logprobs(capsys, straight, tmp_path)
    )


@pytest.mark.slow
def test_a_run_evaluates_and_distills_from_its_own_start(data, flags, train):
    """In the run the factors are beside their base, in `evaluate` they are merged: one number."""
    status, err = train(
        *EVALUATED,
        "--config.stages.first.loss=distill",
        "--config.stages.first.teacher=start",
        "--config.stages.first.samples.num_samples=800",
        "--stage=first",
    )
    assert status == 0, err
    rows = runs.rows(train.workdir)
    assert rows[0]["kl_to_teacher"] == pytest.approx(0.0, abs=1e-4)  # the start is the base
    [evaluated] = [json.loads(line) for line in (train.workdir / "evaluations.jsonl").read_text().splitlines()]
    whole = configs.load(f"{data.parent / 'toy_run.py'}:{data}", [MESH, *EVALUATED], settings.Train)
    [stage] = build.build([settings.resolve(whole, "first")], train.workdir / "checkpoints")
    params = checkpoint_open.open_checkpoint(train.workdir).load(stage.program.mesh)
    assert stage.evaluation.begin({})(params)["nats"] == pytest.approx(evaluated["nats"], rel=1e-5)
