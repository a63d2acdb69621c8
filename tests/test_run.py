"""Runs of `train`, in this process: they go on where they were, and survive what is done to them."""

import dataclasses
import json
import os
import pathlib
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax import provenance, settings
from gemma3_jax.checkpoint import manager
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.cli import program
from gemma3_jax.data import batches, dataset
from gemma3_jax.losses import next_token
from gemma3_jax.stages import build
from tests import disks, runs, texts
from tests.checkpoint.test_hf import make_directory

MESH = "--config.mesh.data=2"  # unless a test asks for another
NO_CHECKPOINTS = "--config.checkpoints.every_steps=0"  # but at the end of a stage

data = runs.data  # a fixture


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """A run that nobody disturbs."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    assert program.main(runs.command(data, workdir, MESH)) == 0
    return workdir


@pytest.fixture
def train(data, tmp_path, capsys):
    """Runs `train` in a directory of the test's own; returns exit status and what it said."""

    def run(*flags, workdir=tmp_path / "run"):
        capsys.readouterr()
        mesh = [] if any("config.mesh" in flag for flag in flags) else [MESH]
        status = program.main(runs.command(data, workdir, *mesh, *flags))
        return status, capsys.readouterr().err

    run.workdir = tmp_path / "run"
    return run


def copy(straight, train):
    shutil.copytree(straight, train.workdir)
    return train.workdir


def go_back(workdir, step):
    """As if the run had been killed right after that checkpoint."""
    for saved in manager.steps(workdir / "checkpoints"):
        if saved > step:
            shutil.rmtree(workdir / "checkpoints" / str(saved))


# --- the rows ---


def test_a_run_writes_a_row_for_every_step_and_its_config(straight):
    rows = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"], row["global_step"]) for row in rows] == [
        (stage, step, step + before) for stage, before in (("first", 0), ("second", 20)) for step in range(1, 21)
    ]
    assert len({row["batch_id"] for row in rows[:20]}) == 20
    for row in rows:
        assert {
            "loss",
            "bits_per_byte",
            "gradient_norm",
            "parameter_norm",
            "update_norm",
            "learning_rate",
        } <= row.keys()
        assert row["tokens_seen"] == row["global_step"] * 8 * 64 and row["tokens_per_second"] > 0
        assert row["tokens_per_second_per_chip"] == pytest.approx(row["tokens_per_second"] / 2)
        assert 0 <= row["data_wait_share"] <= 1 and row["peak_memory_bytes"] > 1 << 20 and not row["skipped"]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
    assert rows[3]["learning_rate"] == pytest.approx(1e-2) and rows[19]["learning_rate"] < 2e-3
    resolved = json.loads((straight / "config.json").read_text())
    assert resolved["stages"]["second"]["rope_scale"] == 8.0 and resolved["deadlines"]["save"] == 3_600.0


def test_every_start_says_by_which_code_and_from_which_data(straight, data):
    [start] = [json.loads(line) for line in (straight / "starts.jsonl").read_text().splitlines()]
    assert start["versions"] == provenance.versions() and start["commit"] == provenance.commit()
    assert start["data"].keys() == {"first", "second"}
    of_stage = start["data"]["second"]
    assert of_stage["data"] == dataset.open_dataset(data).digest and of_stage["teacher"] == "none"
    assert of_stage["tokenizer"] == texts.tokenizer().digest and len(of_stage["mixture"]) == 16


def test_the_time_left_is_that_of_all_stages_that_are_to_come(data, tmp_path, capsys):
    assert program.main(runs.command(data, tmp_path / "run", MESH, NO_CHECKPOINTS)) == 0
    err = capsys.readouterr().err
    assert re.search(r"^first \(1 of 2\) 1/20 .* left, \d\d:\d\d with all stages$", err, flags=re.MULTILINE)
    assert re.search(r"^second \(2 of 2\) 1/20 .* left$", err, flags=re.MULTILINE)


def test_checkpoints_that_are_kept_are_the_last_and_the_ends_of_stages(straight):
    assert manager.steps(straight / "checkpoints") == [40, 39, 36, 20]


