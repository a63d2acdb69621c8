"""The loss of the next token against optax, on a mesh and without, and what it reports."""

import jax
import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.losses import next_token, vocab_parallel
from gemma3_jax.model import execution, parameters
from tests.losses.reference import MODEL, NUM_BYTES, by_optax


def loss(params, rows, **options):
    return next_token.make(MODEL, execution.REFERENCE, num_bytes=NUM_BYTES, **options)(params, {}, rows)


def test_it_is_the_cross_entropy_over_the_targets_alone(params, rows):
    total, num_targets, sums = jax.jit(loss)(params, rows)
    assert total == pytest.approx(float(by_optax(params, rows)[0]), rel=1e-5)
    mask = np.asarray(rows.loss_mask)
    assert num_targets == mask.sum() and sums.keys() == {"loss", "bytes_per_target"} and sums["loss"] == total
    assert sums["bytes_per_target"] == NUM_BYTES[np.asarray(rows.labels)][mask].sum()


def test_gradients_are_those_of_optax(params, rows):
    """The table's has two parts: of its lookup, and of the logits."""
    ours = jax.jit(jax.grad(lambda params: loss(params, rows)[0]))(params)
    theirs = jax.jit(jax.grad(lambda params: by_optax(params, rows)[0]))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def test_z_loss_is_minimized_and_not_reported(params, rows):
    nats, squares = map(float, by_optax(params, rows))
    total, _, sums = jax.jit(lambda params, rows: loss(params, rows, z_loss=0.01))(params, rows)
    assert total == pytest.approx(nats + 0.01 * squares, rel=1e-5)
    assert sums["loss"] == pytest.approx(nats, rel=1e-5)


def test_the_logits_of_a_chunk_fit_and_are_the_largest_array(monkeypatch, params, rows):
    """No array of tokens x vocabulary is made, forward or backward."""
    monkeypatch.setattr(vocab_parallel, "LOGITS_PER_CHUNK", 2 * 2 * MODEL.vocab_size)
    text = jax.jit(jax.grad(lambda params: loss(params, rows)[0])).lower(params).as_text()
    assert "tensor<1x4x96xf32>" in text and "x24x96x" not in text and "x12x96x" not in text


def test_a_sharded_loss_is_that_of_one_device(params, rows):
    value_and_grad = jax.jit(jax.value_and_grad(lambda params, rows: loss(params, rows, z_loss=0.1)[0]))
    alone = value_and_grad(params, rows)
    mesh = sharding.make_mesh(data=2, seq=2, model=2)
    placed = map(jax.device_put, (params, rows), (parameters.shardings(MODEL, mesh), sharding.batch_sharding(mesh)))
    with jax.set_mesh(mesh):
        together = value_and_grad(*placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), alone, together)
