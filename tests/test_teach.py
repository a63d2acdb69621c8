"""A teacher beside its student, and what it said before: by `teach` and `train`, and what they refuse."""

import contextlib
import io
import json
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from gemma3_jax import chips
from gemma3_jax.cli import program
from gemma3_jax.data.targets import codec
from gemma3_jax.data.targets import reader as targets_reader
from tests import runs

WALK = "--config.stage_order=('first',)"
STEPS = "--config.stages.first.num_steps=6"
ESTIMATOR = "--config.stages.first.samples.estimator="
DISTIL = ("--config.stages.first.loss=distill", "--config.stages.first.samples.num_samples=8", f"{ESTIMATOR}systematic")
MESH = "--config.mesh.data=2"
TWO_MICROBATCHES = "--config.stages.first.grad_accum_steps=2"

data = runs.data  # a fixture


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    """A run of a wider model."""
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    wider = ["--config.model.embed_dim=24", "--config.model.num_heads=4", "--config.seed=3"]
    assert program.main(runs.command(data, workdir, WALK, STEPS, MESH, *wider)) == 0
    return workdir


def command(verb, data, *flags):
    return [verb, f"--config={data.parent / 'toy_run.py'}:{data}", WALK, STEPS, *DISTIL, *flags]


def run(line) -> tuple[int, str, str]:
    """Exit status, and what was said on stdout and stderr."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = program.main(line)
    return status, out.getvalue(), err.getvalue()


def test_options_of_the_chip_reach_the_compiler(data, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(chips, "compiler_options", lambda device_kind: {"xla_no_such_option": device_kind})
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option: 'xla_no_such_option'"):
        run(command("teach", data, f"--checkpoint={teacher}", f"--output={tmp_path / 'targets'}", MESH))


@pytest.fixture(scope="module")
def stored(data, teacher, tmp_path_factory):
    """What it says of every row, with every flag that is asked for; `stored.said`: stdout and stderr of each."""
    directory = tmp_path_factory.mktemp("targets")

    def make(*flags):
        output = directory / re.sub(r"\W+", "-", "-".join(flags) or "plain")
        if output not in make.said:
            line = command("teach", data, f"--checkpoint={teacher}", f"--output={output}", "--json", MESH, *flags)
            status, *make.said[output] = run(line)
            assert status == 0, make.said[output]
        return output

    make.said = {}
    return make


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The run of a student with these flags, made once; `trained.said`: stderr of each."""
    directory = tmp_path_factory.mktemp("runs")

    def make(*flags):
        workdir = directory / str(len(make.said))
        if flags not in make.said:
            status, _, err = run(runs.command(data, workdir, WALK, STEPS, *DISTIL, MESH, *flags))
            assert status == 0, err
            make.said[flags], make.at[flags] = err, workdir
        return make.at[flags]

    make.said, make.at = {}, {}
    return make


@pytest.fixture
def train(data, tmp_path):
    """Trains a student; returns exit status and what was said."""

    def train(*flags, workdir=tmp_path / "run"):
        status, _, err = run(runs.command(data, workdir, WALK, STEPS, *DISTIL, MESH, *flags))
        return status, err

    return train


def assert_same_said(one, other):
    """Of every token, but for what rounding tips over."""
    one, other = targets_reader.open_targets(one), targets_reader.open_targets(other)
    assert one.origin == other.origin
    is_same = []
    for number in range(one.num_rows):
        left, right = (codec.decode(found.files.read(*map(int, found.locations[number]))) for found in (one, other))
        is_same.append((left["ids"] == right["ids"]).mean())
        np.testing.assert_allclose(left["label_log_prob"], right["label_log_prob"], rtol=1e-4, atol=1e-4)
    assert np.mean(is_same) > 0.99


# --- learning ---


def test_a_student_learns_from_a_teacher_beside_it(trained, teacher):
    flags = (f"--config.teacher={teacher}",)
    rows, err = runs.rows(trained(*flags)), trained.said[flags]
    assert re.search(r"its teacher: [\d.]+ MiB a device and \d+% of the FLOPs", err)
    assert f"reading teacher {teacher / 'checkpoints' / '6'} (orbax, " in err
    assert len(rows) == 6 and rows[-1]["loss"] < rows[0]["loss"]
    for name in ("cross_entropy", "teacher_cross_entropy", "kl_to_teacher", "captured_mass", "agreement"):
        assert np.isfinite([row[name] for row in rows]).all(), name
    # Of the same tokens: what both say, in bits of the text's bytes.
    ratios = [row["bits_per_byte"] / row["cross_entropy"] for row in rows]
    assert 0.1 < min(ratios) and max(ratios) < 1.5


