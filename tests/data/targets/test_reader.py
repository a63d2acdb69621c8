"""Targets on disk: what comes back, what is refused, and what a kill leaves."""

import concurrent.futures
import dataclasses
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from fsspec.implementations import local

from gemma3_jax.data import open_shards, order
from gemma3_jax.data.targets import codec
from gemma3_jax.data.targets import reader as targets_reader
from gemma3_jax.data.targets import writer as targets_writer
from gemma3_jax.distill import settings
from tests.data import open_readers
from tests.data.targets import synthetic

ORDER = order.Order("data", synthetic.T, 4, 7, {"a": 1_000}, {"a": 1.0})
NUM_ROWS = 22


def origin_of(samples=synthetic.TOP_8, **changes) -> dict:
    plain = {"tokenizer": "tok", "vocab_size": synthetic.V, "teacher": "wise", "num_rows": NUM_ROWS}
    return targets_reader.made_of(ORDER, samples, **(plain | changes))


def write_rows(path: pathlib.Path, *, process=0, num_processes=1, most_units=None, seconds=0.0, finish=True) -> list:
    """What a process of `teach` does, with its rows of each step of 4; returns the rows it has written."""

    def records(numbers):
        for number in numbers:
            time.sleep(seconds)
            yield synthetic.stored(number, synthetic.TOP_8)

    done = []
    with targets_writer.resume(path, origin_of(), process=process) as writer:
        for unit in writer.units(4)[:most_units]:
            numbers = [n for n in unit if n % 4 * num_processes // 4 == process]
            missing = writer.missing
            writer.write(numbers, records(numbers))
            done += sorted({*missing.tolist()} - {*writer.missing.tolist()})
        if finish:
            writer.complete({"teacher_path": "wise.hf"})
    return done


def contents(path: pathlib.Path) -> list[bytes]:
    stored = targets_reader.open_targets(path)
    return [stored.files.read(*stored.locations[number].tolist()) for number in range(NUM_ROWS)]


def files(path: pathlib.Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(targets_writer, "UNIT_BYTES", 1)  # units of one step


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("targets") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets_writer, "UNIT_BYTES", 1)
        assert write_rows(path) == list(range(NUM_ROWS))
    return path


@pytest.fixture
def copy(written, tmp_path):
    shutil.copytree(written, tmp_path / "out")
    return tmp_path / "out"


def test_what_was_written_is_read(written):
    stored = targets_reader.open_targets(written)
    assert contents(written) == [synthetic.stored(number, synthetic.TOP_8) for number in range(NUM_ROWS)]
    assert stored.teacher == "wise" and stored.manifest["teacher_path"] == "wise.hf"
    assert files(written) == [*(f"part-00000/{first:012d}.array_record" for first in range(0, 22, 4)), "targets.json"]
    assert stored.manifest["bytes"] == sum((written / name).stat().st_size for name in files(written)[:-1])
    for number in (21, 0, 13):
        row, original = synthetic.row_of(number), synthetic.targets_of(number, synthetic.TOP_8)
        read = stored.read(number, row)
        np.testing.assert_array_equal(read["ids"], original["ids"] * row["loss_mask"][:, None])
        assert (read["label_log_prob"] == original["label_log_prob"] * row["loss_mask"]).all()


def test_units_are_whole_steps_of_so_many_bytes(tmp_path, monkeypatch):
    row_bytes = synthetic.T * codec.bytes_per_token(synthetic.TOP_8)
    monkeypatch.setattr(targets_writer, "UNIT_BYTES", 9 * row_bytes)
    with targets_writer.resume(tmp_path / "out", origin_of()) as writer:
        assert writer.units(4) == [range(0, 8), range(8, 16), range(16, 22)]
        assert writer.units(3) == [range(0, 9), range(9, 18), range(18, 22)]
        assert writer.units(16) == writer.units(4, 2) == [range(0, 16), range(16, 22)]
        writer.write(range(8, 15), [synthetic.stored(number, synthetic.TOP_8) for number in range(8, 15)])
        assert writer.units(8) == [range(0, 8), range(8, 16), range(16, 22)]
        writer.write([15], [synthetic.stored(15, synthetic.TOP_8)])
        assert writer.units(8) == [range(0, 8), range(16, 22)]


def test_several_processes_write_and_another_number_goes_on(written, tmp_path):
    path = tmp_path / "out"
    assert write_rows(path, process=0, num_processes=2, most_units=3, finish=False) == [0, 1, 4, 5, 8, 9]
    assert write_rows(path, process=1, num_processes=2, most_units=2, finish=False) == [2, 3, 6, 7]
    with pytest.raises(ValueError, match="out is not finished; run the same teach command again to resume it"):
        targets_reader.open_targets(path)
    assert write_rows(path) == [10, 11, *range(12, NUM_ROWS)]
    assert contents(path) == contents(written)


def test_a_row_that_is_there_is_not_written_again(written, tmp_path):
    with targets_writer.resume(tmp_path / "out", origin_of()) as writer:
        writer.write([0, 1, 5], [synthetic.stored(number, synthetic.TOP_8) for number in (0, 1, 5)])
    records = {number: synthetic.stored(number, synthetic.TOP_8) for number in range(NUM_ROWS)}
    with targets_writer.resume(tmp_path / "out", origin_of()) as writer:
        assert writer.missing.tolist() == [2, 3, 4, *range(6, NUM_ROWS)]
        assert writer.write([0, 5], [b"", b""]) == 0
        assert writer.write(list(records), list(records.values())) > 0 and not writer.missing.size
        writer.complete()
    assert contents(tmp_path / "out") == contents(written) and len(files(tmp_path / "out")) == 3


def test_it_is_not_finished_while_rows_are_missing(tmp_path):
    with pytest.raises(ValueError, match="out lacks rows 8, 9, 10 and 11 more; let all processes write to one"):
        write_rows(tmp_path / "out", most_units=2)
    assert len(write_rows(tmp_path / "out")) == NUM_ROWS - 8


def test_killed_while_it_writes_it_goes_on(written, tmp_path):
    path = tmp_path / "out"
    code = (
        "import pathlib\nfrom gemma3_jax.data.targets import writer\nfrom tests.data.targets import test_reader\n"
        "writer.UNIT_BYTES = 1\n"
        f"test_reader.write_rows(pathlib.Path({str(path)!r}), seconds=0.05)\n"
    )
    root = pathlib.Path(__file__).parents[3]
    for num_units in (0, 3):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
        deadline = time.monotonic() + 60
        while not (
            len(list(path.glob("part-*/*.array_record"))) >= num_units and list(path.glob("part-*/.*.partial-*"))
        ):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        if num_units:
            with pytest.raises(ValueError, match="out is being written by another process; wait for it, or end it"):
                write_rows(path)
        time.sleep(0.1)  # between the first row of a unit and its last
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert list(path.glob("part-*/.*.partial-*"))
    write_rows(path, most_units=0, finish=False)
    assert not list(path.glob("part-*/.*.partial-*"))
    assert len(write_rows(path)) in (NUM_ROWS - 12, NUM_ROWS - 16)
    assert files(path) == files(written) and contents(path) == contents(written)


def test_killed_between_its_last_two_steps_it_is_finished_when_called_again(copy):
    (copy / ".teaching").mkdir()
    with pytest.raises(ValueError, match=r"out was begun with another teacher \(wise, now other\)"):
        with targets_writer.resume(copy, origin_of(teacher="other")):
            pass
    assert write_rows(copy) == [] and not (copy / ".teaching").exists()


def test_what_was_begun_otherwise_is_refused(tmp_path):
    write_rows(tmp_path / "out", most_units=1, finish=False)
    changed = settings.Samples(estimator="systematic", num_samples=8, temperature=2.0)
    remedy = "resume with the old settings, choose another --output, or remove it"
    with pytest.raises(ValueError, match=rf"out was begun with another num_rows \(22, now 23\); {remedy}"):
        with targets_writer.resume(tmp_path / "out", origin_of(num_rows=23)):
            pass
    match = r"estimator \(top_k, now systematic\), temperature \(1.0, now 2.0\); resume with"
    with pytest.raises(ValueError, match=rf"num_rows \(22, now 23\), {match}"):
        with targets_writer.resume(tmp_path / "out", origin_of(changed, num_rows=23), process=1):
            pass
    assert len(write_rows(tmp_path / "out")) == NUM_ROWS - 4


def test_what_is_there_is_not_written_over(copy, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("{}")
    for name, why in {
        "file": "file is a file; choose another --output",
        "other": "other exists and is not an unfinished directory of targets; choose another --output",
        "out": "out exists and is complete; choose another --output, or remove it first",
    }.items():
        with pytest.raises(ValueError, match=why):
            write_rows(tmp_path / name)


def test_nothing_is_left_of_what_was_refused_before_its_first_unit(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        with pytest.raises(ValueError, match="no"):
            with targets_writer.resume(tmp_path / name, origin_of()):
                raise ValueError("no")
    assert not list(tmp_path.iterdir()) and write_rows(tmp_path / "new")


def test_what_one_process_refuses_takes_nothing_from_another(tmp_path):
    path = tmp_path / "out"
    with targets_writer.resume(path, origin_of()) as writer:
        with pytest.raises(ValueError, match="no"):
            with targets_writer.resume(path, origin_of(), process=1):
                raise ValueError("no")
        assert files(path) == [".teaching/begun-00000", ".teaching/lock-00000"]
        writer.write(range(NUM_ROWS), [synthetic.stored(number, synthetic.TOP_8) for number in range(NUM_ROWS)])
        writer.complete()
    assert targets_reader.open_targets(path)


@pytest.mark.parametrize("num_looks", [1, 2])
def test_what_another_process_begins_at_the_same_time_is_taken_up(tmp_path, monkeypatch, num_looks):
    """It makes the directory while this one looks whether it is there."""
    path, looks = tmp_path / "out", []

    def and_begin(look):
        def look_and_begin(*arguments, **options):
            try:
                return look(*arguments, **options)
            finally:
                looks.append(look)
                if len(looks) == num_looks:
                    os.makedirs(path / ".teaching")

        return look_and_begin

    for name in ("isfile", "ls"):
        monkeypatch.setattr(local.LocalFileSystem, name, and_begin(getattr(local.LocalFileSystem, name)))
    assert len(write_rows(path)) == NUM_ROWS


def test_what_was_begun_otherwise_and_came_to_nothing_is_forgotten(tmp_path):
    for process in (0, 5):
        with pytest.raises(OSError, match="killed"):
            with targets_writer.resume(tmp_path / "out", origin_of(teacher="other"), process=process):
                raise OSError("killed")
    assert len(files(tmp_path / "out")) == 4
    assert len(write_rows(tmp_path / "out", most_units=1, finish=False)) == 4
    assert len(write_rows(tmp_path / "out")) == NUM_ROWS - 4


def test_a_disk_that_is_full_keeps_what_is_written(tmp_path):
    def records():
        yield synthetic.stored(4, synthetic.TOP_8)
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        with targets_writer.resume(tmp_path / "out", origin_of()) as writer:
            writer.write(range(4), [synthetic.stored(number, synthetic.TOP_8) for number in range(4)])
            writer.write(range(4, 8), records())
    assert write_rows(tmp_path / "out") == list(range(4, NUM_ROWS))


def test_what_cannot_be_stored_is_refused():
    with pytest.raises(
        ValueError, match="teacher has a vocabulary of 20000000; targets are stored for at most 16777216"
    ):
        origin_of(vocab_size=20_000_000)
    with pytest.raises(ValueError, match="num_rows is 0; it must be at least 1"):
        origin_of(num_rows=0)


def test_what_is_no_targets_is_refused(copy, tmp_path):
    with pytest.raises(ValueError, match="none has no targets: there is no targets.json; make them with teach"):
        targets_reader.open_targets(tmp_path / "none")
    manifest = (copy / "targets.json").read_text()
    for old, new, why in (
        ('"format": 1', '"format": 9', "has format 9; this version reads 1: teach again"),
        ('"estimator"', '"other"', "damaged: targets.json: made_of has no field estimator; copy the targets or"),
        (
            '"num_rows": 22',
            '"num_rows": 23',
            "damaged: targets.json: made_of.num_rows is 23, and its files have 22 rows",
        ),
        ('"num_rows": 22', '"num_rows": 20', "000000000020.array_record is damaged: it has rows 20, 21 of 20; copy"),
        ("{", "", "is damaged"),
    ):
        (copy / "targets.json").write_text(manifest.replace(old, new, 1))
        with pytest.raises(ValueError, match=why):
            targets_reader.open_targets(copy)


def test_a_damaged_file_is_named(copy):
    file = copy / "part-00000" / "000000000008.array_record"
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[1_000] ^= 1
    file.write_bytes(flipped)
    again = "copy the targets again, or remove them and teach again"
    with pytest.raises(ValueError, match=f"000000000008.array_record is damaged at record .*; {again}"):
        stored = targets_reader.open_targets(copy)
        for number in range(8, 12):
            stored.read(number, synthetic.row_of(number))
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"000000000008.array_record is damaged: 0 of 5 .*; {again}"):
        targets_reader.open_targets(copy)
    file.unlink()
    with pytest.raises(ValueError, match=f"000000000008.array_record is missing, .*; {again}"):
        targets_reader.open_targets(copy)


def test_targets_of_another_row_are_refused(written):
    stored, row = targets_reader.open_targets(written), synthetic.row_of(5)
    stored.read(5, row)
    with pytest.raises(ValueError, match="the targets of row 4 in .*out are of another row; train the stage on"):
        stored.read(4, row)
    for name in ("tokens", "segments", "positions", "loss_mask"):
        other = row | {name: row[name].copy()}
        other[name][3] = not row[name][3] if name == "loss_mask" else row[name][3] + 1
        with pytest.raises(ValueError, match="the targets of row 5 in .*out are of another row"):
            stored.read(5, other)


def for_stage(
    path: pathlib.Path, rows=ORDER, samples=synthetic.TOP_8, tokenizer="tok", vocab_size=synthetic.V, num_rows=NUM_ROWS
):
    return targets_reader.open_targets(path).for_stage(
        rows, tokenizer, samples, vocab_size=vocab_size, num_rows=num_rows
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"rows": {"data_digest": "other"}},
            "made with data data, the stage has other; teach again .* change its data",
        ),
        ({"rows": {"seq_len": 80}}, "made with seq_len 40, the stage has 80; .* change its seq_len back"),
        ({"rows": {"seed": 8}}, "made with seed 7, the stage has 8; .* change config.seed back"),
        ({"rows": {"fractions": {"a": 0.5}}}, r"made with mixture \w+, the stage has \w+; .* change its mixture"),
        ({"tokenizer": "other"}, "made with tokenizer tok, the stage has other; .* name data of that tokenizer"),
        ({"vocab_size": 300}, "made with vocab_size 262144, the stage has 300; take a teacher with the student's"),
        (
            {"samples": {"estimator": "sampled"}},
            "made with estimator top_k, the stage has sampled; .* set its estimator",
        ),
        ({"samples": {"temperature": 2.0}}, "made with temperature 1.0, the stage has 2.0; .* set its temperature"),
        ({"samples": {"num_samples": 9}}, "out: num_samples is 9, and 8 are stored: no more can be had"),
        (
            {"num_rows": 24},
            "has targets of the first 22 sequences, the stage trains on 24; teach that many, or take fewer",
        ),
    ],
)
def test_a_stage_of_other_rows_or_samples_is_refused(written, changes, why):
    wanted = {"rows": ORDER, "samples": synthetic.TOP_8}
    changes = {
        name: dataclasses.replace(wanted[name], **change) if name in wanted else change
        for name, change in changes.items()
    }
    with pytest.raises(ValueError, match=why):
        for_stage(written, **changes)


