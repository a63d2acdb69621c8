"""Checkpoints on disks that refuse: those before stay as they were, and the next save works once it can."""

import contextlib
import pathlib
import shutil
import subprocess
import sys

import pytest

from gemma3_jax.checkpoint import manager
from tests import disks
from tests.checkpoint import saved

# What Orbax still had to write when it failed is left lying about.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB at checkpoints/."""
    with disks.small(tmp_path / "checkpoints", kib=2_048, is_busy=True) as disk:
        yield disk  # what failed may still be open in the background


def assert_saved(of: manager.CheckpointManager, step: int, mesh) -> None:
    found = saved.restore(of, mesh)
    assert found is not None and found.step == step
    saved.assert_same((found.params, found.state), saved.make(mesh, step))


# From nothing at all to nearly enough: a save fails at another moment each time.
@pytest.mark.parametrize("kib", [0, 8, 48, 80])
def test_a_full_disk_is_an_oserror_and_what_was_saved_before_stands(kib, small_disk, make_series, mesh, said):
    of = make_series()
    saved.save(of, 5, mesh)
    filler = disks.fill(small_disk, leave=kib << 10)
    for step in (6, 7):  # however often
        with pytest.raises(OSError, match=rf"^{small_disk}(/{step})? cannot be written: \S"):
            saved.save(of, step, mesh)
        assert not of.is_saving
    assert_saved(make_series(), 5, mesh)
    filler.unlink()
    saved.save(of, 8, mesh)
    assert of.steps() == [8, 5] and said == []
    assert_saved(make_series(), 8, mesh)
    assert sorted(path.name for path in small_disk.iterdir()) == ["5", "8"]


def test_a_full_disk_from_the_start_is_an_oserror_too(small_disk, make_series, mesh):
    of, filler = make_series(), disks.fill(small_disk)
    with pytest.raises(OSError, match=r"cannot be written: .*No space left on device"):
        saved.save(of, 5, mesh)
    assert saved.restore(make_series(), mesh) is None
    filler.unlink()
    saved.save(of, 6, mesh)
    assert_saved(make_series(), 6, mesh)


def test_a_disk_that_turns_read_only_is_an_oserror_and_is_read_still(small_disk, make_series, mesh):
    of = make_series()
    saved.save(of, 5, mesh)
    disks.remount(small_disk, "ro")
    with pytest.raises(OSError, match=r"cannot be written: .*Read-only file system"):
        saved.save(of, 6, mesh)
    assert_saved(make_series(), 5, mesh)
    disks.remount(small_disk, "rw")
    saved.save(of, 7, mesh)
    assert_saved(make_series(), 7, mesh)


def test_a_directory_that_vanished_is_made_again_or_is_an_oserror_once(make_series, mesh, tmp_path):
    of = make_series()
    saved.save(of, 5, mesh)
    shutil.rmtree(tmp_path / "checkpoints")
    with contextlib.suppress(OSError):
        saved.save(of, 6, mesh)
    saved.save(of, 7, mesh)
    assert_saved(make_series(), 7, mesh)


def test_a_directory_that_vanishes_below_a_save_in_hand_is_an_oserror(make_series, mesh, tmp_path):
    of = make_series()
    saved.save(of, 5, mesh)
    params, state = saved.make(mesh, 6)
    of.save(6, params, state, cursor=saved.CURSOR, meta=saved.META, checkpoint_metadata={})
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    with contextlib.suppress(OSError):
        of.finish()
    saved.save(of, 7, mesh)
    assert_saved(make_series(), 7, mesh)


def test_a_place_that_cannot_be_a_directory_is_an_oserror(make_series, mesh, tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the directory should be")
    with pytest.raises(OSError, match=rf"{tmp_path}/checkpoints/5 cannot be written: "):
        saved.save(make_series(), 5, mesh)


@pytest.mark.slow
def test_a_process_ends_after_a_failed_save(tmp_path):
    """Threads that wait for what never comes would keep it."""
    (tmp_path / "checkpoints").write_text("a file where the directory should be")
    code = (
        "from tests import conftest\nimport pathlib\nfrom gemma3_jax import sharding\n"
        "from tests.checkpoint import saved\n"
        "mesh = sharding.make_mesh(data=4, model=2)\n"
        f"saved.save(saved.in_directory(pathlib.Path({str(tmp_path / 'checkpoints')!r}), print), 5, mesh)\n"
    )
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "checkpoints/5 cannot be written" in done.stderr


# --- killed while it saved ---


@pytest.fixture
def killed(make_series, mesh, tmp_path):
    """Step 5 is saved; of step 6 there is what a process leaves that is killed while it writes."""
    saved.save(make_series(), 5, mesh)
    left = tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "5", left)
    shutil.rmtree(left / "state")
    (left / "state.orbax-checkpoint-tmp").mkdir()
    (left / "state.orbax-checkpoint-tmp" / "manifest.ocdbt").write_bytes(b"half")
    return left


def test_what_a_killed_save_left_is_not_taken_for_a_checkpoint(killed, make_series, mesh, said):
    of = make_series()
    assert of.steps() == [5]
    assert_saved(of, 5, mesh)
    assert said == []


@pytest.mark.parametrize("step", [6, 7])  # the same one, as a run that goes back does, or another
def test_what_a_killed_save_left_is_swept_up_by_the_next_save(step, killed, make_series, mesh, tmp_path):
    of = make_series()
    saved.save(of, step, mesh)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["5", str(step)]
    assert_saved(make_series(), step, mesh)


def test_a_process_that_is_killed_while_it_saves_leaves_what_was_saved_before(make_series, mesh, tmp_path):
    """A real one, that stops for good in the middle of the write."""
    saved.save(make_series(), 5, mesh)
    code = (
        "import os, pathlib, signal, sys\nfrom tests import conftest\nfrom gemma3_jax import sharding\n"
        "from tests.checkpoint import saved\n"
        f"of = saved.in_directory(pathlib.Path({str(tmp_path / 'checkpoints')!r}), print)\n"
        "params, state = saved.make(sharding.make_mesh(data=4, model=2), 6)\n"
        "of.save(6, params, state, cursor=saved.CURSOR, meta=saved.META, checkpoint_metadata={})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == -9, done.stderr
    assert make_series().steps() == [5]
    assert_saved(make_series(), 5, mesh)
    saved.save(make_series(), 6, mesh)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["5", "6"]
