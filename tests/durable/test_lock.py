"""A lock keeps a second process out for as long as the first one lives."""

import errno
import fcntl
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from gemma3_jax.durable import lock
from tests import disks


def test_a_second_holder_is_refused_until_the_first_is_done(tmp_path):
    for _ in range(2):
        with lock.exclusive(tmp_path / "lock", busy="wait"):
            with pytest.raises(ValueError, match="^wait$"), lock.exclusive(tmp_path / "lock", busy="wait"):
                pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import pathlib, sys\nfrom gemma3_jax.durable import lock\n"
        f"with lock.exclusive(pathlib.Path({str(tmp_path / 'lock')!r}), busy='wait'):\n"
        "    print('locked', flush=True)\n    sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(ValueError, match="wait"), lock.exclusive(tmp_path / "lock", busy="wait"):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with lock.exclusive(tmp_path / "lock", busy="wait"):
        pass


def test_a_lock_knows_whether_its_file_is_still_there(tmp_path):
    """The system holds the lock of a removed file on, and lets a second process lock the next one of that name."""
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "lock"
    with lock.exclusive(file, busy="wait") as is_in_place:
        assert is_in_place()
        file.parent.rename(tmp_path / "away")
        assert not is_in_place()
        (tmp_path / "away").rename(file.parent)
        assert is_in_place()
        shutil.rmtree(file.parent)
        file.parent.mkdir()
        with lock.exclusive(file, busy="wait") as is_second_in_place:
            assert is_second_in_place() and not is_in_place()


def test_a_disk_that_fails_for_a_moment_has_not_lost_the_lock(tmp_path, monkeypatch):
    with lock.exclusive(tmp_path / "lock", busy="wait") as is_in_place:
        for number, expected in (
            (errno.EIO, True),
            (errno.ETIMEDOUT, True),
            (errno.ESTALE, False),
            (errno.ENOENT, False),
        ):
            with monkeypatch.context() as patched:
                error = OSError(number, os.strerror(number))
                patched.setattr(pathlib.Path, "read_text", lambda _, error=error: (_ for _ in ()).throw(error))
                assert is_in_place() == expected
        assert is_in_place()


def test_a_full_disk_takes_a_lock(tmp_path):
    with disks.small(tmp_path / "disk", kib=64) as disk:
        disks.fill(disk)
        with lock.exclusive(disk / "lock", busy="wait") as is_in_place:
            assert is_in_place()
            (disk / "lock").unlink()
            assert not is_in_place()


def test_a_file_system_without_locks_is_an_error_or_a_warning(tmp_path, monkeypatch, said):
    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="not supported"), lock.exclusive(tmp_path / "lock", busy="wait"):
        pass
    with lock.exclusive(tmp_path / "lock", busy="wait", warn=said.append):
        [line] = said
    assert line.startswith(f"warning: {tmp_path}/lock cannot be locked, so nothing keeps a second process out: ")
