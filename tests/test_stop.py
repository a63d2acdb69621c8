"""Real processes: what a signal, a hang, and a second process in the same directory do."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests import runs

# Each starts the program several times; tests/train/test_interrupts.py has the signals, and test_watchdog.py the hangs.
pytestmark = pytest.mark.slow
SLOW = "--config.stages.first.num_steps=2000"  # there is always a step to stop in

data = runs.data  # a fixture


def wait_for_rows(process, workdir, num_rows):
    deadline = time.monotonic() + 120
    while runs.num_rows(workdir) < num_rows:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_and_the_same_command_goes_on(data, tmp_path, number):
    process = runs.start(data, tmp_path / "run", SLOW, num_devices=1)
    wait_for_rows(process, tmp_path / "run", 4)
    process.send_signal(number)
    err = runs.finish(process, status=75)
    assert f"gemma3_jax: {number.name}: saving, then stopping; again stops at once" in err
    rows = runs.rows(tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / str(len(rows))).is_dir()
    assert f"stopped: saved step {len(rows)} of first; run the same command to resume" in err
    process = runs.start(data, tmp_path / "run", SLOW, num_devices=1)
    wait_for_rows(process, tmp_path / "run", len(rows) + 1)
    with_another = subprocess.run(process.args, capture_output=True, text=True)
    assert with_another.returncode == 1 and "another process trains in" in with_another.stderr
    process.kill()
    assert f"resuming from step {len(rows)}, in first" in process.communicate()[1]


# A step, or a checkpoint, that never ends.
HANG = """
import sys, time
from gemma3_jax.data import stream
from gemma3_jax.checkpoint import manager
from gemma3_jax.cli import program

def hang(*args, **kwargs):
    print("hanging", file=sys.stderr, flush=True)
    time.sleep(1000)

inner = stream.Stream.__next__
if sys.argv[1] == "step":
    stream.Stream.__next__ = lambda self: hang() if self.step == 5 else inner(self)
elif sys.argv[1] == "save":
    manager.CheckpointManager.finish = hang
else:
    stream.Stream.__init__ = hang
sys.argv[1:] = sys.argv[2:]
program.run()
"""


def start_hanging(data, workdir, where, *flags):
    line = [sys.executable, "-c", HANG, where, *runs.command(data, workdir, *flags)]
    return subprocess.Popen(line, env=os.environ | {"XLA_FLAGS": ""}, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("phase", ["step", "save", "start_up"])
def test_a_phase_that_hangs_leaves_its_stacks_and_status_124(data, tmp_path, phase):
    seconds = 40 if phase == "start_up" else 4  # longer than it takes before it hangs, on a busy machine too
    process = start_hanging(data, tmp_path / "run", phase, f"--config.deadlines.{phase}={seconds}")
    err = runs.finish(process, status=124)
    assert f"stalled: {phase} has taken over {seconds} s (config.deadlines.{phase})" in err
    stacks = (tmp_path / "run" / "stacks-0.txt").read_text()
    assert "in hang" in stacks and "in hang" in err and "loop.py" in stacks


def test_a_second_ctrl_c_does_not_wait_for_a_step_that_hangs(data, tmp_path):
    process = start_hanging(data, tmp_path / "run", "step")
    while "hanging" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert "saving, then stopping; again stops at once" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    err = runs.finish(process, status=130, seconds=20)
    assert "SIGINT again: stopped at once; steps since the last checkpoint are lost" in err


def test_ctrl_c_before_the_first_step_ends_at_once(data, tmp_path):
    process = start_hanging(data, tmp_path / "run", "start_up")
    while "hanging" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert "no step is lost; run the same command to resume" in runs.finish(process, status=75, seconds=20)
