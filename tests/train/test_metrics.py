"""Rows: what they say, by hand, and that each place they go to holds each step once."""

import json
import math
import os
import pathlib
import struct
import types

import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax.durable import jsonl
from gemma3_jax.train import goodput, metrics, settings
from tests import disks
from tests.train import stage_runs

# Nobody closes the events: they are on the disk after every row.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*tfevents:ResourceWarning")
PLACE = {"stage": "first", "step": 5, "global_step": 105, "batch_id": "abc"}


def reported(**more):
    """What a step reports: arrays."""
    return {name: np.asarray(value) for name, value in {"loss": np.float32(1.5), "skipped": False, **more}.items()}


@pytest.fixture(scope="module")
def program():
    return stage_runs.make(num_devices=4).program


# --- a row ---


def test_a_row_has_plain_numbers_under_the_names_of_the_step():
    found = metrics.row(PLACE, reported(gradient_norm=np.float32(0.25), num_targets=np.int32(7)), 4_096)
    assert found == PLACE | {
        "loss": 1.5,
        "skipped": False,
        "gradient_norm": 0.25,
        "num_targets": 7,
        "tokens_seen": 4_096,
    }
    assert [type(found[name]) for name in ("loss", "skipped", "num_targets")] == [float, bool, int]
    assert json.loads(json.dumps(found)) == found


def test_bits_per_byte_are_the_nats_of_a_target_over_its_bytes():
    found = metrics.row(PLACE, reported(loss=np.float32(3.0), bytes_per_target=np.float32(4.0)), 0)
    assert found["bits_per_byte"] == pytest.approx(3 / 0.6931471805599453 / 4) and "bytes_per_target" not in found


def test_a_row_of_a_stage_that_does_not_count_bytes_has_no_bits():
    assert "bits_per_byte" not in metrics.row(PLACE, reported(), 0)


def test_a_loss_that_is_not_finite_is_a_row_too():
    found = metrics.row(PLACE, reported(loss=np.float32("nan"), bytes_per_target=np.float32(4.0)), 0)
    assert math.isnan(found["loss"]) and math.isnan(found["bits_per_byte"])


def test_arrays_of_a_device_make_the_same_row_as_those_of_the_host():
    values = reported(loss=np.float32(2.25), num_targets=np.int32(7), bytes_per_target=np.float32(3.0))
    on_device = {name: jnp.asarray(value) for name, value in values.items()}
    assert metrics.row(PLACE, values, 1) == metrics.row(PLACE, on_device, 1)


# --- speeds ---


@pytest.fixture
def clock():
    return types.SimpleNamespace(now=100.0)


@pytest.fixture
def ledger(tmp_path, clock):
    return goodput.Ledger(jsonl.Journal(tmp_path / "goodput.jsonl", pytest.fail), lambda: clock.now)


def spend(ledger, clock, **seconds):
    for kind, number in seconds.items():
        with ledger.spend(kind):
            clock.now += number


def test_speeds_by_hand(program, ledger, clock):
    meter = metrics.Meter(ledger, peak_flops=1e9)
    for _ in range(4):
        spend(ledger, clock, data=0.5, step=2.0)
        meter.count()
    spend(ledger, clock, save=3.0, compile=50.0)  # slow no step
    clock.now += 7  # nor does what is between
    found = meter.read(program)
    assert found.pop("peak_memory_bytes") > 0
    assert found == {
        "step_seconds": 2.5,
        "tokens_per_second": 400.0,
        "tokens_per_second_per_chip": 100.0,
        "data_wait_share": 0.2,
        "save_seconds": 3.0,
        "mfu": pytest.approx(100.0 * 6e6 / 1e9),
    }


def test_speeds_are_of_what_was_since_they_were_last_read(program, ledger, clock):
    spend(ledger, clock, data=100.0, step=100.0)  # before there was a meter
    meter = metrics.Meter(ledger, peak_flops=None)
    spend(ledger, clock, data=1.0, step=1.0, save=5.0)
    meter.count()
    assert meter.read(program)["tokens_per_second"] == 500.0
    spend(ledger, clock, step=8.0)
    meter.count()
    meter.count()
    found = meter.read(program)
    assert (found["tokens_per_second"], found["data_wait_share"], found["save_seconds"]) == (250.0, 0.0, 0.0)