def test_it_says_how_it_ended_and_where_the_time_went(data, tmp_path, capsys):
    assert program.main(runs.command(data, tmp_path / "run", MESH, NO_CHECKPOINTS, "--stage=first", "--json")) == 0
    out, err = capsys.readouterr()
    ended = json.loads(out)
    assert (ended["status"], ended["text"], ended["step"]) == (0, "done", 20) and ended["seconds"]["step"] > 0
    loss = np.mean([row["loss"] for row in runs.rows(tmp_path / "run")[-20:]])
    assert err.endswith(
        f"gemma3_jax: done; final loss {loss:.3f}, saved in {tmp_path}/run/checkpoints/20\n"
        f"  next: python -m gemma3_jax evaluate --checkpoint={tmp_path}/run --task=perplexity --input=FILE\n"
        f"        python -m gemma3_jax convert --source={tmp_path}/run --target={tmp_path}/run-hf --format=hf\n"
    )
    assert "first (1 of 2) 20/20  loss " in err and "with all stages" not in err  # this start trains the first alone
    assert err.index("compiling first (the first time, a minute or more)") < err.index("first (1 of 2) 1/20")
    assert re.search(r"^first: 20 steps of .* in all, on data 2 \(cpu\)$", err, flags=re.MULTILINE)
    shares = dict(line.split()[:2] for line in err.splitlines() if line.endswith("%") or line.startswith("in all"))
    assert {"init", "compile", "step", "save", "in"} <= shares.keys()


def test_bits_per_byte_are_nats_over_the_bytes_of_the_targets(straight, data):
    row = json.loads((straight / "metrics.jsonl").read_text().splitlines()[0])
    [first] = build.build([settings.resolve(load_settings(data), "first")], data)
    rows = first.program.stage.next_batch(0, None).rows
    targets = np.asarray(rows.labels)[np.asarray(rows.loss_mask)]
    num_bytes = texts.tokenizer().num_bytes()[targets].sum()
    assert row["num_targets"] == targets.size
    assert row["bits_per_byte"] == pytest.approx(row["loss"] * targets.size / np.log(2) / num_bytes, rel=1e-5)


def load_settings(data):
    from gemma3_jax.cli import configs

    return configs.load(f"{data.parent / 'toy_run.py'}:{data}", [], settings.Train)


# --- resuming ---


def test_a_run_goes_on_in_the_middle_on_the_boundary_and_at_its_end(straight, train):
    """From each place its end is that of the straight run, to the last bit."""
    workdir = copy(straight, train)
    for step in (36, 20):
        go_back(workdir, step)
        status, err = train()
        assert status == 0 and f"resuming from step {step}, in " in err
        runs.assert_same_end(straight, workdir)
    status, err = train()
    assert status == 0 and "resuming from step 40, in second" in err and len(runs.rows(workdir)) == 40


@pytest.mark.slow
def test_one_stage_after_the_other_is_the_whole_walk(straight, train):
    assert train("--stage=first")[0] == 0 and len(runs.rows(train.workdir)) == 20
    assert train("--stage=first")[0] == 0  # it is done already
    assert train("--stage=second")[0] == 0
    runs.assert_same_end(straight, train.workdir)
    assert train("--stage=first")[0] == 0 and len(runs.rows(train.workdir)) == 40


def test_a_stage_that_cannot_begin_says_what_to_run_first(straight, train):
    _, err = train("--stage=second")
    assert "--stage is second, which starts where first ends; run that first, or name" in runs.error(err)
    workdir = train.workdir.with_name("stopped")
    shutil.copytree(straight, workdir)
    go_back(workdir, 20)
    (workdir / "checkpoints" / "20").rename(workdir / "20")
    _, err = train("--stage=second", workdir=workdir)
    assert "run that first, or name a checkpoint with --config.init_from" in runs.error(err)


