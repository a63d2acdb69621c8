"""A run directory with every file, and the page of it."""

import pytest

from gemma3_jax.report import page, svg
from tests.report import run_directories


@pytest.fixture
def directory(tmp_path):
    return run_directories.write(tmp_path / "wide")


@pytest.fixture
def without_drawings(monkeypatch):
    """Leaves drawings out of pages: they take seconds."""
    monkeypatch.setattr(svg, "render", lambda *_: '<svg role="img"></svg>')


@pytest.fixture
def render_page(directory, without_drawings):
    """Renders the page of `directory`, compared with others, without drawings, as text."""

    def render(*compared):
        runs = page.read(directory, compared)
        return page.render(runs, page.sections(runs)).decode()

    return render
