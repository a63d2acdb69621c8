"""CPU seconds that the default tests of each folder may take, by the table of docs/testing.md; warns of more.

They are those of the worker and of the processes that it waited for: other work on the machine adds little to them.
"""

import collections
import math
import os
import pathlib
import re

import pytest

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "testing.md"
TOP = "tests"  # the folder of the files at the top
OTHERS = {"slow", "interop"}  # marks of tests that no budget is for

spent: collections.Counter[str] = collections.Counter()  # by folder, in the process that workers report to
last_phase_end = 0.0  # in a worker


def cpu_seconds() -> float:
    """Those of this process, and of those that it has waited for."""
    return sum(os.times()[:4])


def table(page: str) -> dict[str, float]:
    """CPU seconds by folder, as the page has them."""
    rows = re.findall(r"^\| `(tests[\w/]*)` \| (\d+) \|", page, flags=re.MULTILINE)
    return {folder: float(seconds) for folder, seconds in rows}


def folder_of(path: str) -> str:
    """The folder that a test file counts for: the first one below tests/, if it is in any."""
    return "/".join(pathlib.PurePosixPath(path).parts[:-1][:2]) or TOP


def warnings(seconds: dict[str, float], budget: dict[str, float]) -> list[str]:
    """A line for each folder that took more than it may, the largest excess first."""
    excess = {folder: took - budget[folder] for folder, took in seconds.items() if folder in budget}
    return [
        f"{folder} took {math.ceil(seconds[folder])} CPU seconds; its budget in docs/testing.md is {budget[folder]:.0f}"
        for folder in sorted(excess, key=excess.get, reverse=True)
        if excess[folder] > 0
    ]


def pytest_runtest_logstart() -> None:
    """What passed between two tests, such as collecting them, is no test's."""
    global last_phase_end
    last_phase_end = cpu_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Adds to the reports of set-up, call and tear-down what each took."""
    global last_phase_end
    report = yield
    begin, last_phase_end = last_phase_end, cpu_seconds()
    report.cpu_seconds = last_phase_end - begin
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Counts default tests. What a worker that died left behind has no seconds."""
    if not OTHERS & set(report.keywords):
        spent[folder_of(report.location[0])] += getattr(report, "cpu_seconds", 0.0)


def pytest_terminal_summary(terminalreporter) -> None:
    """Warns, and never fails: seconds are those of the machine as well."""
    lines = warnings(spent, table(PAGE.read_text()))
    if lines:
        terminalreporter.section("over the budget of docs/testing.md", yellow=True)
        for line in lines:
            terminalreporter.line(line, yellow=True)