@pytest.mark.slow
def test_gradient_accumulation_and_a_moving_average_change_no_loss(straight, train):
    status, _ = train(
        NO_CHECKPOINTS,
        "--stage=first",
        "--config.stages.first.grad_accum_steps=1",
        "--config.stages.first.ema_decay=0.5",
    )
    assert status == 0 and runs.rows(train.workdir) == runs.rows(straight)[:20]
    average, params = (
        {
            name.rpartition("params")[2].rpartition("ema_params")[2]: array
            for name, array in found.items()
            if part in name
        }
        for found in [runs.arrays(train.workdir, 20)]
        for part in ("ema_params/", "['params']")
    )
    assert len(average) == len(params) > 10


def test_changed_settings_are_told_and_others_kept_from_going_on(straight, train):
    workdir = copy(straight, train)
    go_back(workdir, 36)
    status, err = train("--config.stages.second.optimizer.peak_lr=5e-3")
    assert status == 0
    assert "changed since the last start: config.stages.second.optimizer.peak_lr: 0.01 -> 0.005" in err
    go_back(workdir, 36)
    for flag, problem in {
        "--config.model.embed_dim=32": "model.embed_dim of the checkpoint of step 36 is 16, but the config says 32",
        "--config.stages.first.num_steps=25": "is of step 16 of second, which now has 20 steps and 25 before it",
        "--config.stage_order=('first',)": "step 36 is of stage second, which config.stage_order does not have",
        "--config.seed=1": "the data is not what the checkpoint was trained on: seed was 0 and is 1",
        "--config.stages.second.optimizer.first_moment_dtype=bfloat16": "saved by another optimizer: opt_state/1/mu/",
    }.items():
        status, err = train(flag)
        assert status == 1
        assert problem in runs.error(err)
    assert manager.steps(workdir / "checkpoints") == [36, 20]
    status, err = train("--config.seed=1", "--allow_data_change")
    assert status == 0 and "warning: the data changed: seed was 0 and is 1" in err


def test_another_tokenizer_is_named(straight, train, tmp_path):
    workdir = copy(straight, train)
    go_back(workdir, 36)
    other = tmp_path / "other"
    other.mkdir()
    changed = texts.toy_dataset(other, tokenizer=texts.settings.TokenizerConfig(size=780, max_characters=300_000)).path
    status, err = train(f"--config.data={changed}")
    assert status == 1 and re.search("tokenizer of the checkpoint of step 36 is .*the config says", runs.error(err))


