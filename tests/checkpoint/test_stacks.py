"""A run may go on under another JAX: what each tested stack has written is read by the one that is installed."""

import pathlib
import tarfile

import pytest

from gemma3_jax import sharding
from tests.checkpoint import saved
from tests.golden import make_checkpoint_of_stack as maker

ARCHIVES = sorted(pathlib.Path(maker.__file__).parent.glob("checkpoint_jax_*.tar.xz"))


def test_there_is_one_of_each_stack_of_the_constraints():
    pins = (pathlib.Path(__file__).parents[2] / "launch" / "constraints.txt").read_text().splitlines()
    versions = {pin.partition(";")[0].removeprefix("jax==") for pin in pins if pin.startswith("jax==")}
    assert {f"checkpoint_jax_{version}.tar.xz" for version in versions} == {path.name for path in ARCHIVES}


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def test_its_checkpoint_comes_back_to_the_bit(archive, tmp_path):
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    mesh = sharding.make_mesh(data=2, model=4)  # not the one that it was written from
    restored = saved.restore(saved.in_directory(tmp_path, pytest.fail), mesh)
    saved.assert_same((restored.params, restored.state), saved.make(mesh, maker.STEP))
    assert restored.step == maker.STEP and restored.cursor == saved.CURSOR | {"row": maker.STEP}
