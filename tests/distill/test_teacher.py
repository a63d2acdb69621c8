"""A teacher at work: it says the same whole, in chunks of tokens and on a mesh, and its gradient is nobody's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.data import stream
from gemma3_jax.distill import settings, targets, teacher
from gemma3_jax.losses import vocab_parallel
from gemma3_jax.model import execution, masks, parameters
from tests import toys

MODEL = dataclasses.replace(toys.TOY, num_layers=2, num_local_per_global=1)
NUM_ROWS, NUM_TOKENS = 4, 12


@pytest.fixture(scope="module")
def params():
    return toys.params(MODEL)


@pytest.fixture(scope="module")
def rows():
    """Two documents a row and padding; rows 40 to 43 of a stage."""
    segments, positions = (np.repeat(x, NUM_ROWS, axis=0) for x in toys.packed([5, 6], NUM_TOKENS))
    tokens, labels = (toys.tokens(MODEL, NUM_ROWS, NUM_TOKENS, seed=seed) for seed in (0, 1))
    numbers = np.repeat(np.arange(40, 40 + NUM_ROWS, dtype=np.int32)[:, None], NUM_TOKENS, axis=1)
    return stream.Rows(*map(jnp.asarray, (tokens, labels, segments > 0, segments, positions, numbers)))


def taught(params, rows, estimator="stratified"):
    samples = settings.Samples(estimator=estimator, num_samples=8)
    return jax.jit(teacher.make(MODEL, execution.REFERENCE, samples=samples, seed=7))(params, rows)


@pytest.fixture(scope="module")
def whole(params, rows):
    return taught(params, rows)


def by_hand(params, rows, estimator):
    model = parameters.bind(MODEL, params)
    logits = model.logits(model(rows.tokens, masks.Places(rows.segments, rows.positions)))
    places = jnp.broadcast_to(jnp.arange(NUM_TOKENS, dtype=jnp.int32), rows.tokens.shape)
    return targets.draw(
        vocab_parallel.Shard(MODEL.vocab_size),
        logits,
        rows.labels,
        rows.numbers,
        places,
        samples=settings.Samples(estimator=estimator, num_samples=8),
        seed=7,
    )


def assert_same(one, other):
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.best_id, other.best_id)
    for name in ("weights", "captured_mass", "entropy", "label_log_prob"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("estimator", ["stratified", "gumbel_ht"])
def test_it_says_what_is_drawn_from_its_logits(params, rows, estimator):
    assert_same(taught(params, rows, estimator), by_hand(params, rows, estimator))


def test_chunks_of_tokens_change_nothing(params, rows, whole, monkeypatch):
    monkeypatch.setattr(vocab_parallel, "LOGITS_PER_CHUNK", NUM_ROWS * 3 * MODEL.vocab_size)
    assert vocab_parallel.chunk_size(vocab_parallel.Shard(MODEL.vocab_size), NUM_ROWS, NUM_TOKENS) == 3
    assert_same(taught(params, rows), whole)


@pytest.mark.parametrize("axes", [{"data": 2, "seq": 2, "model": 2}, {"replica": 2, "seq": 4}])
def test_on_a_mesh_it_says_the_same(params, rows, whole, axes):
    mesh = sharding.make_mesh(**axes)
    placed = jax.device_put(params, parameters.shardings(MODEL, mesh))
    with jax.set_mesh(mesh):
        together = taught(placed, jax.device_put(rows, sharding.batch_sharding(mesh)))
    assert_same(together, whole)


def test_it_draws_anew_for_another_row_and_another_seed_and_the_same_for_the_same(params, rows):
    samples = settings.Samples(estimator="sampled_counts", num_samples=8)
    say = jax.jit(teacher.make(MODEL, execution.REFERENCE, samples=samples, seed=7))
    once = say(params, rows).ids
    np.testing.assert_array_equal(once, say(params, rows).ids)
    later = rows._replace(numbers=rows.numbers + 1)
    assert (say(params, later).ids != once).mean() > 0.5
    moved = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), rows)  # where a row stands in its batch means nothing
    np.testing.assert_array_equal(say(params, moved).ids, np.roll(once, 1, axis=0))
    other = jax.jit(teacher.make(MODEL, execution.REFERENCE, samples=samples, seed=8))
    assert (other(params, rows).ids != once).mean() > 0.5
