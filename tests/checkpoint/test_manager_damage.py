"""Damaged checkpoints: the newest one that is whole counts, and those that are not are named and set aside."""

import dataclasses
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.checkpoint import manager
from tests.checkpoint import saved

# What Orbax was about to read when it found the damage is left lying about.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def assert_one_before_is_used(directory, make_series, mesh, said, reason=".+"):
    """The damaged one is named and set aside; the one before is read, and again by the next process."""
    found = saved.restore(make_series(), mesh)
    assert found is not None and found.step == 5
    saved.assert_same((found.params, found.state), saved.make(mesh, 5))
    aside = directory.with_name("damaged")
    text = rf"warning: {directory}/6 is damaged \({reason}\); it is moved to {aside} and the one before is used"
    assert len(said) == 1 and re.fullmatch(text, said[0]), said
    assert manager.steps(directory) == [5] and [path.name for path in aside.iterdir()] == ["6"]
    assert saved.restore(make_series(), mesh).step == 5 and len(said) == 1


def truncate(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def overwrite(file: pathlib.Path) -> None:
    file.write_bytes(bytes(255 - byte for byte in file.read_bytes()))


def delete(file: pathlib.Path) -> None:
    file.unlink()


# What going on does not need: marks of the writer and its own copies, places (the caller names them), and what
# `open_checkpoint` alone reads. Deleted or spoiled, they change nothing of what is restored.
UNREAD = re.compile(r"commit_success\.txt|ocdbt\.process_0/|array_metadatas/|_sharding")


@pytest.mark.slow
@pytest.mark.parametrize("damage", [overwrite, truncate, delete], ids=lambda damage: damage.__name__)
def test_any_file_that_is_damaged_is_noticed_or_does_not_matter(damage, two_saved, tmp_path, make_series, mesh, said):
    """Every file of the newest checkpoint in turn: what is read is what was saved, or the one before."""
    files = sorted(str(path.relative_to(two_saved / "6")) for path in (two_saved / "6").rglob("*") if path.is_file())
    assert len(files) > 10
    unnoticed = []
    for number, name in enumerate(files):
        said.clear()
        directory = tmp_path / str(number) / "checkpoints"
        shutil.copytree(two_saved, directory)
        damage(directory / "6" / name)
        found = saved.restore(make_series(directory), mesh)
        assert found is not None, name
        saved.assert_same((found.params, found.state), saved.make(mesh, found.step))
        if found.step == 6:
            unnoticed.append(name)
            assert (found.cursor, found.meta["stage"], said) == (saved.CURSOR | {"row": 6}, "first", []), name
        else:
            assert len(said) == 1 and f"{directory}/6 is damaged (" in said[0], name
            assert (directory.with_name("damaged") / "6").is_dir() and manager.steps(directory) == [5], name
        shutil.rmtree(tmp_path / str(number))
    assert [name for name in unnoticed if not UNREAD.search(name)] == []


def largest(directory: pathlib.Path) -> pathlib.Path:
    return max((path for path in directory.rglob("d/*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("item", ["params", "state"])
def test_a_flipped_bit_in_the_arrays_is_noticed(item, copied, make_series, mesh, said):
    file = largest(copied / "6" / item)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    for twin in copied.glob(f"6/{item}/ocdbt.process_0/d/*"):  # the same bytes under another name
        twin.unlink()
    assert_one_before_is_used(copied, make_series, mesh, said)


@pytest.mark.parametrize("item", ["params", "state"])
def test_arrays_that_are_whole_but_not_those_that_were_saved_are_noticed_by_the_check_sum(
    item, copied, make_series, mesh, said
):
    shutil.rmtree(copied / "6" / item)
    shutil.copytree(copied / "5" / item, copied / "6" / item)
    reason = r"its checksum is [0-9a-f]{8}, and was [0-9a-f]{8} when it was written"
    assert_one_before_is_used(copied, make_series, mesh, said, reason)


def test_any_one_bit_changes_the_check_sum(mesh):
    params, state = jax.tree.map(np.asarray, saved.make(mesh, 3))
    seen = {manager.checksum(params, state)}
    for bit in (0, 7, 22, 23, 30, 31):  # of the fraction, of the exponent, the sign
        words = params["w"].view(np.uint32).copy()
        words[bit % 16, bit % 8] ^= np.uint32(1 << bit)
        seen.add(manager.checksum(params | {"w": words.view(np.float32)}, state))
    loss_stats = dataclasses.replace(state["loss_stats"], num_seen=state["loss_stats"].num_seen ^ 1)
    seen.add(manager.checksum(params, state | {"loss_stats": loss_stats}))
    assert len(seen) == 8


def test_the_check_sum_is_the_same_on_any_mesh(mesh):
    sums = {
        manager.checksum(*saved.make(sharding.make_mesh(**axes), 3))
        for axes in ({}, {"data": 8}, {"data": 4, "model": 2})
    }
    assert len(sums) == 1


def test_an_empty_directory_is_damaged(copied, make_series, mesh, said):
    shutil.rmtree(copied / "6")
    (copied / "6").mkdir()
    assert_one_before_is_used(copied, make_series, mesh, said)


def test_a_file_in_the_place_of_a_checkpoint_is_damaged(copied, make_series, mesh, said):
    shutil.rmtree(copied / "6")
    (copied / "6").write_text("")
    assert_one_before_is_used(copied, make_series, mesh, said)


@pytest.mark.parametrize("item", ["params", "state", "cursor", "meta"])
def test_a_part_that_is_missing_is_damage(item, copied, make_series, mesh, said):
    shutil.rmtree(copied / "6" / item)
    assert_one_before_is_used(copied, make_series, mesh, said)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "{}", '{"stage": 5}', '{"stage": "first"}'])
def test_notes_that_are_garbage_are_damage_even_where_they_can_be_parsed(text, copied, make_series, mesh, said):
    [file] = copied.glob("6/meta/_strings.json")
    file.write_text(text)
    assert_one_before_is_used(copied, make_series, mesh, said)


def test_a_checkpoint_without_a_check_sum_is_damaged(two_saved, copied, make_series, mesh, said):
    """Notes of another writer, or of a hand: readable, but they do not vouch for the arrays."""
    from orbax.checkpoint import v1 as ocp

    shutil.rmtree(copied / "6" / "meta")
    ocp.save_checkpointables(copied / "other", {"meta": saved.META})
    (copied / "other" / "meta").rename(copied / "6" / "meta")
    shutil.rmtree(copied / "other")
    assert_one_before_is_used(copied, make_series, mesh, said)


def test_where_none_is_whole_nothing_is_touched(copied, make_series, mesh, said):
    """Then something is wrong with the disk, or this program, rather than with all of them: a run that began anew would
    lose everything.
    """
    for step in (5, 6):
        shutil.rmtree(copied / str(step) / "params")
    with pytest.raises(
        ValueError, match=r"none of the 2 checkpoints in .* can be read \(step 6: .*\); find out why, or"
    ):
        saved.restore(make_series(), mesh)
    assert said == [] and not copied.with_name("damaged").exists()
    assert sorted(path.name for path in copied.iterdir()) == ["5", "6"]


def test_what_is_damaged_takes_the_place_of_what_was_set_aside_before(copied, make_series, mesh, said):
    (copied.with_name("damaged") / "6").mkdir(parents=True)
    (copied.with_name("damaged") / "6" / "old").write_text("")
    shutil.rmtree(copied / "6" / "params")
    assert_one_before_is_used(copied, make_series, mesh, said)
    assert not (copied.with_name("damaged") / "6" / "old").exists()


def test_the_step_of_a_damaged_checkpoint_can_be_saved_again(copied, make_series, mesh, said):
    shutil.rmtree(copied / "6" / "state")
    of = make_series()
    assert saved.restore(of, mesh).step == 5
    saved.save(of, 6, mesh)
    found = saved.restore(make_series(), mesh)
    assert found.step == 6 and len(said) == 1
    saved.assert_same((found.params, found.state), saved.make(mesh, 6))


@pytest.mark.parametrize("error", [MemoryError("too large"), RuntimeError("RESOURCE_EXHAUSTED: too large")], ids=str)
def test_too_little_memory_is_no_damage(error, copied, make_series, mesh, monkeypatch):
    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(manager.ocp, "load_checkpointables", refuse)
    with pytest.raises(type(error), match="too large"):
        saved.restore(make_series(), mesh)
    assert manager.steps(copied) == [6, 5] and not copied.with_name("damaged").exists()
