import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.checkpoint import orbax
from tests import toys

MODEL = toys.TOY


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "ckpt"
    orbax.save(path, MODEL, toys.params(MODEL))
    return path


@pytest.mark.parametrize("axes", [{}, {"data": 2, "seq": 2, "model": 2}])
def test_what_was_saved_comes_back_on_any_mesh(saved, axes):
    mesh = sharding.make_mesh(**axes)
    params = orbax.load(saved, mesh)
    jax.tree.map(np.testing.assert_array_equal, params, toys.params(MODEL))
    gate = params["periods"]["local_layers"]["mlp"]["gate"]
    assert gate.addressable_shards[0].data.size == gate.size // mesh.size
    assert orbax.read_model(saved)[0] == MODEL


def test_a_sharded_save_equals_a_whole_one(tmp_path):
    from gemma3_jax.model import parameters

    mesh = sharding.make_mesh(replica=2, data=2, model=2)
    spread = jax.device_put(toys.params(MODEL), parameters.shardings(MODEL, mesh))
    orbax.save(tmp_path / "ckpt", MODEL, spread)
    jax.tree.map(np.testing.assert_array_equal, orbax.load(tmp_path / "ckpt", sharding.make_mesh()), spread)


def test_dtype_is_kept_or_cast_as_asked(tmp_path):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), toys.params(MODEL))
    orbax.save(tmp_path / "ckpt", MODEL, params)
    kept = orbax.load(tmp_path / "ckpt", sharding.make_mesh())
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.bfloat16)}
    cast = orbax.load(tmp_path / "ckpt", sharding.make_mesh(), jnp.float32)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.float32)), cast, params)


def test_only_our_checkpoints_are_ours(saved, tmp_path):
    assert orbax.is_ours(saved) and orbax.is_orbax(saved)
    assert not orbax.is_orbax(tmp_path) and not orbax.is_ours(tmp_path)


def rewrite(path, change):
    """Changes the metadata of a copy of the checkpoint."""
    file = path / "_CHECKPOINT_METADATA"
    content = json.loads(file.read_text())
    change(content["custom_metadata"][orbax.METADATA_KEY])
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda meta: meta.update(format=9), r"ckpt has format 9; this program reads format 1"),
        (lambda meta: meta["model"].update(sliding_window=0), r"ckpt: model\.sliding_window is 0"),
        (lambda meta: meta["model"].update(color=3), r"ckpt: .*color"),
        (
            lambda meta: meta["model"].update(embed_dim=32),
            r"ckpt: parameter embedder/table has shape \(96, 24\); .*\(96, 32\)",
        ),
        (lambda meta: meta["model"].update(num_layers=6), r"ckpt has an unknown parameter remaining_layers/"),
        (lambda meta: meta["model"].update(num_layers=5), r"ckpt: parameter remaining_layers/\S+ has shape"),
    ],
)
def test_metadata_that_contradicts_the_arrays_is_refused(change, text, tmp_path):
    path = tmp_path / "ckpt"
    orbax.save(path, MODEL, toys.params(MODEL))
    rewrite(path, change)
    with pytest.raises(ValueError, match=text):
        orbax.read_model(path)


@pytest.mark.parametrize(
    "pattern, text", [("d/*", "its metadata is damaged"), ("ocdbt.process_0/d/*", "OUT_OF_RANGE: .*_layers")]
)
def test_a_damaged_checkpoint_is_named(pattern, text, tmp_path):
    path = tmp_path / "ckpt"
    orbax.save(path, MODEL, toys.params(MODEL))
    files = sorted((path / "params").glob(pattern), key=lambda file: file.stat().st_size)
    files[-1].write_bytes(files[-1].read_bytes()[: files[-1].stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"ckpt cannot be read: {text}"):
        orbax.load(path, sharding.make_mesh())
