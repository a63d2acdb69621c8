"""The teacher's targets are the same for a whole row, in chunks of tokens, and on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.data import stream
from gemma3_jax.distill import lists, noise, page_kernels, settings, targets, teacher
from gemma3_jax.losses import drawn_targets, soft_targets, vocab_parallel
from gemma3_jax.model import execution, masks, parameters
from tests import toys

MODEL = dataclasses.replace(toys.TOY, num_layers=2, num_local_per_global=1)
NUM_ROWS, NUM_TOKENS = 4, 12


@pytest.fixture(scope="module")
def params():
    return toys.params(MODEL)


@pytest.fixture(scope="module")
def rows():
    """Two documents per row and padding; rows 40 to 43 of a stage."""
    segments, positions = (np.repeat(x, NUM_ROWS, axis=0) for x in toys.packed([5, 6], NUM_TOKENS))
    tokens, labels = (toys.tokens(MODEL, NUM_ROWS, NUM_TOKENS, seed=seed) for seed in (0, 1))
    row_ids = np.repeat(np.arange(40, 40 + NUM_ROWS, dtype=np.int32)[:, None], NUM_TOKENS, axis=1)
    return stream.Rows(*map(jnp.asarray, (tokens, labels, segments > 0, segments, positions, row_ids)))


def teach(params, rows, estimator="stratified"):
    samples = settings.Samples(estimator=estimator, num_samples=8)
    return jax.jit(teacher.make(MODEL, execution.REFERENCE, samples=samples))(params, rows, 7)


@pytest.fixture(scope="module")
def whole(params, rows):
    return teach(params, rows)


def by_hand(params, rows, estimator):
    model = parameters.bind(MODEL, params)
    logits = model.logits(model(rows.tokens, masks.TokenLayout(rows.segments, rows.positions)))
    row_positions = jnp.broadcast_to(jnp.arange(NUM_TOKENS, dtype=jnp.int32), rows.tokens.shape)
    return targets.draw(
        vocab_parallel.Shard(MODEL.vocab_size),
        logits,
        rows.labels,
        noise.token_words(7, rows.row_ids, row_positions),
        samples=settings.Samples(estimator=estimator, num_samples=8),
    )


def assert_same(one, other):
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.best_id, other.best_id)
    for name in ("weights", "captured_mass", "entropy", "label_log_prob"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("estimator", [pytest.param("stratified", marks=pytest.mark.slow), "gumbel_ht"])
def test_targets_are_drawn_from_its_logits(params, rows, estimator):
    assert_same(teach(params, rows, estimator), by_hand(params, rows, estimator))


@pytest.mark.parametrize(
    ("estimator", "platform", "in_loss", "drawn"),
    [
        ("stratified", "tpu", True, True),
        ("systematic", "tpu", True, True),
        ("gumbel_ht", "tpu", True, False),
        ("stratified", "cpu", True, False),
        ("stratified", "tpu", False, False),
    ],
)
def test_in_the_loss_of_a_tpu_two_estimators_need_no_ids(
    params, rows, monkeypatch, estimator, platform, in_loss, drawn
):
    monkeypatch.setattr(sharding, "platform", lambda: platform)
    samples = settings.Samples(estimator=estimator, num_samples=8)
    teach = teacher.make(MODEL, execution.REFERENCE, samples=samples, in_loss=in_loss)
    kind = drawn_targets.DrawnTargets if drawn else soft_targets.SparseTargets
    assert isinstance(jax.eval_shape(teach, params, rows, 7), kind)


@pytest.mark.parametrize(
    ("estimator", "page", "name"),
    [("stratified", 32, "kernels"), ("stratified", 256, "searches"), ("gumbel_ht", 32, "searches")],
)
def test_a_tpu_lists_ids_by_kernels_where_shards_are_whole_pages(params, rows, monkeypatch, estimator, page, name):
    called, draw = [], targets.draw

    def named(name):
        return lambda *args, **options: called.append(name) or draw(*args, **options)

    monkeypatch.setattr(lists, "draw", named("kernels"))
    monkeypatch.setattr(targets, "draw", named("searches"))
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    monkeypatch.setattr(page_kernels, "PAGE", page)
    samples = settings.Samples(estimator=estimator, num_samples=8)
    jax.eval_shape(teacher.make(MODEL, execution.REFERENCE, samples=samples), params, rows, 7)
    assert set(called) == {name}


def test_chunks_of_tokens_change_nothing(params, rows, whole, monkeypatch):
    monkeypatch.setattr(vocab_parallel, "LOGITS_PER_CHUNK", NUM_ROWS * 3 * MODEL.vocab_size)
    assert vocab_parallel.chunk_size(vocab_parallel.Shard(MODEL.vocab_size), NUM_ROWS, NUM_TOKENS) == 3
    assert_same(teach(params, rows), whole)


@pytest.mark.parametrize(
    "axes", [{"data": 2, "seq": 2, "model": 2}, pytest.param({"replica": 2, "seq": 4}, marks=pytest.mark.slow)]
)
def test_on_a_mesh_targets_are_the_same(params, rows, whole, axes):
    mesh = sharding.make_mesh(**axes)
    placed = jax.device_put(params, parameters.shardings(MODEL, mesh))
    with jax.set_mesh(mesh):
        together = teach(placed, jax.device_put(rows, sharding.batch_sharding(mesh)))
    assert_same(together, whole)


def test_it_draws_anew_for_another_row_and_another_seed_and_the_same_for_the_same(params, rows):
    samples = settings.Samples(estimator="sampled_counts", num_samples=8)
    run = jax.jit(teacher.make(MODEL, execution.REFERENCE, samples=samples))
    once = run(params, rows, 7).ids
    np.testing.assert_array_equal(once, run(params, rows, 7).ids)
    later = rows._replace(row_ids=rows.row_ids + 1)
    assert (run(params, later, 7).ids != once).mean() > 0.5
    moved = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), rows)  # the index of a row in its batch means nothing
    np.testing.assert_array_equal(run(params, moved, 7).ids, np.roll(once, 1, axis=0))
    assert (run(params, rows, 8).ids != once).mean() > 0.5
