"""A journal: what was written is read, whatever the disk did and wherever a process was killed."""

import errno
import json
import os
import pathlib
import shutil

import pytest

from gemma3_jax.durable import jsonl
from tests import disks


@pytest.fixture
def file(tmp_path, said):
    return jsonl.Journal(tmp_path / "run" / "rows.jsonl", said.append)


def lines_of(path: pathlib.Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_what_was_written_is_read_in_order_by_another_process_too(file, tmp_path, said):
    entries = [{"step": 1, "loss": 2.5}, {"step": 2, "name": "half a line\nand more"}, {}]
    for entry in entries:
        file.write(entry)
    again = jsonl.Journal(tmp_path / "run" / "rows.jsonl", said.append)
    assert file.read() == again.read() == entries and not said
    again.write({"step": 4})
    assert file.read() == [*entries, {"step": 4}]


def test_a_journal_that_was_never_written_is_empty(file, tmp_path):
    file.flush(durable=True)
    file.keep(lambda entry: True)
    assert file.read() == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_becomes_null(file, tmp_path, number):
    file.write({"step": 1, "loss": number, "norm": 1.5})
    assert lines_of(tmp_path / "run" / "rows.jsonl") == [b'{"step": 1, "loss": null, "norm": 1.5}\n']


def test_a_number_that_is_not_finite_becomes_null_inside_another_object_too(file, tmp_path):
    """A config, in starts.jsonl, may hold `inf` as a limit."""
    file.write({"config": {"num_deviations": float("inf"), "limits": [1.0, float("nan")]}})
    [line] = lines_of(tmp_path / "run" / "rows.jsonl")
    assert line == b'{"config": {"num_deviations": null, "limits": [1.0, null]}}\n'


# --- killed in the middle of a line ---


def each_half_line(path: pathlib.Path):
    """The file with every beginning of its last line, as a killed process may leave it."""
    *before, last = lines_of(path)
    for length in range(1, len(last)):
        path.write_bytes(b"".join(before) + last[:length])
        yield last[:length]


def test_half_a_line_at_the_end_is_not_read(file, tmp_path):
    for step in range(3):
        file.write({"step": step})
    for half in each_half_line(tmp_path / "run" / "rows.jsonl"):
        assert file.read() == [{"step": 0}, {"step": 1}], half


def test_keep_cuts_half_a_line_so_that_the_next_one_is_whole(file, tmp_path):
    for step in range(3):
        file.write({"step": step})
    for half in each_half_line(tmp_path / "run" / "rows.jsonl"):
        file.keep(lambda entry: True)
        file.write({"step": 9})
        assert file.read() == [{"step": 0}, {"step": 1}, {"step": 9}], half


def test_half_a_line_does_not_spoil_the_one_that_is_written_after_it(file, tmp_path):
    """The ledger and the starts are never cut back: nobody calls `keep` on them."""
    for step in range(3):
        file.write({"step": step})
    for half in each_half_line(tmp_path / "run" / "rows.jsonl"):
        file.write({"step": 9})
        assert {"step": 9} in file.read(), half


def test_a_line_that_is_no_object_is_not_read(file, tmp_path):
    file.write({"step": 1})
    with (tmp_path / "run" / "rows.jsonl").open("ab") as appended:
        appended.write(b'7\n[1]\n\xff\xfe\n\n{"step": 2}\n')
    assert file.read() == [{"step": 1}, {"step": 2}]


# --- going back ---


def test_keep_drops_what_is_not_wanted_and_leaves_the_other_bytes_alone(file, tmp_path):
    path = tmp_path / "run" / "rows.jsonl"
    for step in range(6):
        file.write({"step": step, "loss": 0.1 * step})
    before = lines_of(path)
    file.keep(lambda entry: entry["step"] <= 3)
    assert lines_of(path) == before[:4]
    assert [other.name for other in path.parent.iterdir()] == ["rows.jsonl"]


def test_keep_replaces_the_file_whole_or_not_at_all(file, tmp_path, monkeypatch):
    """Whoever has it open keeps what there was; a process that dies while it writes the new one changes nothing."""
    path = tmp_path / "run" / "rows.jsonl"
    for step in range(3):
        file.write({"step": step})
    before = path.read_bytes()
    with path.open("rb") as reader, monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no room")))
        with pytest.raises(OSError, match="no room"):
            file.keep(lambda entry: entry["step"] < 1)
        assert path.read_bytes() == before
        patched.undo()
        file.keep(lambda entry: entry["step"] < 1)
        assert reader.read() == before and file.read() == [{"step": 0}]


def test_keep_leaves_a_file_alone_of_which_it_wants_everything(file, tmp_path):
    file.write({"step": 1})
    before = (tmp_path / "run" / "rows.jsonl").stat()
    file.keep(lambda entry: True)
    assert (tmp_path / "run" / "rows.jsonl").stat().st_ino == before.st_ino


# --- a disk that refuses ---


@pytest.fixture
def small_disk(tmp_path):
    with disks.small(tmp_path / "disk", kib=128) as disk:
        yield disk


# A line that fits a page in part, one that is longer than any buffer, and many that wait together.
@pytest.mark.parametrize("lengths", [[6_000], [60_000], [3_000] * 9], ids=["a line", "a long line", "many lines"])
def test_what_a_full_disk_refused_is_written_once_there_is_room(small_disk, said, lengths):
    path = small_disk / "rows.jsonl"
    file = jsonl.Journal(path, said.append)
    file.write({"step": 0})
    before, filler = path.read_bytes(), disks.fill(small_disk)
    entries = [{"step": step, "text": "x" * length} for step, length in enumerate(lengths, start=1)]
    for entry in entries:
        file.write(entry)
    assert path.read_bytes().startswith(before)
    filler.unlink()
    file.write({"step": 99})
    wanted = [{"step": 0}, *entries, {"step": 99}]
    assert [json.loads(line) for line in lines_of(path)] == wanted  # all of it, once, and no half line between


def test_a_full_disk_leaves_no_half_line(small_disk, said):
    path = small_disk / "rows.jsonl"
    file = jsonl.Journal(path, said.append)
    file.write({"step": 0})
    disks.fill(small_disk)
    for step in range(1, 9):
        file.write({"step": step, "text": "x" * 3_000})
    steps = [json.loads(line)["step"] for line in lines_of(path)]
    assert steps == list(range(len(steps)))  # a line is there whole or not at all, none twice


def test_a_full_disk_is_reported_once_and_again_after_it_had_room(small_disk, said):
    path = small_disk / "rows.jsonl"
    file = jsonl.Journal(path, said.append)
    for _ in range(2):
        filler = disks.fill(small_disk)
        for step in range(3):
            file.write({"step": step, "text": "x" * 5_000})
        filler.unlink()
        file.flush()
    assert said == [f"{path} cannot be written, and is tried again: No space left on device"] * 2


def test_a_line_that_may_not_have_reached_the_disk_is_there_once(file, tmp_path, said, monkeypatch):
    """It was written, but the sync after it failed."""

    def refuse(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "run").write_text("a file where the directory should be")
    file.write({"step": 1})  # waits
    (tmp_path / "run").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        file.flush(durable=True)
    file.flush(durable=True)
    file.write({"step": 2})
    assert file.read() == [{"step": 1}, {"step": 2}] and len(said) == 1


def test_a_sync_that_fails_is_reported(file, said, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    file.write({"step": 1})
    monkeypatch.setattr(os, "fsync", refuse)
    file.flush(durable=True)
    [line] = said
    assert line.endswith("rows.jsonl cannot be written, and is tried again: Input/output error")


def test_durable_has_the_lines_that_were_written_before_reach_the_disk(file, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    file.write({"step": 1})
    assert synced == []
    file.flush()
    assert synced == []
    file.flush(durable=True)
    assert len(synced) == 1


def test_a_directory_that_vanished_is_made_again(file, tmp_path, said):
    file.write({"step": 1})
    shutil.rmtree(tmp_path / "run")
    file.write({"step": 2})
    assert file.read() == [{"step": 2}] and not said


def test_a_path_that_cannot_be_is_reported_and_does_not_end_the_run(tmp_path, said):
    (tmp_path / "run").write_text("a file where the directory should be")
    file = jsonl.Journal(tmp_path / "run" / "rows.jsonl", said.append)
    file.write({"step": 1})
    file.write({"step": 2})
    [line] = said
    assert line.startswith(f"{tmp_path}/run/rows.jsonl cannot be written, and is tried again: ")
    (tmp_path / "run").unlink()
    file.flush()
    assert file.read() == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("other", [b"[]", b"{", b"7", b'{"loss": 1.0}', b'{"step": "1"}', b"\xff", b"[" * 9**5])
def test_lines_of_another_form_are_not_read_and_are_dropped_with_a_warning(tmp_path, said, other):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n' + other + b'\n{"step": 2}\n{"ste')
    file = jsonl.Journal(path, said.append, is_entry=lambda entry: isinstance(entry.get("step"), int))
    assert file.read() == [{"step": 1}, {"step": 2}]
    file.keep(lambda entry: entry["step"] < 2)
    assert path.read_bytes() == b'{"step": 1}\n'
    assert said == [f"{path}: 1 of 3 lines are of another form, and are dropped"]
