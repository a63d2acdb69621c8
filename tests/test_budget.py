"""The budget of CPU seconds: its table has every folder, and a folder that overspends is named, but fails nothing."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from tests import budget

TESTS = pathlib.Path(__file__).parent
NO_DEFAULT_TESTS = {"tests/interop"}


def test_the_page_has_a_budget_for_each_folder_of_default_tests_and_for_no_other():
    files = [path.relative_to(TESTS.parent).as_posix() for path in TESTS.rglob("test_*.py")]
    assert budget.table(budget.PAGE.read_text()).keys() == set(map(budget.folder_of, files)) - NO_DEFAULT_TESTS


def test_a_file_counts_for_the_first_folder_below_tests():
    paths = ("tests/test_run.py", "tests/model/test_rope.py", "tests/data/prepare/test_files.py")
    assert [budget.folder_of(path) for path in paths] == ["tests", "tests/model", "tests/data"]


def test_only_the_rows_of_the_table_are_read():
    page = "`tests/x` takes 9 s.\n| folder | CPU seconds |\n|---|---|\n| `tests` | 12 | a |\n| `tests/model` | 3 |\n"
    assert budget.table(page) == {"tests": 12, "tests/model": 3}


def test_who_overspends_is_named_the_largest_excess_first():
    seconds = {"tests": 99.0, "tests/model": 40.0, "tests/data": 160.0, "tests/new": 1000.0}
    assert budget.warnings(seconds, {"tests": 100.0, "tests/data": 100.0, "tests/model": 10.0}) == [
        "tests/data took 160 CPU seconds; its budget in docs/testing.md is 100",
        "tests/model took 40 CPU seconds; its budget in docs/testing.md is 10",
    ]


def test_all_tests_of_this_run_are_counted(pytestconfig):
    assert pytestconfig.pluginmanager.is_registered(budget)


@pytest.mark.parametrize("where", ["here", "in a process that is waited for"])
def test_seconds_are_those_of_the_cpu(where):
    begin, busy = budget.cpu_seconds(), "import time\nwhile time.process_time() < 0.3: pass"
    if where == "here":
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
    else:
        subprocess.run([sys.executable, "-c", busy], check=True)
    assert budget.cpu_seconds() - begin > 0.28  # it advances by hundredths


CONFTEST = """
import pathlib
from tests import budget
budget.PAGE = pathlib.Path("page.md")
budget.clock = 0
budget.cpu_seconds = lambda: budget.clock
def pytest_configure(config):
    config.pluginmanager.register(budget)
    config.addinivalue_line("markers", "slow: not counted")
def pytest_collection_finish():
    budget.clock += 1000
"""
TOOK_70 = """
import pytest
from tests import budget
@pytest.fixture
def ready():
    budget.clock += 10
    yield
    budget.clock += 40
def test_default(ready):
    budget.clock += 20
@pytest.mark.slow
def test_slow():
    budget.clock += 400
"""


@pytest.mark.parametrize(
    ("allowed", "workers"), [(69, ()), (69, ("--numprocesses=1",)), pytest.param(70, (), id="not over it")]
)
def test_a_run_over_its_budget_warns_and_succeeds(tmp_path, allowed, workers):
    (tmp_path / "tests" / "model").mkdir(parents=True)
    (tmp_path / "tests" / "model" / "test_70.py").write_text(TOOK_70)
    (tmp_path / "page.md").write_text(f"| `tests` | 0 |\n| `tests/model` | {allowed} |\n")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    line = [sys.executable, "-m", "pytest", f"--rootdir={tmp_path}", "-q", *workers, "tests"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment["PYTHONPATH"] = str(TESTS.parent)
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr
    warnings = [line for line in done.stdout.splitlines() if " took " in line]
    expected = "tests/model took 70 CPU seconds; its budget in docs/testing.md is 69"
    assert warnings == ([expected] if allowed < 70 else [])
