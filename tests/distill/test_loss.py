"""The loss over the vocabulary against optax, whole and in chunks, and what it reports."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gemma3_jax import sharding
from gemma3_jax.data import stream
from gemma3_jax.distill import loss
from gemma3_jax.model import execution, masks, parameters
from tests import toys

MODEL = dataclasses.replace(toys.TOY, num_layers=2, num_local_per_global=1)
NUM_BYTES = np.arange(MODEL.vocab_size, dtype=np.int32) % 7
ONE = {"replica": 1, "data": 1, "seq": 1, "model": 1}


@pytest.fixture(scope="module")
def params():
    return toys.params(MODEL)


@pytest.fixture(scope="module")
def rows():
    """Two documents a row and padding; some targets not to be learned."""
    segments, positions = (np.repeat(x, 2, axis=0) for x in toys.packed([5, 6], 12))
    tokens, targets = toys.tokens(MODEL, 2, 12), toys.tokens(MODEL, 2, 12, seed=1)
    mask = (segments > 0) & (np.arange(12) % 5 != 4)
    return stream.Rows(*map(jnp.asarray, (tokens, targets, mask, segments, positions)))


def made(**options):
    return loss.next_token(MODEL, execution.REFERENCE, ONE, num_bytes=NUM_BYTES, **options)


def by_optax(params, rows):
    model = parameters.bind(MODEL, params)
    scores = model.logits(model(rows.tokens, masks.Places(rows.segments, rows.positions)))
    nats = optax.softmax_cross_entropy_with_integer_labels(scores, rows.targets)
    return jnp.sum(nats * rows.loss_mask), jnp.sum(jax.nn.logsumexp(scores, axis=-1) ** 2 * rows.loss_mask)


def test_it_is_the_cross_entropy_over_the_targets_alone(params, rows):
    total, num_targets, sums = jax.jit(made())(params, rows)
    assert total == pytest.approx(float(by_optax(params, rows)[0]), rel=1e-5)
    mask = np.asarray(rows.loss_mask)
    assert num_targets == mask.sum() and sums.keys() == {"bytes_per_target"}
    assert sums["bytes_per_target"] == NUM_BYTES[np.asarray(rows.targets)][mask].sum()


def test_chunks_of_tokens_give_the_same_loss_and_gradient(params, rows, monkeypatch):
    def value_and_grad():
        return jax.jit(jax.value_and_grad(lambda params: made(z_loss=0.1)(params, rows)[0]))(params)

    whole = value_and_grad()
    monkeypatch.setattr(loss, "LOGITS_PER_CHUNK", 2 * 3 * MODEL.vocab_size)  # 3 of the 12 tokens of both rows
    assert loss.chunk_size(2, 12, MODEL.vocab_size, ONE) == 3
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(value_and_grad()), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_z_loss_is_minimised_and_not_shown(params, rows):
    nats, squares = map(float, by_optax(params, rows))
    total, _, sums = jax.jit(made(z_loss=0.01))(params, rows)
    assert total == pytest.approx(nats + 0.01 * squares, rel=1e-5)
    assert sums["loss"] == pytest.approx(nats, rel=1e-5)


def test_the_logits_of_a_chunk_fit_and_are_the_largest_array(monkeypatch, params, rows):
    """No array of tokens x vocabulary is made, forward or backward."""
    monkeypatch.setattr(loss, "LOGITS_PER_CHUNK", 2 * 2 * MODEL.vocab_size)
    text = jax.jit(jax.grad(lambda params: made()(params, rows)[0])).lower(params).as_text()
    assert "tensor<2x2x96xf32>" in text and "tensor<2x12x96x" not in text


def test_a_chunk_has_tokens_of_every_shard_of_a_row():
    x = jnp.arange(2 * 12).reshape(2, 12)
    np.testing.assert_array_equal(loss.spread(x, 4)[0, :, 0], [0, 3, 6, 9])
    assert loss.chunk_size(8, 64, 1 << 20, {**ONE, "data": 2, "seq": 4}) == 64
    assert loss.chunk_size(8, 64, 1 << 22, {**ONE, "data": 2, "seq": 4}) == 16


def test_a_sharded_loss_is_that_of_one_device(params, rows):
    mesh = sharding.make_mesh(data=2, seq=2, model=2)
    alone = jax.jit(made())(params, rows)
    split = loss.next_token(MODEL, execution.REFERENCE, mesh.shape, num_bytes=NUM_BYTES)
    placed = (
        jax.device_put(params, parameters.shardings(MODEL, mesh)),
        jax.device_put(rows, sharding.batch_sharding(mesh)),
    )
    with jax.set_mesh(mesh):
        together = jax.jit(split)(*placed)
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