SLOW_ONES = [pytest.param(name, marks=pytest.mark.slow) for name in ("stratified", "top_k")]


@pytest.mark.parametrize("estimator", ["systematic", *SLOW_ONES])
def test_targets_stored_before_teach_the_same(trained, teacher, stored, estimator):
    samples = [f"{ESTIMATOR}{estimator}"] if estimator != "systematic" else []
    beside = trained(f"--config.teacher={teacher}", *samples)
    before = trained(f"--config.stages.first.targets={stored(*samples)}", *samples)
    for one, other in zip(runs.rows(beside), runs.rows(before), strict=True):
        assert one["batch_id"] == other["batch_id"]
        # Weights are stored in 8 bits, but for those that are 1 / M.
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4 if estimator == "systematic" else 5e-3)


@pytest.mark.slow
def test_the_same_is_said_on_any_mesh(stored):
    assert_same_said(stored(), stored("--config.mesh.seq=4"))


@pytest.mark.slow
def test_the_same_is_said_of_a_part_of_the_rows_at_a_time(stored):
    assert_same_said(stored(), stored(TWO_MICROBATCHES))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["stored", "whole", "drawn"])
def test_a_student_learns_the_same_from_microbatches(trained, teacher, stored, source):
    beside = [f"--config.teacher={teacher}", *([f"{ESTIMATOR}whole"] if source == "whole" else [])]
    given = [f"--config.stages.first.targets={stored()}"] if source == "stored" else beside
    one, other = (runs.rows(trained(*given, *flags)) for flags in ((), (TWO_MICROBATCHES,)))
    for left, right in zip(one, other, strict=True):
        for name in ("loss", "kl_to_teacher"):
            if name == "kl_to_teacher" and source == "drawn" and left["step"] > 1:
                continue  # a last bit of the teacher's logits has moved a draw to the next id, at step 5
            assert left[name] == pytest.approx(right[name], rel=1e-4), name


def test_a_run_goes_on_with_its_teacher_and_ends_as_if_nothing_had_been(train, trained, teacher, tmp_path):
    straight, broken = trained(f"--config.teacher={teacher}"), tmp_path / "broken"
    shutil.copytree(straight, broken)
    shutil.rmtree(broken / "checkpoints" / "6")
    assert train(f"--config.teacher={teacher}", workdir=broken)[0] == 0
    runs.assert_same_end(straight, broken, step=6)


@pytest.mark.slow
def test_a_teacher_of_another_kind_is_read_and_only_its_tokenizer_is_not_known(train, teacher, tmp_path):
    exported = tmp_path / "hf"
    assert program.main(["convert", f"--source={teacher}", f"--target={exported}", "--format=hf"]) == 0
    status, err = train(f"--config.teacher={exported}")
    assert status == 0, err
    assert f"warning: teacher {exported} does not say which tokenizer it was trained with" in err


# --- what is refused ---


def test_a_stage_that_distils_needs_a_teacher(train):
    status, err = train()
    assert status == 1
    assert runs.error(err).endswith(
        "config.stages.first: loss is distill, and teacher is empty, as config.teacher is; name a checkpoint: "
        "--config.teacher=DIR, or what teach wrote: --config.stages.first.targets=DIR"
    )


def test_a_teacher_for_a_stage_that_does_not_distil_is_refused(train, teacher):
    status, err = train(f"--config.stages.first.teacher={teacher}", "--config.stages.first.loss=next_token")
    assert status == 1 and re.search("loss is next_token; set .*to distill", runs.error(err))


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("loss=dense", r"loss is 'dense'; it must be one of next_token, distill"),
        ("samples.estimator=best", r"estimator is 'best'; it must be one of stratified, systematic, "),
        ("samples.num_samples=0", r"num_samples is 0; it must be at least 1"),
        ("samples.num_samples=801", r"num_samples is 801, of a vocabulary of 800 ids; it must be at most 800"),
        ("samples.temperature=0.0", r"temperature is 0.0; it must be above 0"),
        ("hard_label_weight=1.5", r"hard_label_weight is 1.5; it must be from 0 to 1"),
    ],
)
def test_settings_that_cannot_be_are_named(train, teacher, flag, text):
    status, err = train(f"--config.teacher={teacher}", f"--config.stages.first.{flag}")
    assert status == 1 and re.search(text, runs.error(err))