def test_a_stage_gets_as_few_samples_as_it_wants(written):
    other_step = dataclasses.replace(ORDER, batch_size=2)  # changes no row's number
    few = for_stage(written, rows=other_step, samples=dataclasses.replace(synthetic.TOP_8, num_samples=3), num_rows=20)
    read, whole = few.read(9, synthetic.row_of(9)), for_stage(written).read(9, synthetic.row_of(9))
    assert read["ids"].shape == (synthetic.T, 3) and whole["ids"].shape == (synthetic.T, 8)
    np.testing.assert_array_equal(read["ids"], whole["ids"][:, :3])


def test_targets_are_read_by_threads_and_processes_with_few_files_open(written, monkeypatch):
    monkeypatch.setattr(open_shards, "MAX_OPEN_SHARDS", 2)
    num_open = open_readers.counted(monkeypatch)
    stored = pickle.loads(pickle.dumps(targets_reader.open_targets(written)))
    numbers = np.random.default_rng(0).integers(0, NUM_ROWS, 300).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda number: stored.read(number, synthetic.row_of(number)), numbers))
    for number, targets in zip(numbers, read, strict=True):
        np.testing.assert_array_equal(
            targets["best_id"],
            synthetic.targets_of(number, synthetic.TOP_8)["best_id"] * synthetic.row_of(number)["loss_mask"],
        )
    assert num_open == [2]
