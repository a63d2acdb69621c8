"""Real processes that are really killed: a run ends as if nothing had happened."""

import pathlib
import random
import signal
import time

import pytest

from gemma3_jax.checkpoint import manager
from tests import forks, runs

pytestmark = pytest.mark.slow

data = runs.data  # a fixture


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with forks.serve(8, tmp_path_factory.mktemp("forks") / "log") as server:
        yield server


@pytest.fixture(scope="module")
def straight(server, data, tmp_path_factory):
    """A run that nobody disturbs."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    assert server.run(runs.command(data, workdir)) == 0
    assert [row["global_step"] for row in runs.rows(workdir)] == list(range(1, 41))
    return workdir


def is_in_a_save(workdir: pathlib.Path) -> bool:
    return any(workdir.glob("checkpoints/*tmp*"))


def newest(workdir: pathlib.Path) -> int:
    return max(manager.steps(workdir / "checkpoints"), default=0)


def kill(process, when) -> bool:
    """SIGKILL once `when()` holds; False if the process ended before."""
    deadline = time.monotonic() + 120
    while process.poll() is None and not when():
        assert time.monotonic() < deadline, "the moment to kill it never came"
        time.sleep(0.0005)
    if process.poll() is not None:
        return False
    process.kill()
    process.wait()
    return True


def test_killed_at_25_moments_it_ends_like_the_straight_run_with_nothing_left(server, data, straight, tmp_path):
    draw, workdir, killed = random.Random(0), tmp_path / "run", []

    def moment(number):
        """A kind of moment in turn: in a save, on the boundary, after some more rows, at any time at all."""
        rows, delay = runs.num_rows(workdir), draw.uniform(0, 0.05)
        if number == 10:  # the boundary: the first stage's last checkpoint is being written
            return "boundary save", lambda: runs.num_rows(workdir) >= 20 and is_in_a_save(workdir)
        if number == 11:
            return "boundary", lambda: newest(workdir) == 20
        if number % 3 == 0:
            saved = newest(workdir)
            return "save", lambda: newest(workdir) > saved and is_in_a_save(workdir)
        if number % 3 == 1:
            started = time.monotonic() + draw.uniform(0.1, 4)
            return "any", lambda: time.monotonic() > started
        wanted = min(rows + draw.randint(1, 3), 19 if number < 10 else 39)
        return "rows", lambda: runs.num_rows(workdir) >= wanted and (time.sleep(delay) or True)

    for number in range(25):
        kind, when = moment(number)
        if kill(server.start(runs.command(data, workdir)), when):
            killed.append((kind, runs.num_rows(workdir)))
    print(killed)
    assert len(killed) == 25 and {kind for kind, _ in killed} == {"save", "boundary save", "boundary", "any", "rows"}
    assert server.run(runs.command(data, workdir)) == 0
    runs.assert_same_end(straight, workdir)
    assert names_in(workdir) == names_in(straight)


def names_in(workdir: pathlib.Path) -> list[str]:
    """Of its files, but for those whose names or number depend on how often it was started."""
    names = sorted(str(path.relative_to(workdir)) for path in workdir.rglob("*"))
    return [name for name in names if not name.startswith(("tensorboard/", "checkpoints/"))]


def test_a_run_goes_on_on_half_the_devices_and_then_on_two_hosts(data, straight, tmp_path):
    workdir = tmp_path / "run"
    process = runs.start(data, workdir)
    assert kill(process, lambda: newest(workdir) >= 6)
    process = runs.start(data, workdir, num_devices=4)
    assert kill(process, lambda: newest(workdir) >= 12)
    before = newest(workdir)
    for process in runs.start_two(runs.command(data, workdir)):
        err = runs.finish(process)
        assert "Traceback" not in err
    assert before >= 12
    runs.assert_same_but_for_rounding(straight, workdir)


def test_two_hosts_are_stopped_by_a_signal_to_one_and_go_on_as_one(data, straight, tmp_path):
    """The signal reaches one process; both save the same step, and stop."""
    workdir = tmp_path / "run"
    processes = runs.start_two(runs.command(data, workdir))
    deadline = time.monotonic() + 120
    while runs.num_rows(workdir) < 8 and all(process.poll() is None for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        runs.finish(process, status=75)
    stopped = newest(workdir)
    assert 8 <= stopped < 40 and runs.num_rows(workdir) == stopped
    runs.finish(runs.start(data, workdir))
    runs.assert_same_but_for_rounding(straight, workdir)
