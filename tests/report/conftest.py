"""A run directory with every file, and what is read of it."""

import pytest

from gemma3_jax.report import drawing, markup, page
from tests.report import run_directories


@pytest.fixture
def directory(tmp_path):
    return run_directories.write(tmp_path / "wide")


@pytest.fixture
def undrawn(monkeypatch):
    """Drawings are left out of pages: they take seconds."""
    monkeypatch.setattr(drawing, "svg", lambda chart, *_: markup.element("svg", role="img"))


@pytest.fixture
def show(directory, undrawn):
    """The page of `directory` without its drawings, laid over by others, as text."""

    def render(*compared):
        runs = page.read(directory, compared)
        return page.render(runs, page.sections(runs)).decode()

    return render
