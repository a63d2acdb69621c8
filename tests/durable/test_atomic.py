"""Files and directories appear whole or not at all, however their writer ends."""

import errno
import os
import pathlib
import platform
import subprocess
import sys

import pytest

from gemma3_jax.durable import atomic


def test_a_directory_appears_whole(tmp_path):
    with atomic.new(tmp_path / "out") as (partial,):
        partial.mkdir()
        (partial / "file").write_text("x")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out" / "file").read_text() == "x"


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(tmp_path):
    code = (
        "import os, pathlib, signal, sys\nfrom gemma3_jax.durable import atomic\n"
        f"with atomic.new(pathlib.Path({str(tmp_path)!r}) / 'out') as (partial,):\n"
        "    partial.mkdir()\n"
        "    (partial / 'file').write_text('x')\n"
        "    partial.with_name(f'{partial.name}.orbax-checkpoint-tmp').mkdir()\n"
        "    print(partial.name, flush=True)\n    sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    left = process.stdout.readline().strip()
    others = {name: tmp_path / name for name in (left, f"{left}.orbax-checkpoint-tmp")}
    with atomic.new(tmp_path / "out") as (partial,):  # its writer lives
        assert all(path.is_dir() for path in others.values())
        partial.mkdir()
    (tmp_path / "out").rmdir()
    process.kill()
    process.communicate()
    for kept in (left.replace(f"-{process.pid}", f".elsewhere-{process.pid}"), left.replace(".out.", ".out2.")):
        (tmp_path / kept).mkdir()  # of another host, whose processes are not seen here; of another target
    with pytest.raises(OSError, match="no"), atomic.new(tmp_path / "out"):
        raise OSError("no")
    assert len(list(tmp_path.iterdir())) == 2 and not any(path.exists() for path in others.values())


def test_what_an_earlier_version_left_is_removed_too(tmp_path):
    process = subprocess.Popen(["true"])
    process.wait()
    (tmp_path / f".out{atomic.PARTIAL}{process.pid}").mkdir()
    (tmp_path / f".out{atomic.PARTIAL}{process.pid}.orbax-checkpoint-tmp").mkdir()
    with atomic.new(tmp_path / "out") as (partial,):
        partial.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_an_earlier_process_of_the_same_number_left_is_removed_too(tmp_path):
    """The processes of a container have the same numbers at each start."""
    left = tmp_path / f".file{atomic.PARTIAL}{platform.node()}-{os.getpid()}"
    left.mkdir()
    (left / "part").write_text("old")
    atomic.replace(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_appear_whole_and_together(tmp_path):
    with atomic.new(tmp_path / "a", tmp_path / "b") as partials:
        for partial in partials:
            partial.write_text("x")
        assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(OSError), atomic.new(tmp_path / "c", tmp_path / "d") as partials:
        partials[0].write_text("x")
        raise OSError("no")
    with pytest.raises(ValueError, match="b was made by someone else meanwhile"):
        with atomic.new(tmp_path / "e", tmp_path / "b") as partials:
            for partial in partials:
                partial.write_text("y")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"] and (tmp_path / "b").read_text() == "x"


@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt(), SystemExit(143)])
def test_nothing_is_left_when_writing_stops_early(error, tmp_path):
    with pytest.raises(type(error)), atomic.new(tmp_path / "out") as (partial,):
        partial.mkdir()
        (partial / "file").write_text("x")
        partial.with_name(f"{partial.name}.orbax-checkpoint-tmp").mkdir()  # where Orbax writes first
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_target_made_meanwhile_is_not_overwritten(tmp_path):
    with pytest.raises(ValueError, match=r"out was made by someone else meanwhile"):
        with atomic.new(tmp_path / "out") as (partial,):
            partial.mkdir()
            (tmp_path / "out").mkdir()
    assert list((tmp_path / "out").iterdir()) == [] and len(list(tmp_path.iterdir())) == 1


def test_a_signal_during_the_cleaning_up_cleans_up_again(tmp_path):
    """Two signals in a row, as an impatient user sends them: the second finds the first one's work half done."""
    code = (
        "import pathlib, shutil, signal\nfrom gemma3_jax.cli import program\nfrom gemma3_jax.durable import atomic\n"
        "signal.signal(signal.SIGINT, program.stop)\nremove, calls = shutil.rmtree, []\n"
        "def rmtree(*a, **k):\n"
        "    calls.append(1)\n    if len(calls) == 1: signal.raise_signal(signal.SIGINT)\n    remove(*a, **k)\n"
        "shutil.rmtree = rmtree\n"
        f"with atomic.new(pathlib.Path({str(tmp_path / 'out')!r})) as (partial,):\n"
        "    partial.mkdir()\n    signal.raise_signal(signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and "files that were partly written are removed" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic.replace(path, b"one")
    with path.open("rb") as reader, monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no room")))
        with pytest.raises(OSError, match="no room"):
            atomic.replace(path, b"two")
        assert path.read_bytes() == b"one" and list(tmp_path.iterdir()) == [path]
        patched.undo()
        atomic.replace(path, b"two")
        assert reader.read() == b"one" and path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_being_written_is_removed_by_a_signal(tmp_path):
    """The program ends from its signal handler, where no `finally` runs."""
    code = (
        "import os, pathlib, signal\nfrom gemma3_jax.cli import program\nfrom gemma3_jax.durable import atomic\n"
        "signal.signal(signal.SIGTERM, program.stop)\n"
        "os.fsync = lambda descriptor: signal.raise_signal(signal.SIGTERM)\n"
        f"atomic.replace(pathlib.Path({str(tmp_path / 'file')!r}), b'content')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 143, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_leaves_is_matched_by_its_pattern(tmp_path):
    with atomic.new(tmp_path / "out") as (partial,):
        partial.write_bytes(b"")
        assert any(map(partial.match, atomic.LEFTOVERS))
    for name in ("out", "partial-samples", ".hidden", "a.partial-1"):
        assert not any(map(pathlib.Path(name).match, atomic.LEFTOVERS))