def test_the_whole_of_what_a_teacher_says_is_not_stored(data, teacher, tmp_path):
    line = command("teach", data, f"--checkpoint={teacher}", f"--output={tmp_path / 'said'}", f"{ESTIMATOR}whole")
    status, _, err = run(line)
    assert status == 1 and re.search("estimator is whole, .* to be stored, name one of stratified, ", runs.error(err))
    assert not (tmp_path / "said").exists()


def test_a_teacher_that_is_not_there_or_has_other_ids_is_refused(train, data, teacher, tmp_path):
    status, err = train(f"--config.teacher={tmp_path / 'nowhere'}")
    assert status == 1 and "nowhere is no directory, and no GGUF file; a checkpoint is" in runs.error(err)
    status, err = train(f"--config.teacher={teacher}", "--config.model.vocab_size=1024", workdir=tmp_path / "other")
    assert status == 1
    assert "has 800 ids, config.model.vocab_size is 1024; both must have one tokenizer" in runs.error(err)


def test_a_run_does_not_go_on_with_another_teacher(train, trained, teacher, tmp_path):
    other = trained(f"--config.teacher={teacher}")
    shutil.copytree(other, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    status, err = train(f"--config.teacher={other}")
    assert status == 1
    assert re.search(
        r"teacher of the checkpoint of step 3 is \w{16}, but the config says \w{16}; restore it", runs.error(err)
    )


def test_targets_of_other_rows_are_refused(train, stored, tmp_path):
    targets = f"--config.stages.first.targets={stored()}"
    for flags, text in (
        (["--config.seed=5"], "seed"),
        (["--config.stages.first.num_steps=7"], "first 48 sequences, the stage trains on 56"),
        (["--config.stages.first.samples.temperature=2.0"], "temperature"),
        (["--config.stages.first.samples.num_samples=16"], "8 are stored"),
        ([f"{ESTIMATOR}top_k"], "estimator"),
    ):
        status, err = train(targets, *flags, workdir=tmp_path / text[:4])
        assert status == 1 and text in runs.error(err), err


def test_teach_names_what_is_wrong(data, teacher, tmp_path):
    def said(*flags):
        status, _, err = run(command("teach", data, *flags))
        assert status == 1
        return runs.error(err)

    output = f"--output={tmp_path / 'targets'}"
    assert "teacher is empty" in said(output)
    assert "--output is empty" in said("--output=", f"--checkpoint={teacher}")
    assert "--output is gs://bucket/x; it must be a directory (of a file" in said("--output=gs://bucket/x")
    assert "--stage is second; the stages that distill are: first" in said(output, "--stage=second")
    assert "--stage is missing; the stages that distill are: none" in said(
        output, "--config.stages.first.loss=next_token"
    )
    assert "has no flag --outptu; did you mean --output?" in said("--outptu=x", output)
    four = "--config.stages.first.grad_accum_steps=4"
    assert "2 sequences in a step do not split over" in said(output, f"--checkpoint={teacher}", four)
    assert not (tmp_path / "targets").exists()


def test_what_is_wrong_with_a_row_is_told_and_nothing_is_left(data, teacher, stored, tmp_path, monkeypatch):
    encode = codec.encode

    def fail(row, targets, samples):
        return encode(row, targets | {"weights": targets["weights"] * np.nan}, samples)

    monkeypatch.setattr(codec, "encode", fail)
    status, _, err = run(command("teach", data, MESH, f"--checkpoint={teacher}", f"--output={tmp_path / 'targets'}"))
    assert status == 1 and "the teacher's weights are not all finite; evaluate its checkpoint" in runs.error(err)
    assert not list(tmp_path.iterdir())


# --- teaching ---


def test_teach_says_how_much_it_will_be_and_what_it_took(data, teacher, stored):
    output = stored()
    out, err = stored.said[output]
    samples = r"8 samples a token by systematic: at most \d+ bytes a token"
    assert re.search(rf"48 sequences of 64 tokens, {samples}, 0.00 GiB", err)
    assert re.search(r"wrote .*plain: 0.\d MiB for 48 sequences; 3,072 tokens in 00:\d\d, [\d,]+ a second", err)
    took = json.loads(out)
    assert took["rows"] == 48 and took["tokens"] == 48 * 64
    assert took["bytes"] == sum(file.stat().st_size for file in output.rglob("*.array_record"))
    numbers = ("seconds", "compile_seconds", "tokens_per_second", "teacher_parameter_bytes_per_device")
    assert min(took[name] for name in numbers) > 0
    status, _, err = run(command("teach", data, MESH, f"--checkpoint={teacher}", f"--output={output}"))
    assert status == 1 and "exists and is complete" in runs.error(err)


def test_where_nothing_is_missing_the_teacher_is_not_read(data, teacher, stored, tmp_path):
    output = tmp_path / "targets"
    shutil.copytree(stored(), output)
    (output / targets_reader.MANIFEST).unlink()
    (output / targets_reader.WORK).mkdir()
    status, out, err = run(command("teach", data, MESH, f"--checkpoint={teacher}", f"--output={output}", "--json"))
    assert status == 0 and "reading teacher" not in err and err.endswith("; no targets were missing\n")
    assert json.loads(out)["tokens"] == 0 and "tokens_per_second" not in out
    assert_same_said(stored(), output)


@pytest.mark.slow
def test_two_hosts_teach_what_one_does(data, teacher, stored, tmp_path):
    output = tmp_path / "targets"
    processes = runs.start_two(command("teach", data, f"--checkpoint={teacher}", f"--output={output}"))
    first, second = map(runs.finish, processes)
    assert "wrote" in first and "sequences of" in first and not re.search("wrote|sequences of|reading", second)
    assert len(list(output.glob("part-*/*.array_record"))) == 2
    assert_same_said(stored(), output)


@pytest.mark.slow
def test_two_hosts_end_when_one_cannot_write(data, teacher, tmp_path):
    output = tmp_path / "targets"
    (output / targets_reader.WORK).mkdir(parents=True)
    (output / "part-00001").write_text("")  # no directory
    processes = runs.start_two(command("teach", data, f"--checkpoint={teacher}", f"--output={output}"))
    first, _ = (runs.finish(process, status=1) for process in processes)
    assert re.search("process 1: .*part-00001", runs.error(first))


@pytest.mark.slow
def test_teach_that_hangs_ends_with_the_stacks_beside_its_targets(data, teacher, tmp_path):
    output = tmp_path / "targets"
    flags = (f"--checkpoint={teacher}", f"--output={output}", "--config.deadlines.start_up=0.01")
    err = runs.finish(runs.start_program(command("teach", data, *flags)), status=124)
    assert "stalled: start_up has taken over 0.01 s (config.deadlines.start_up)" in err
    assert (tmp_path / "targets-stacks-0.txt").exists()


@pytest.mark.slow
def test_teach_killed_goes_on_and_ends_the_same(data, teacher, tmp_path):
    """Real processes. Rows are many and whole distributions, so that there are several units."""
    flags = ["--config.stages.first.num_steps=120", "--config.stages.first.samples.num_samples=800"]

    def start(output):
        line = command("teach", data, f"--checkpoint={teacher}", f"--output={output}", *flags)
        return runs.start_program(line)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    runs.finish(start(whole))
    num_kills = 0
    for _ in range(3):
        process, before = start(broken), len(list(broken.rglob("*.array_record")))
        while process.poll() is None and len(list(broken.rglob("*.array_record"))) == before:
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            num_kills += 1
    if not (broken / targets_reader.MANIFEST).exists():
        runs.finish(start(broken))
    assert num_kills > 0
    one, other = (targets_reader.open_targets(path) for path in (whole, broken))
    assert one.origin == other.origin and one.origin["num_rows"] == 960
    for number in range(960):
        left, right = (found.files.read(*map(int, found.locations[number])) for found in (one, other))
        assert left == right
