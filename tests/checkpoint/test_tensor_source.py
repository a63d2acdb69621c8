"""Checkpoints that are read one tensor at a time: the same tensors from every kind, and every stored array once."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax.checkpoint import export, hf, names, orbax, tensor_source
from gemma3_jax.checkpoint import open as checkpoint_open
from tests import toys
from tests.checkpoint import test_gemma_orbax
from tests.checkpoint.test_hf import make_directory, same_files

MODEL = toys.TOY


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("orbax") / "ckpt"
    orbax.save(path, MODEL, toys.params(MODEL))
    return path


def test_an_orbax_checkpoint_has_every_tensor(saved):
    source, params = orbax.open_source(saved), toys.params(MODEL)
    assert set(source.tensors) == set(names.slots(MODEL)) and source.model == MODEL
    for slot, tensor in source.tensors.items():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor.read(), names.get(params, slot.path)[slot.index])


def test_every_array_of_an_orbax_checkpoint_is_read_once(saved, monkeypatch):
    def load(path, abstract):
        [wanted] = [path for path, leaf in names.flatten(abstract) if leaf is not orbax.ocp.PLACEHOLDER]
        reads[wanted] += 1
        return inner(path, abstract)

    reads, inner = collections.Counter(), orbax.ocp.load_checkpointables
    monkeypatch.setattr(orbax.ocp, "load_checkpointables", load)
    tensor_source.copy(orbax.open_source(saved), [lambda slot, rows: rows.nbytes])
    assert set(reads.values()) == {1} and len(reads) == len(jax.tree.leaves(toys.params(MODEL)))


@pytest.mark.parametrize("dtype", [None, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)], ids=str)
def test_whatever_the_source_the_same_files_are_written(dtype, saved, tmp_path):
    stacked = test_gemma_orbax.stacked(test_gemma_orbax.leaves(), MODEL.period)
    paths = {
        "hf": make_directory(tmp_path / "hf"),
        "orbax": saved,
        "published": test_gemma_orbax.save(tmp_path / "published", test_gemma_orbax.nested(stacked)),
    }
    (tmp_path / "config.json").write_text((paths["hf"] / "config.json").read_text())
    for kind, path in paths.items():
        model = checkpoint_open.find_model(str(tmp_path / "config.json")) if kind == "published" else None
        checkpoint = checkpoint_open.open_checkpoint(path, model)
        assert checkpoint.kind == kind
        export.Export("hf", MODEL, dtype=dtype).write(tmp_path / f"from-{kind}", checkpoint.source)
    assert same_files(tmp_path / "from-hf", tmp_path / "from-orbax")
    assert same_files(tmp_path / "from-hf", tmp_path / "from-published")


def test_layers_of_several_dtypes_are_written_in_the_widest(tmp_path):
    weights = toys.hf_weights(MODEL)
    gate = "model.layers.{}.mlp.gate_proj.weight"
    weights[gate.format(2)] = weights[gate.format(2)].astype(np.float16)
    source = hf.open_source(make_directory(tmp_path / "hf", weights))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(source.shapes())} == {"float32"}
    export.Export("hf", MODEL).write(tmp_path / "out", source)
    with hf.opened(tmp_path / "out" / hf.WEIGHTS) as file:
        np.testing.assert_array_equal(file.get_tensor(gate.format(2)), weights[gate.format(2)].astype(np.float32))
        np.testing.assert_array_equal(file.get_tensor(gate.format(3)), weights[gate.format(3)])


def test_progress_is_the_bytes_that_are_written(saved):
    done = []
    tensor_source.copy(orbax.open_source(saved), [lambda slot, rows: 1, lambda slot, rows: 2], done.append)
    assert done == [1, 2] * len(list(names.slots(MODEL)))
