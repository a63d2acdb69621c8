"""What is measured while a stage trains, and a stage whose weights are rounded: against itself as it began."""

import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax import settings, sharding
from gemma3_jax.checkpoint import manager, orbax
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.cli import configs, program
from gemma3_jax.data import order, stream
from gemma3_jax.model import execution, masks, parameters
from gemma3_jax.quant import settings as quant_settings
from gemma3_jax.quant import view
from gemma3_jax.stages import evaluation, inputs
from tests import runs

MESH = "--config.mesh.data=2"
MEASURED = ("--config.stages.second.evaluation.every_steps=8", "--config.stages.second.evaluation.num_rows=12")
QAT = (
    *MEASURED,
    "--config.stages.second.loss=distill",
    "--config.stages.second.teacher=start",
    "--config.stages.second.samples.estimator=whole",
    "--config.stages.second.quant.format=int4",
)

data = runs.data  # a fixture


def train(data, workdir, *flags):
    return program.main(runs.command(data, workdir, MESH, *flags))


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """A run whose second stage rounds, undisturbed."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    assert train(data, workdir, *QAT) == 0
    return workdir


@pytest.fixture
def again(straight, tmp_path, data, capsys):
    """Goes on with a copy of the run as it was after a step; returns exit status and what it said."""

    def run(step, *flags, without=(), without_rows=()):
        workdir = tmp_path / "run"
        shutil.copytree(straight, workdir)
        for saved in manager.steps(workdir / "checkpoints"):
            if saved > step or saved in without:
                shutil.rmtree(workdir / "checkpoints" / str(saved))
        file = workdir / "evaluations.jsonl"
        kept = [
            line for line in file.read_text().splitlines(True) if json.loads(line)["global_step"] not in without_rows
        ]
        file.write_text("".join(kept))
        capsys.readouterr()
        return train(data, workdir, *QAT, *flags), capsys.readouterr().err

    run.workdir = tmp_path / "run"
    return run


def measured(workdir):
    rows = [json.loads(line) for line in (workdir / "evaluations.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "time"} for row in rows]


def means(nats, kl, teacher_nats):
    return {"cross_entropy": nats, "kl_to_teacher": kl, "teacher_cross_entropy": teacher_nats}


def test_recovered_is_the_share_of_what_rounding_cost():
    found = evaluation.compare(means(math.log(20), 0.4, math.log(10)), means(math.log(12), 0.1, math.log(10)))
    assert found["recovered_perplexity"] == pytest.approx(0.8) and found["recovered_kl"] == pytest.approx(0.75)
    assert (found["unquantized_nats"], found["rounded_kl"], found["trained_kl"]) == (math.log(10), 0.4, 0.1)


def test_of_what_cost_nothing_there_is_no_share():
    found = evaluation.compare(means(2.0, 0.0, 2.1), means(2.0, 0.0, 2.1))
    assert math.isnan(found["recovered_perplexity"]) and math.isnan(found["recovered_kl"])


def test_it_is_measured_at_intervals_and_at_the_end(straight):
    rows = measured(straight)
    assert [(row["stage"], row["step"], row["global_step"]) for row in rows] == [
        ("second", 8, 28),
        ("second", 16, 36),
        ("second", 20, 40),
    ]
    assert len({(row["unquantized_nats"], row["rounded_nats"], row["rounded_kl"]) for row in rows}) == 1
    assert len({row["trained_kl"] for row in rows}) == 3


def test_it_says_what_the_three_models_say_of_rows_that_no_stage_learns_from(data, straight):
    """Once more by logits, of the rows after those that each stage learns from: 20 steps of 8."""
    run_config = configs.load(f"{data.parent / 'toy_run.py'}:{data}", [], settings.Train)
    config = settings.resolve(run_config, "second")
    model, opened = config.model, inputs.open_data(config)
    mesh = sharding.make_mesh()
    first = evaluation.first_unseen(opened.rows, [(opened.rows, 20)])
    with stream.Stream(opened.dataset, opened.rows, mesh, first_step=first) as batches:
        rows = jax.tree.map(lambda *x: jnp.concatenate(x), next(batches).rows, next(batches).rows)
    assert rows.row_ids.min() >= 160
    rounding = jax.jit(view.make(quant_settings.Quant(format="int4"), parameters.dims(model)))

    @jax.jit
    def said(params):
        bound = parameters.bind(model, params)
        hidden = bound(rows.tokens, masks.TokenLayout(rows.segments, rows.positions), execute=execution.REFERENCE)
        return jax.nn.log_softmax(bound.logits(hidden))

    def log_probs(step, see):
        params = checkpoint_open.open_checkpoint(straight / "checkpoints" / str(step)).load(mesh)
        return np.asarray(said(see(params))).astype(np.float64)[np.asarray(rows.loss_mask)]

    labels = np.asarray(rows.labels)[np.asarray(rows.loss_mask)]
    start = log_probs(20, lambda params: params)
    nats = lambda found: -found[np.arange(len(labels)), labels].mean()  # noqa: E731
    kl = lambda found: (np.exp(start) * (start - found)).sum(-1).mean()  # noqa: E731
    row = measured(straight)[-1]
    assert row["unquantized_nats"] == pytest.approx(nats(start), rel=1e-4)
    for name, step in (("rounded", 20), ("trained", 40)):
        found = log_probs(step, rounding)
        assert row[f"{name}_nats"] == pytest.approx(nats(found), rel=1e-4)
        assert row[f"{name}_kl"] == pytest.approx(kl(found), rel=1e-3)


@pytest.mark.slow
def test_rows_that_were_seen_before_are_said_to_be(data, tmp_path, capsys):
    parts = json.loads((data / "manifest.json").read_text())["parts"].values()
    num_rows = sum(part["rows"]["64"] for part in parts)
    all_rows = [f"--config.stages.second.evaluation.num_rows={num_rows}", "--config.stages.second.num_steps=1"]
    flags = [
        *MEASURED,
        *all_rows,
        "--config.stage_order=('second',)",
        "--config.stages.second.optimizer.warmup_steps=0",
    ]
    assert train(data, tmp_path / "run", *flags) == 0
    assert "warning: second is evaluated on sequences that it trains on: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_stage_that_rounds_nothing_tells_its_nats(data, tmp_path):
    assert train(data, tmp_path / "run", *MEASURED, "--config.stage_order=('second',)") == 0
    rows = measured(tmp_path / "run")
    assert [row["step"] for row in rows] == [8, 16, 20] and rows[-1]["nats"] < rows[0]["nats"]
    assert rows[0]["bits_per_byte"] > 0 and "trained_kl" not in rows[0]


def test_rows_that_are_held_out_are_in_no_mixture_that_was_learned_from():
    """Two parts, one of them scarce in what was learned from before, and plenty now."""

    def made(shares, batch_size):
        return order.Order("", 64, batch_size, 0, dict.fromkeys(shares, 4_000), shares)

    before, now = made({"text": 0.9, "chat": 0.1}, 8), made({"text": 0.2, "chat": 0.8}, 4)
    learned = [(before, 100), (now, 50)]
    seen = {of.row(step, row) for of, count in learned for step in range(count) for row in range(of.batch_size)}
    first = evaluation.first_unseen(now, learned)
    assert 720 / 0.2 / 4 <= first < 1_000
    assert not seen & {now.row(step, row) for step in range(first, first + 50) for row in range(4)}
    assert seen & {now.row(step, row) for step in range(50, 100) for row in range(4)}  # what comes next will not do


def test_an_evaluation_that_was_left_out_in_a_hurry_is_made_up_for(straight, again):
    status, _ = again(36, without_rows=(36,))
    assert status == 0 and measured(straight) == measured(again.workdir)


@pytest.mark.slow
def test_two_hosts_and_microbatches_measure_the_same(data, straight, tmp_path):
    second = [*QAT, "--stage=second", f"--config.init_from={straight / 'checkpoints' / '20'}"]
    for process in runs.start_two(runs.command(data, tmp_path / "run", *second, "--config.mesh.data=8")):
        runs.finish(process)
    parts = tmp_path / "parts"
    assert train(data, parts, *second, "--config.stages.second.grad_accum_steps=2") == 0
    for workdir in (tmp_path / "run", parts):
        for one, other in zip(measured(workdir), measured(straight), strict=True):
            assert one.keys() == other.keys() and one["global_step"] == other["global_step"]
            for name in ("unquantized_nats", "rounded_nats"):
                assert one[name] == pytest.approx(other[name], rel=1e-4), name
            assert one["trained_nats"] == pytest.approx(other["trained_nats"], rel=1e-3)  # rounding errors grow


@pytest.mark.slow
@pytest.mark.parametrize("step", [20, 27, 36, 39])
def test_cut_short_anywhere_it_ends_like_the_straight_run(straight, again, step):
    status, err = again(step)
    assert status == 0, err
    runs.assert_same_end(straight, again.workdir)
    assert measured(straight) == measured(again.workdir)


def test_the_checkpoint_it_began_with_is_kept_and_needed(straight, again):
    assert 20 in manager.steps(straight / "checkpoints")
    status, err = again(36, without=(20,))
    assert status == 1 and re.search(r"error: .*checkpoints/20 is not there, which second began with", runs.error(err))


def test_another_rounding_is_another_run(again):
    status, err = again(36, "--config.stages.second.quant.format=sfp8")
    assert status == 1 and "quant of the checkpoint of step" in err and "int4" in err and "sfp8" in err


@pytest.mark.slow
def test_begun_from_another_run_it_saves_what_it_begins_with(data, straight, tmp_path):
    workdir, start = tmp_path / "run", straight / "checkpoints" / "20"
    flags = [*QAT, "--stage=second", f"--config.init_from={start}"]
    assert train(data, workdir, *flags) == 0
    assert 20 in manager.steps(workdir / "checkpoints")
    ours, theirs = (runs.arrays(of, 20) for of in (workdir, straight))
    params = [name for name in ours if "params" in name]
    assert params and all(np.array_equal(ours[name], theirs[name]) for name in params)
    assert measured(workdir) == measured(straight)
    shutil.rmtree(workdir / "checkpoints" / "40")
    assert train(data, workdir, *flags) == 0 and measured(workdir) == measured(straight)


def test_a_checkpoint_says_what_it_was_trained_for(straight):
    assert orbax.read_quant(straight / "checkpoints" / "40") == {"format": "int4", "embedding": "float16"}
    assert not orbax.read_quant(straight / "checkpoints" / "20")
    assert (straight / "tokenizer.model").read_bytes() == (runs.texts.tokenizer_model())


def test_what_cannot_be_rounded_so_is_refused_at_the_start(data, tmp_path, capsys):
    assert train(data, tmp_path / "run", *QAT, "--config.stages.second.quant.format=q4_0") == 1
    line = runs.error(capsys.readouterr().err)
    assert re.search(r"config.stages.second: .* sums over 16 weights; q4_0 needs a multiple of 32", line)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_start_of_a_stage_is_no_teacher_for_teach(data, tmp_path, capsys):
    line = ["teach", f"--config={data.parent / 'toy_run.py'}:{data}", *QAT, f"--output={tmp_path / 'said'}"]
    assert program.main([*line, "--stage=second", "--config.stages.second.samples.estimator=top_k"]) == 1
    assert "teacher is start, which exists in a run alone" in capsys.readouterr().err
    assert train(data, tmp_path / "run", *QAT, "--config.teacher=start") == 1
    assert "teacher is start, which is for one stage; set config.stages.NAME.teacher" in capsys.readouterr().err


@pytest.mark.slow
def test_a_teacher_that_knows_nothing_is_warned_of(data, tmp_path, capsys):
    short = ["num_steps=1", "optimizer.warmup_steps=0", "evaluation.every_steps=0"]
    short = [f"--config.stages.second.{setting}" for setting in short]
    assert train(data, tmp_path / "run", *QAT, *short, "--config.stage_order=('second',)") == 0
    assert "warning: the teacher of second is the fresh parameters that the run begins with" in capsys.readouterr().err


def test_a_run_that_rounds_is_scored_as_it_is_trained(data, straight, tmp_path, capsys):
    (tmp_path / "ids.json").write_text("[[2, 300, 301, 302]]")
    ask = ["evaluate", "--task=logprobs", f"--input={tmp_path / 'ids.json'}"]
    assert (
        program.main(["convert", f"--source={straight}", f"--target={tmp_path / 'hf'}", "--format=hf", "--quant=int4"])
        == 0
    )
    said = []
    for checkpoint in (straight, tmp_path / "hf"):
        capsys.readouterr()
        assert program.main([*ask, f"--checkpoint={checkpoint}"]) == 0
        said.append(capsys.readouterr())
    assert "weights are rounded as they were in training: int4, embedding float16" in said[0].err
    assert said[0].out == said[1].out


def test_intervals_and_rows_are_checked(data, tmp_path, capsys):
    assert train(data, tmp_path / "run", *QAT, "--config.stages.second.evaluation.num_rows=0") == 1
    assert "num_rows 0; the first must be at least 0, the second at least 1" in capsys.readouterr().err
