"""Real processes that get real signals: the first one asks, the second one ends."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from gemma3_jax.train import interrupts

SIGNALS = [signal.SIGINT, signal.SIGTERM]
HEAD = """
import ctypes, os, signal, sys, threading, time
from gemma3_jax.train import interrupts

def say(line):
    print(line, file=sys.stderr, flush=True)

def ready():
    print("ready", flush=True)

def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
"""


@pytest.fixture
def start():
    """Starts a process that has said that it is ready; kills what is left of it."""
    started = []

    def begin(code: str, **options) -> subprocess.Popen:
        env = {**os.environ, "JAX_PLATFORMS": "cpu"}
        line = [sys.executable, "-c", HEAD + textwrap.dedent(code)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        started.append(subprocess.Popen(line, env=env, text=True, **options))
        assert started[-1].stdout.readline() == "ready\n", started[-1].stderr.read()
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen) -> tuple[int, str, str]:
    """The exit status, stdout and stderr."""
    out, err = process.communicate(timeout=20)  # under the 30 s of what hangs
    return process.returncode, out, err


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_the_run_goes_on(number, start):
    process = start(
        """
        with interrupts.Interrupts(say).handled() as pressed:
            pressed.unsaved = True
            assert not pressed.requested
            ready()
            wait_for(lambda: pressed.requested)
            time.sleep(0.2)
            print("saved", flush=True)
        sys.exit(interrupts.STOPPED)
        """
    )
    process.send_signal(number)
    name = signal.Signals(number).name
    assert end(process) == (75, "saved\n", f"gemma3_jax: {name}: saving, then stopping; again stops at once\n")


HUNG = {  # what a main thread may be in when a signal comes
    "python": "time.sleep(30)",
    "a lock": "threading.Event().wait()",
    "C": "ctypes.CDLL(None).sleep(30)",
}


@pytest.mark.parametrize("hung", HUNG)
@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_ends_at_once_whatever_the_main_thread_does(number, hung, start):
    process = start(
        f"""
        with interrupts.Interrupts(say).handled() as pressed:
            pressed.unsaved = True
            ready()
            {HUNG[hung]}
            {HUNG[hung]}  # a signal may end the first one early
        """
    )
    process.send_signal(number)
    name = signal.Signals(number).name
    first = process.stderr.readline()
    assert first == f"gemma3_jax: {name}: saving, then stopping; again stops at once\n"
    process.send_signal(number)
    status, _, said = end(process)
    assert status == 128 + number
    assert said == f"gemma3_jax: {name} again: stopped at once; steps since the last checkpoint are lost\n"


def test_the_second_signal_may_be_the_other_one(start):
    process = start(
        """
        with interrupts.Interrupts(say).handled() as pressed:
            pressed.unsaved = True
            ready()
            time.sleep(30)
        """
    )
    process.send_signal(signal.SIGINT)
    assert "SIGINT: saving" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    status, _, said = end(process)
    assert status == 143 and "SIGTERM again" in said


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("hung", ["python", "C"])
def test_the_first_signal_with_nothing_unsaved_ends_at_once(number, hung, start):
    process = start(
        f"""
        with interrupts.Interrupts(say).handled():
            ready()
            {HUNG[hung]}
        """
    )
    process.send_signal(number)
    name = signal.Signals(number).name
    text = f"gemma3_jax: stopped by {name}; no step is lost; run the same command to resume\n"
    assert end(process) == (interrupts.STOPPED, "", text)


def test_whether_something_is_unsaved_counts_when_the_signal_comes(start):
    process = start(
        """
        with interrupts.Interrupts(say).handled() as pressed:
            pressed.unsaved = True
            pressed.unsaved = False  # saved at the end of a stage
            ready()
            time.sleep(30)
        """
    )
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 75


@pytest.mark.parametrize("unsaved, signals, status", [(True, 2, 128 + signal.SIGINT), (False, 1, 75)])
def test_signals_work_when_nobody_listens(unsaved, signals, status, start):
    """As in `train 2>&1 | tee log`: Ctrl-C ends tee too, and writing to it is an error from then on."""
    reader, writer = os.pipe()
    process = start(
        f"""
        with interrupts.Interrupts(say).handled() as pressed:
            pressed.unsaved = {unsaved}
            ready()
            for _ in range(80):  # 8 s
                time.sleep(0.1)
                if pressed.requested:
                    print("requested", flush=True)
        """,
        stderr=writer,
    )
    os.close(writer)
    os.close(reader)
    process.send_signal(signal.SIGINT)
    if signals == 2:
        assert process.stdout.readline() == "requested\n"
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == status


def test_a_signal_that_is_not_ours_changes_nothing(start):
    process = start(
        """
        seen = []
        signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
        with interrupts.Interrupts(say).handled() as pressed:
            ready()
            wait_for(lambda: seen)
            time.sleep(0.2)
            print(pressed.requested)
        """
    )
    process.send_signal(signal.SIGUSR1)
    assert end(process) == (0, "False\n", "")


def test_handlers_are_as_they_were_afterwards():
    def mine(number, frame):
        seen.append(number)

    seen, descriptors = [], len(os.listdir("/proc/self/fd"))
    previous = {number: signal.signal(number, mine) for number in SIGNALS}
    try:
        for _ in range(3):
            with interrupts.Interrupts(seen.append).handled():
                assert all(signal.getsignal(number) is not mine for number in SIGNALS)
        for number in SIGNALS:
            assert signal.getsignal(number) is mine
            signal.raise_signal(number)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    assert seen == SIGNALS and len(os.listdir("/proc/self/fd")) == descriptors
    assert signal.set_wakeup_fd(-1) == -1


def test_handlers_are_as_they_were_after_an_error_too():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(OSError, match="no room"), interrupts.Interrupts(print).handled():
        raise OSError("no room")
    assert [signal.getsignal(number) for number in SIGNALS] == before