def test_speeds_within_a_step_that_goes_on_count_it_up_to_now(program, ledger, clock):
    meter = metrics.Meter(ledger, peak_flops=None)
    with ledger.spend("step"):
        clock.now += 4
        meter.count()
        assert meter.read(program)["step_seconds"] == 4.0
        clock.now += 6
        meter.count()
        assert meter.read(program)["step_seconds"] == 6.0


def test_there_is_no_mfu_where_the_peak_is_not_known(program, ledger, clock):
    meter = metrics.Meter(ledger, peak_flops=None)
    spend(ledger, clock, step=1.0)
    meter.count()
    found = meter.read(program)
    assert "mfu" not in found and set(found) <= set(metrics.TIMINGS)


def test_a_clock_that_stands_still_is_no_division_by_zero(program, ledger):
    meter = metrics.Meter(ledger, peak_flops=None)
    meter.count()
    assert meter.read(program)["tokens_per_second"] > 0


# --- where rows go ---


def a_row(global_step, **more):
    return {"stage": "first", "step": global_step, "global_step": global_step, "batch_id": f"b{global_step}"} | {
        "loss": 1.5,
        "gradient_norm": 0.25,
        "skipped": False,
        "time": 1_000.0 + global_step,
        **more,
    }


@pytest.fixture
def writers(tmp_path, said):
    def make(after=0, shown=None, **log):
        return metrics.Writers(
            tmp_path,
            settings.Log(**{"tensorboard": False, **log}),
            after=after,
            config={"seed": 7},
            warn=said.append,
            show=(lambda row: None) if shown is None else shown.append,
        )

    return make


