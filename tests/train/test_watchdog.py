"""The watchdog: real processes that hang end with 124 and print their stacks; others do not notice it."""

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from gemma3_jax.train import settings, watchdog

HEAD = """
import ctypes, pathlib, sys, threading, time
from gemma3_jax.train import settings, watchdog

def a_function_that_hangs(seconds=30):
    time.sleep(seconds)

stacks = pathlib.Path(sys.argv[1])
"""


@pytest.fixture
def stacks(tmp_path):
    return tmp_path / "stacks-0.txt"


def start(stacks: pathlib.Path, code: str, deadlines: dict, **options) -> subprocess.Popen:
    """Starts a process that runs `code` under a `watch` of these deadlines."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    watch = f"watch = watchdog.Watchdog(settings.Deadlines(**{deadlines}), stacks)\n"
    line = [sys.executable, "-c", HEAD + watch + textwrap.dedent(code), str(stacks)]
    return subprocess.Popen(line, env=env, text=True, **{"stderr": subprocess.PIPE, **options})


def end(stacks: pathlib.Path, code: str, **deadlines: float) -> tuple[int, str]:
    """The exit status, and stderr."""
    process = start(stacks, code, deadlines)
    _, stderr = process.communicate(timeout=25)  # under the 30 s of what hangs
    return process.returncode, stderr


def stall(stacks: pathlib.Path, code: str, **deadlines: float) -> str:
    """Stderr of a process that the watchdog ended."""
    status, stderr = end(stacks, code, **deadlines)
    assert status == watchdog.STALLED == 124, stderr
    return stderr


def assert_named(text: str) -> None:
    """The stack of what hangs, down to the line."""
    assert "in a_function_that_hangs" in text and 'File "<string>", line 6' in text


@pytest.mark.parametrize("phase", ["start_up", "compile", "step", "save"])
def test_a_phase_over_its_deadline_ends_the_process_and_prints_where_it_hung(phase, stacks):
    stderr = stall(stacks, f"with watch.phase('{phase}'): a_function_that_hangs()", **{phase: 0.25})
    first, *stack = stderr.splitlines()
    assert first == (
        f"gemma3_jax: stalled: {phase} has taken over 0.25 s (config.deadlines.{phase}); the stacks of all threads "
        f"are below and in {stacks}"
    )
    assert_named("\n".join(stack))
    assert_named(stacks.read_text())


def test_a_thread_that_hangs_ends_the_process_too_and_is_named(stacks):
    code = """
        def save():
            with watch.phase("save"):
                a_function_that_hangs()

        thread = threading.Thread(target=save)
        thread.start()
        thread.join()
    """
    stderr = stall(stacks, code, save=0.25)
    assert "stalled: save" in stderr
    assert_named(stderr)
    assert_named(stacks.read_text())


def test_a_thread_that_is_still_saving_when_its_deadline_comes_ends_a_run_whose_steps_are_well(stacks):
    code = """
        watch.start("save")
        while True:
            with watch.phase("step"):
                time.sleep(0.01)
    """
    assert "stalled: save has taken over 0.25 s" in stall(stacks, code, save=0.25, step=20)


def test_the_phase_that_is_over_its_deadline_is_named_not_the_one_that_began_first(stacks):
    code = "with watch.phase('save'), watch.phase('step'): a_function_that_hangs()"
    assert "stalled: step has taken over 0.25 s" in stall(stacks, code, save=20, step=0.25)


def test_what_hangs_in_c_is_found(stacks):
    code = """
        def a_function_that_hangs():
            ctypes.CDLL(None).sleep(30)

        with watch.phase("step"):
            a_function_that_hangs()
    """
    assert "in a_function_that_hangs" in stall(stacks, code, step=0.25)


def test_a_phase_that_ends_in_time_does_nothing_however_often_and_long_afterwards(stacks):
    code = """
        began = time.monotonic()
        while time.monotonic() < began + 0.8:
            with watch.phase("step"), watch.phase("save"):
                time.sleep(0.02)
        time.sleep(0.6)
    """
    assert end(stacks, code, step=0.4, save=0.4) == (0, "") and not stacks.exists()


def test_a_phase_that_ends_in_an_error_has_ended(stacks):
    code = """
        try:
            with watch.phase("step"):
                raise OSError("no room")
        except OSError:
            time.sleep(0.5)
    """
    assert end(stacks, code, step=0.2) == (0, "")


def test_a_deadline_of_zero_is_none(stacks):
    code = """
        with watch.phase("step"):
            time.sleep(0.3)
        with watch.phase("save"):
            with watch.phase("step"):
                a_function_that_hangs()
    """
    assert "stalled: save" in stall(stacks, code, step=0, save=0.6)


def test_beginning_again_moves_the_deadline(stacks):
    code = """
        for _ in range(8):  # 0.8 s in all
            watch.start("step")
            time.sleep(0.1)
        print("moved", file=sys.stderr, flush=True)
        a_function_that_hangs()
    """
    stderr = stall(stacks, code, step=0.5)
    assert stderr.startswith("moved\ngemma3_jax: stalled: step has taken over 0.5 s")


def test_a_phase_with_a_short_deadline_that_begins_while_another_is_waited_for_is_seen(stacks):
    code = """
        watch.start("start_up")
        time.sleep(0.2)  # the watchdog now waits for the end of that one
        with watch.phase("step"):
            a_function_that_hangs()
    """
    assert "stalled: step" in stall(stacks, code, start_up=25, step=0.25)


def test_stacks_that_cannot_be_written_are_still_printed_and_the_process_ends(tmp_path):
    nowhere = tmp_path / "nowhere" / "stacks-0.txt"
    stderr = stall(nowhere, "with watch.phase('step'): a_function_that_hangs()", step=0.25)
    assert f"{nowhere}, which cannot be written: [Errno 2] No such file or directory" in stderr
    assert_named(stderr)


def test_a_process_whose_stderr_is_closed_ends_too(stacks):
    """The terminal is gone, or what stderr was piped to: the stacks are in the file."""
    reader, writer = os.pipe()
    os.close(reader)
    code = "with watch.phase('step'): a_function_that_hangs(8)"
    process = start(stacks, code, {"step": 0.25}, stderr=writer)
    os.close(writer)
    assert process.wait(timeout=25) == 124
    assert_named(stacks.read_text())


def test_a_phase_that_is_none_is_refused(stacks):
    watch = watchdog.Watchdog(settings.Deadlines(), stacks)
    with pytest.raises(KeyError, match="lunch"):
        watch.start("lunch")
