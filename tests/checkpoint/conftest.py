"""Checkpoints of a run, in a directory of the test's own."""

import shutil

import pytest

from gemma3_jax import sharding
from tests.checkpoint import saved


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(data=4, model=2)


@pytest.fixture
def make_series(tmp_path, said):
    return lambda directory=tmp_path / "checkpoints", **keep: saved.in_directory(directory, said.append, **keep)


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory, mesh):
    """Checkpoints of steps 5 and 6, to be copied."""
    directory = tmp_path_factory.mktemp("two") / "checkpoints"
    of = saved.in_directory(directory, pytest.fail)
    for step in (5, 6):
        saved.save(of, step, mesh)
    return directory


@pytest.fixture
def copied(two_saved, tmp_path):
    shutil.copytree(two_saved, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"