def rows_of(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_row_goes_to_the_file_and_is_shown(writers, tmp_path):
    shown = []
    at = writers(shown=shown)
    at.write(a_row(1))
    at.write(a_row(2, loss=float("inf")))
    assert rows_of(tmp_path / "metrics.jsonl") == [a_row(1), a_row(2, loss=None)]
    assert shown == [a_row(1), a_row(2, loss=float("inf"))]
    assert not (tmp_path / "tensorboard").exists() and not (tmp_path / "wandb").exists()


def test_a_step_that_was_not_believed_is_noted_with_its_batch(writers, tmp_path):
    writers().skip(a_row(3, loss=float("nan"), tokens_seen=9))
    assert rows_of(tmp_path / "skipped.jsonl") == [
        {"stage": "first", "step": 3, "global_step": 3, "batch_id": "b3", "loss": None, "gradient_norm": 0.25}
    ]


def test_rows_of_steps_that_are_done_again_are_cut_off(writers, tmp_path):
    at = writers()
    for step in range(1, 6):
        at.write(a_row(step))
        at.skip(a_row(step))
    with (tmp_path / "metrics.jsonl").open("ab") as killed:
        killed.write(b'{"stage": "fir')
    at = writers(after=3)
    for name in (metrics.FILE, metrics.SKIPPED_FILE):
        assert [row["global_step"] for row in rows_of(tmp_path / name)] == [1, 2, 3]
    at.write(a_row(4, loss=9.0))
    assert [row["loss"] for row in rows_of(tmp_path / metrics.FILE)] == [1.5, 1.5, 1.5, 9.0]


@pytest.mark.parametrize("name", ["metrics.jsonl", "skipped.jsonl", "evaluations.jsonl"])
def test_rows_of_another_form_are_dropped_with_a_warning(writers, tmp_path, said, name):
    other = '{"loss": 1.5}\n{"global_step": "3"}\n[1]\n'
    (tmp_path / name).write_text(json.dumps(a_row(1)) + "\n" + other + json.dumps(a_row(2)) + "\n")
    writers(after=1)
    assert rows_of(tmp_path / name) == [a_row(1)]
    assert said == [f"{tmp_path / name}: 3 of 5 lines are of another form, and are dropped"]


def test_going_back_to_the_start_leaves_no_row(writers, tmp_path):
    writers().write(a_row(1))
    writers(after=0)
    assert (tmp_path / metrics.FILE).read_bytes() == b""


def test_flushing_has_rows_and_skipped_steps_reach_the_disk(writers, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    at = writers()
    at.write(a_row(1))
    at.skip(a_row(1))
    assert synced == []
    at.flush()
    assert synced == [str(tmp_path / metrics.FILE), str(tmp_path / metrics.SKIPPED_FILE)]


# --- TensorBoard ---


def events(file: pathlib.Path) -> list:
    """The events of a file, by hand: (length, its check sum, data, its check sum) until nothing is left."""
    from tensorboardX import record_writer
    from tensorboardX.proto import event_pb2

    content, found = file.read_bytes(), []
    while content:
        [length] = struct.unpack("<Q", content[:8])
        head, data, sums = content[:8], content[12 : 12 + length], content[8:12] + content[12 + length : 16 + length]
        assert struct.unpack("<II", sums) == (record_writer.masked_crc32c(head), record_writer.masked_crc32c(data))
        found.append(event_pb2.Event.FromString(data))
        content = content[16 + length :]
    return found


def event_files(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    return sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: path.name.split(".")[-1])


def test_tensorboard_gets_every_number_of_a_row_under_its_stage(writers, tmp_path):
    writers(tensorboard=True).write(a_row(7, loss=2.5))
    [file] = event_files(tmp_path)
    assert ".tfevents." in file.name  # by which the viewer finds it
    version, session, row = events(file)
    assert version.file_version == "brain.Event:2"
    assert (row.step, row.wall_time) == (7, 1_007.0)
    assert {value.tag: value.simple_value for value in row.summary.value} == {
        "first/step": 7.0,
        "first/global_step": 7.0,
        "first/loss": 2.5,
        "first/gradient_norm": 0.25,
        "first/skipped": 0.0,
    }


def test_tensorboard_is_told_from_which_step_on_it_is_done_again(writers, tmp_path):
    at = writers(tensorboard=True)
    for step in (1, 2, 3):
        at.write(a_row(step))
    writers(tensorboard=True, after=2).write(a_row(3, loss=9.0))
    old, new = map(events, event_files(tmp_path))
    assert [event.step for event in old[2:]] == [1, 2, 3] and [event.step for event in new[2:]] == [3]
    for session, step in ((old[1], 1), (new[1], 3)):
        assert session.session_log.status == session.session_log.START and session.step == step


def test_tensorboard_has_a_row_at_once(writers, tmp_path):
    """A process that is killed loses nothing of it."""
    at = writers(tensorboard=True)
    for step in (1, 2, 3):
        at.write(a_row(step))
        assert events(event_files(tmp_path)[0])[-1].step == step


def test_numbers_that_are_not_finite_stay_so_in_tensorboard_and_are_told_once(writers, tmp_path, said, caplog):
    at = writers(tensorboard=True)
    for step in (1, 2):
        at.write(a_row(step, loss=float("nan"), gradient_norm=float("inf")))
    [file] = event_files(tmp_path)
    [loss] = [value.simple_value for value in events(file)[-1].summary.value if value.tag == "first/loss"]
    assert math.isnan(loss)
    assert said == ["warning: first/loss is nan at step 1; TensorBoard shows no such points"] and not caplog.records


def test_no_place_for_tensorboard_is_told_and_rows_go_on(writers, tmp_path, said):
    (tmp_path / "tensorboard").write_text("a file where the directory should be")
    writers(tensorboard=True).write(a_row(1))
    [line] = said
    assert "cannot be written, and is tried again: File exists" in line
    assert rows_of(tmp_path / metrics.FILE) == [a_row(1)]


@pytest.fixture
def small_disk(tmp_path):
    with disks.small(tmp_path / "tensorboard", kib=128, is_busy=True) as disk:
        yield disk  # the events file is still open


def test_a_disk_that_is_full_for_a_while_spoils_no_event_before_or_after(writers, small_disk, tmp_path):
    """The viewer stops reading a file at the first event that it cannot read."""
    at = writers(tensorboard=True)
    at.write(a_row(1))
    filler = disks.fill(small_disk)
    for step in range(2, 200):
        at.write(a_row(step))
    filler.unlink()
    at.write(a_row(200))
    at.write(a_row(201))
    steps = [event.step for file in event_files(tmp_path) for event in events(file) if event.summary.value]
    assert {1, 200, 201} <= set(steps) and steps == sorted(set(steps))


# --- wandb ---


@pytest.mark.interop
def test_wandb_keeps_one_run_for_all_processes_of_a_run(writers, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for after in (0, 2):
        at = writers(after=after, wandb_project="toys")
        at.write(a_row(after + 1))
        ids.append(((tmp_path / metrics.WANDB_ID_FILE).read_text(), wandb.run.id, wandb.run.project))
        assert wandb.run.config["seed"] == 7
        wandb.finish()
    assert ids[0] == ids[1] and ids[0][0] == ids[0][1] and ids[0][2] == "toys"
