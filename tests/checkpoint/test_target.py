import signal
import subprocess
import sys

import pytest

from gemma3_jax.checkpoint import export, target
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.model import lora
from tests import disks, texts, toys
from tests.checkpoint import test_peft
from tests.checkpoint.test_gguf_file import MODEL, PLANS
from tests.checkpoint.test_hf import make_directory


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
def test_a_disk_that_fills_up_half_way_leaves_nothing(kind, small_disk, tmp_path):
    options = {}
    if kind == "gguf":
        options = {"plan": PLANS[0], "tokenizer": texts.tokenizer()}
    if kind == "peft":
        adapters = test_peft.write(tmp_path / "adapters", make_directory(tmp_path / "base"), lora.Lora(rank=16))
        options = {"adapted": checkpoint_open.open_checkpoint(adapters)}
    model = toys.TOY if kind == "peft" else MODEL
    with pytest.raises(OSError, match=r"(?i)no space left"):
        export.Export(kind, model, **options).write(small_disk / "out", toys.source(model))
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
    assert capsys.readouterr().err.count("stopping when this write ends; a second signal stops now and leaves") == 2


def test_a_second_signal_does_not_wait(tmp_path):
    code = (
        "import pathlib, signal\nfrom gemma3_jax.checkpoint import target\n"
        "with target.uninterrupted(pathlib.Path('part')):\n"
        "    signal.raise_signal(signal.SIGINT)\n    print('one', flush=True)\n    signal.raise_signal(signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and done.stdout == "one\n" and "stops now and leaves part" in done.stderr
