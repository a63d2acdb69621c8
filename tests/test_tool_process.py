"""A program that runs tool calls: what it prints, and that it ends with its processes, whatever happens."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from gemma3_jax.cli import tool_process

CALL = json.dumps({"name": "add", "parameters": {"a": "$(touch x); `touch y` | touch z"}})
HANGS = "sleep 1000 & echo $! >> {0}.new; echo $$ >> {0}.new; mv {0}.new {0}; "


@pytest.fixture
def make_tool(tmp_path):
    def make(script: str, name: str = "tool", shebang: str = "#!/bin/sh") -> str:
        path = tmp_path / name
        path.write_text(f"{shebang}\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


def is_running(pid: int) -> bool:
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # a zombie that nobody has waited for is dead


def assert_dead(file: pathlib.Path) -> None:
    """The processes whose ids are in a file are dead, or are about to be."""
    pids = list(map(int, file.read_text().split()))
    assert len(pids) == 2
    deadline = time.monotonic() + 5
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_running, pids))


def test_it_reads_the_call_and_no_shell_reads_it(make_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = make_tool("cat", name="a b; touch w")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert tool_process.run(command, CALL, 10) == CALL
    assert tool_process.run(pathlib.Path(command).name, CALL, 10) == CALL  # of the working directory, not of PATH
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    with pytest.raises(ValueError, match=r"--tool_command cat cannot be run: No such file or directory"):
        tool_process.run("cat", CALL, 10)


def test_one_that_does_not_read_its_call_is_no_error(make_tool):
    assert tool_process.run(make_tool("exec <&-; echo ' 4\n'"), json.dumps("x" * 1_000_000), 10) == "4"


@pytest.mark.parametrize("script", ["wait", "exec sleep 1000", "trap '' TERM INT HUP; wait; wait", "yes >/dev/null"])
def test_one_that_hangs_has_a_deadline(make_tool, tmp_path, script):
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"tool took over 0.2 s, and was killed; --tool_timeout sets the limit"):
        tool_process.run(make_tool(HANGS.format(tmp_path / "pids") + script), CALL, 0.2)
    assert time.monotonic() - start < 5
    assert_dead(tmp_path / "pids")


def test_what_it_leaves_behind_is_killed_and_not_waited_for(make_tool, tmp_path):
    start = time.monotonic()
    assert tool_process.run(make_tool(HANGS.format(tmp_path / "pids") + "echo 4"), CALL, 60) == "4"
    assert time.monotonic() - start < 5
    assert_dead(tmp_path / "pids")


def test_its_failure_is_the_last_line_of_its_errors(make_tool):
    with pytest.raises(ValueError, match=r"tool ended with status 3: it broke$"):
        tool_process.run(make_tool("echo here >&2; echo it broke >&2; exit 3"), CALL, 10)
    with pytest.raises(ValueError, match=r"tool ended with status -9: "):
        tool_process.run(make_tool("kill -9 $$"), CALL, 10)
    with pytest.raises(ValueError, match="tool ended with status 1: not \ufffd UTF-8"):
        tool_process.run(make_tool("printf 'not \\377 UTF-8' >&2; exit 1"), CALL, 10)


@pytest.mark.parametrize("stream", ["", " >&2"])
def test_one_that_prints_without_end_is_killed(make_tool, stream):
    with pytest.raises(ValueError, match="tool printed over 1,048,576 bytes, and was killed; print less"):
        tool_process.run(make_tool(f"yes{stream}"), CALL, 60)


def test_what_is_not_utf_8_is_no_result(make_tool):
    with pytest.raises(ValueError, match="tool printed what is not UTF-8: invalid start byte at byte 2"):
        tool_process.run(make_tool("printf 'ab\\377'"), CALL, 10)


def test_what_cannot_be_run_says_what_it_takes(make_tool, tmp_path):
    (tmp_path / "data").write_text("text")
    with pytest.raises(ValueError, match="data cannot be run: Permission denied; it must be executable"):
        tool_process.run(str(tmp_path / "data"), CALL, 10)
    with pytest.raises(ValueError, match="cannot be run: Exec format error; .* a script begins with #!"):
        tool_process.run(make_tool("echo 4", shebang=""), CALL, 10)


def test_a_signal_while_it_starts_reaches_it_too(make_tool, tmp_path, monkeypatch):
    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            while not (tmp_path / "pids").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    delivered = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: delivered.append(number) or tool_process.kill())
    monkeypatch.setattr(subprocess, "Popen", Popen)
    try:
        with pytest.raises(ValueError, match="ended with status -9"):
            tool_process.run(make_tool(HANGS.format(tmp_path / "pids") + "wait"), CALL, 60)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert delivered == [signal.SIGTERM]
    assert_dead(tmp_path / "pids")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_ends_with_a_program_that_a_signal_stops(make_tool, tmp_path, number):
    code = """
import sys
from gemma3_jax.cli import program, tool_process
program.main = lambda arguments: tool_process.run(sys.argv[1], "{}", 60)
program.run()
"""
    command = make_tool(HANGS.format(tmp_path / "pids") + "wait")
    process = subprocess.Popen([sys.executable, "-c", code, command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pids").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, number)
    err = process.communicate()[1]
    assert not err if number == signal.SIGHUP else f"stopped by {number.name}; " in err
    assert process.returncode == 128 + number
    assert_dead(tmp_path / "pids")