# --- damage ---


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(straight, train):
    workdir = copy(straight, train)
    largest = max((workdir / "checkpoints" / "40" / "params").rglob("*"), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    status, err = train()
    assert status == 0 and "checkpoints/40 is damaged" in err and "resuming from step 39" in err
    assert (workdir / "damaged" / "40").is_dir()
    runs.assert_same_end(straight, workdir)


def poison(monkeypatch, value, *steps):
    """The loss of these steps of a stage is `value`."""
    make, call = next_token.make, batches.Batches.__call__

    def poisoned(*args, **kwargs):
        inner = make(*args, **kwargs)

        def outer(params, frozen, rows):
            total, num_targets, sums = inner(params, frozen, rows)
            factor = jnp.where(rows.labels[0, 0] == 799, value * num_targets, 1.0)
            return factor * total, num_targets, {**sums, "loss": factor * sums["loss"]}

        return outer

    def marked(self, step, now):
        batch = call(self, step, now)
        if step in steps:
            labels = batch.rows.labels.at[0, 0].set(799)
            return dataclasses.replace(batch, rows=batch.rows._replace(labels=labels))
        return batch

    monkeypatch.setattr(next_token, "make", poisoned)
    monkeypatch.setattr(batches.Batches, "__call__", marked)


def test_a_batch_that_is_not_finite_is_skipped_counted_and_named(straight, train, monkeypatch):
    poison(monkeypatch, float("nan"), 4)
    status, err = train(NO_CHECKPOINTS, "--stage=first")
    assert status == 0 and "1 skipped" in err
    rows = runs.rows(train.workdir)
    assert [row["global_step"] for row in rows if row["skipped"]] == [5] and rows[4]["loss"] is None
    [skipped] = [json.loads(line) for line in (train.workdir / "skipped.jsonl").read_text().splitlines()]
    assert skipped["batch_id"] == rows[4]["batch_id"] == runs.rows(straight)[4]["batch_id"]
    before, expected = ([row["loss"] for row in found[:4]] for found in (rows, runs.rows(straight)))
    assert before == pytest.approx(expected, rel=1e-5) and np.isfinite([row["loss"] for row in rows[5:]]).all()
    assert rows[5]["learning_rate"] == rows[4]["learning_rate"]  # no update was taken


@pytest.mark.slow  # tests/train/test_step.py has it for a step
def test_a_spike_is_skipped(train, monkeypatch):
    poison(monkeypatch, 1e3, 15)
    spike_guard = ["--config.stages.first.spike_guard.num_steps_before=10"]
    status, _ = train(NO_CHECKPOINTS, "--stage=first", *spike_guard)
    rows = runs.rows(train.workdir)
    assert status == 0 and [row["step"] for row in rows if row["skipped"]] == [16] and rows[15]["loss"] > 1e3


def test_too_many_in_a_row_end_the_run_with_its_own_status_and_the_last_good_checkpoint(train, monkeypatch):
    poison(monkeypatch, float("nan"), *range(7, 20))
    status, err = train("--config.stages.first.spike_guard.max_skipped_in_a_row=4")
    assert status == 70
    assert "diverged: the last 4 steps of first were skipped: their loss, gradient norm or update was not finite" in err
    assert "the last good checkpoint is that of step 9" in err
    assert len((train.workdir / "skipped.jsonl").read_text().splitlines()) == 4


@pytest.fixture
def small_disk(tmp_path):
    with disks.small(tmp_path / "disk", kib=1024, is_busy=True) as disk:
        yield disk


@pytest.mark.slow
def test_a_full_disk_is_told_and_ends_the_run_after_some_failures(straight, train, small_disk):
    """What was saved before stands, and once there is room the same command resumes, to the same end."""
    workdir = small_disk / "run"
    status, err = train("--config.log.tensorboard=False", workdir=workdir)
    assert status == 1 and "warning: no checkpoint (1 of 3 failures in a row)" in err and "No space left" in err
    assert "3 checkpoints in a row failed (config.checkpoints.max_failures)" in runs.error(err)
    disks.remount(small_disk, "size=64m")
    status, err = train("--config.log.tensorboard=False", workdir=workdir)
    assert status == 0
    runs.assert_same_end(straight, workdir)


# --- where it starts ---


def test_a_run_starts_from_what_another_one_ends_with(straight, train, data):
    """A run directory, a step of it, and a Hugging Face directory made of it begin alike."""
    step = straight / "checkpoints" / "20"
    hf = train.workdir.with_name("hf")
    assert program.main(["convert", f"--source={step}", f"--target={hf}", "--format=hf"]) == 0
    seen = []
    for number, start in enumerate((step, hf)):
        workdir = train.workdir.with_name(f"run{number}")
        status, err = train(NO_CHECKPOINTS, "--stage=second", f"--config.init_from={start}", workdir=workdir)
        assert status == 0 and f"reading {start}" in err
        seen.append([{**row, "global_step": row["global_step"]} for row in runs.rows(workdir)])
    assert seen[0] == seen[1] == runs.rows(straight)[20:]
    assert checkpoint_open.open_checkpoint(straight).model.rope_scale == 8.0


def test_a_checkpoint_of_another_model_or_tokenizer_is_refused(straight, train, tmp_path):
    make_directory(tmp_path / "hf")
    status, err = train(f"--config.init_from={tmp_path / 'hf'}")
    assert status == 1 and "config.init_from" in runs.error(err) and "make them one" in runs.error(err)
    other = tmp_path / "other"
    other.mkdir()
    changed = texts.toy_dataset(other, tokenizer=texts.settings.TokenizerConfig(size=780, max_characters=300_000)).path
    status, err = train(f"--config.init_from={straight}", f"--config.data={changed}")
    assert status == 1 and "was made with tokenizer" in runs.error(err)


def test_checkpoints_none_of_which_can_be_read_end_the_run_and_cost_it_nothing(straight, train):
    workdir = copy(straight, train)
    for file in (workdir / "checkpoints").glob("*/meta/_METADATA"):
        file.write_text("{")
    status, err = train()
    assert status == 1
    assert re.search("none of the 4 checkpoints in .*start a new run in another --workdir", runs.error(err))
    assert len(runs.rows(workdir)) == 40 and len(manager.steps(workdir / "checkpoints")) == 4


def test_a_config_that_was_cut_short_is_written_anew(straight, train):
    workdir = copy(straight, train)
    for content, problem in (
        ("", "is not JSON"),
        ("[" * 100_000, "is nested too deeply"),
        ("[]", "must be a JSON object"),
    ):
        (workdir / "config.json").write_text(content)
        status, err = train()
        assert status == 0 and re.search(rf"config\.json.*{problem}.*is not a config that a run wrote, and is rep", err)
        assert json.loads((workdir / "config.json").read_text())["stage_order"] == ["first", "second"]


def test_a_directory_that_is_removed_while_it_trains_is_an_error_not_a_success(train, monkeypatch):
    call = batches.Batches.__call__

    def removing(self, step, now):
        if step == 5:
            shutil.rmtree(train.workdir)
        return call(self, step, now)

    monkeypatch.setattr(batches.Batches, "__call__", removing)
    status, err = train(NO_CHECKPOINTS, "--stage=first")
    assert status == 1 and re.search("run was removed or replaced while the run was on.*put it back", runs.error(err))


def test_a_directory_that_is_no_path_is_refused(data, capsys):
    assert program.main(runs.command(data, "gs://bucket/run")) == 1
    assert "--workdir is gs://bucket/run; it must be a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        ("--config.stages.first.optimiser.peak_lr=1", "did you mean config.stages.first.optimizer?"),
        ("--config.stages.first.optimizer.warmup_steps=21", "warmup_steps is 21 and decay_steps 0; their sum"),
        ("--config.stage_order=('first','third')", "config: stage_order names stage third; stages has: first, second"),
        ("--config.data=nowhere", "config.stages.first: nowhere is not a prepared data set"),
        ("--config.data=", "config.stages.first: data is empty, as config.data is; name the directory"),
        ("--config.stages.second.seq_len=63", "config.stages.second: .* has no sequences of 63 tokens"),
        ("--config.stages.second.batch_size=7", "second: 7 sequences in a step do not split over replica x data = 2"),
        ("--config.mesh.seq=3", "mesh has replica x seq x model = 3, which does not divide the 8 devices"),
        ("--config.mesh.data=9", "mesh is replica 1 x data 9 .* but there are 8"),
        ("--config.model.vocab_size=700", "has 800 pieces, config.model.vocab_size is 700"),
        ("--config.init_from=nowhere", "nowhere is no directory, and no GGUF file; a checkpoint is one or the other"),
        ("--config.model.head_dim=7", "config.model: model.head_dim is 7; it must be even"),
        ("--profile=9", "--profile is 9; it must be START:STOP"),
        ("--stage=third", "--stage is third; config.stage_order has: first, second"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_begun(train, flag, problem):
    status, err = train(flag)
    assert status == 1 and re.search(problem.replace("(", r"\("), runs.error(err)), err
    assert not (train.workdir / "checkpoints").exists()


@pytest.mark.slow
def test_a_trace_is_written(train):
    assert train("--stage=first", "--profile=3:5")[0] == 0
    assert list((train.workdir / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_a_run_goes_on_on_another_mesh_to_the_same_end_but_for_rounding(straight, train):
    workdir = copy(straight, train)
    go_back(workdir, 36)
    mesh = {"replica": 2, "data": 1, "seq": 2, "model": 2}
    assert train(*(f"--config.mesh.{axis}={size}" for axis, size in mesh.items()))[0] == 0
    runs.assert_same_but_for_rounding(straight, workdir)


@pytest.mark.slow
def test_the_directory_of_a_run_may_be_anywhere(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train("--stage=first", workdir=pathlib.Path("here"))[0] == 0
    assert (tmp_path / "here" / "checkpoints" / "20").is_dir()
