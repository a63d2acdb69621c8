import signal
import subprocess
import sys

import pytest

from gemma3_jax.checkpoint import export, target
from tests import disks, texts, toys
from tests.checkpoint.test_gguf_file import MODEL, PLANS


def test_a_directory_appears_whole(tmp_path):
    with target.new(tmp_path / "out") as (partial,):
        partial.mkdir()
        (partial / "file").write_text("x")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out" / "file").read_text() == "x"


def test_files_appear_whole_and_together(tmp_path):
    with target.new(tmp_path / "a", tmp_path / "b") as partials:
        for partial in partials:
            partial.write_text("x")
        assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(OSError), target.new(tmp_path / "c", tmp_path / "d") as partials:
        partials[0].write_text("x")
        raise OSError("no")
    with pytest.raises(ValueError, match="b was made by someone else meanwhile"):
        with target.new(tmp_path / "e", tmp_path / "b") as partials:
            for partial in partials:
                partial.write_text("y")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"] and (tmp_path / "b").read_text() == "x"


@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt(), SystemExit(143)])
def test_nothing_is_left_when_writing_stops_early(error, tmp_path):
    with pytest.raises(type(error)), target.new(tmp_path / "out") as (partial,):
        partial.mkdir()
        (partial / "file").write_text("x")
        partial.with_name(f"{partial.name}.orbax-checkpoint-tmp").mkdir()  # where Orbax writes first
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_target_made_meanwhile_is_not_overwritten(tmp_path):
    with pytest.raises(ValueError, match=r"out was made by someone else meanwhile"):
        with target.new(tmp_path / "out") as (partial,):
            partial.mkdir()
            (tmp_path / "out").mkdir()
    assert list((tmp_path / "out").iterdir()) == [] and len(list(tmp_path.iterdir())) == 1


def test_a_target_that_exists_is_refused(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path} exists; choose another --target"):
        target.check_new(tmp_path, 0)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"dangling exists; choose another --target"):
        target.check_new(tmp_path / "dangling", 0)


def test_a_target_without_a_parent_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is not a directory; --target needs an existing parent"):
        target.check_new(tmp_path / "nowhere" / "out", 0)


def test_a_target_larger_than_its_disk_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"out needs \d+ KiB, but its disk has \d+ KiB free"):
        target.check_new(tmp_path / "out", 1 << 60)


@pytest.fixture
def small_disk(tmp_path):
    with disks.small(tmp_path / "disk", kib=128) as disk:
        yield disk


@pytest.mark.parametrize("kind", export.KINDS)
def test_a_disk_that_fills_up_half_way_leaves_nothing(kind, small_disk):
    plan, tokenizer = (PLANS[0], texts.tokenizer()) if kind == "gguf" else (None, None)
    asked = export.Export(kind, MODEL, plan, tokenizer=tokenizer)
    with pytest.raises(OSError, match=r"(?i)no space left"):
        asked.write(small_disk / "out", toys.params(MODEL))
    assert list(small_disk.iterdir()) == []


def test_a_signal_waits_for_the_write_in_hand(tmp_path, capsys):
    def stop(number, frame):
        raise SystemExit(128 + number)

    reached = []
    for number in (signal.SIGINT, signal.SIGTERM):
        previous = signal.signal(number, stop)
        try:
            with pytest.raises(SystemExit, match=str(128 + number)), target.uninterrupted(tmp_path / "part"):
                signal.raise_signal(number)
                reached.append(number)
        finally:
            signal.signal(number, previous)
    assert reached == [signal.SIGINT, signal.SIGTERM]
    assert capsys.readouterr().err.count("stopping once the write in hand ends; again stops now and leaves") == 2


def test_a_second_signal_does_not_wait(tmp_path):
    code = (
        "import pathlib, signal\nfrom gemma3_jax.checkpoint import target\n"
        "with target.uninterrupted(pathlib.Path('part')):\n"
        "    signal.raise_signal(signal.SIGINT)\n    print('one', flush=True)\n    signal.raise_signal(signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and done.stdout == "one\n" and "stops now and leaves part" in done.stderr


def test_a_signal_during_the_cleaning_up_cleans_up_again(tmp_path):
    """Two signals in a row, as an impatient user sends them: the second finds the first one's work half done."""
    code = (
        "import pathlib, shutil, signal\nfrom gemma3_jax.cli import program\nfrom gemma3_jax.checkpoint import target\n"
        "signal.signal(signal.SIGINT, program._stop)\nremove, calls = shutil.rmtree, []\n"
        "def rmtree(*a, **k):\n"
        "    calls.append(1)\n    if len(calls) == 1: signal.raise_signal(signal.SIGINT)\n    remove(*a, **k)\n"
        "shutil.rmtree = rmtree\n"
        f"with target.new(pathlib.Path({str(tmp_path / 'out')!r})) as (partial,):\n"
        "    partial.mkdir()\n    signal.raise_signal(signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and "what was being written is removed" in done.stderr
    assert list(tmp_path.iterdir()) == []
