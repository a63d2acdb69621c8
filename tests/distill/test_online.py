"""Weights of all ids drawn in the loss: right in the mean, the same by kernels and on meshes."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gemma3_jax import sharding
from gemma3_jax.distill import noise, online, page_kernels, pages, settings
from gemma3_jax.losses import cross_entropy, drawn_targets, soft_targets, vocab_parallel

V, NUM_KEYS = 48, 20_000


@pytest.fixture(params=(False, True), ids=("one_line", "pages_of_2x4"))
def small_pages(request, monkeypatch):
    """Six pages in three groups, of a vocabulary that is otherwise a single line."""
    if request.param:
        for name, value in (("NUM_LINES", 2), ("NUM_COLUMNS", 4), ("PAGES_IN_GROUP", 2)):
            monkeypatch.setattr(pages, name, value)
    return request.param


def logits(num_ids: int = V) -> np.ndarray:
    """Two likely ids of one column, a long tail, and one id that is impossible."""
    scores = np.random.default_rng(0).normal(size=num_ids).astype(np.float32)
    scores[[8, 12]] = 4, 3.5
    scores[5] = -np.inf
    return scores


def softmax(scores: np.ndarray) -> np.ndarray:
    masses = np.exp(scores.astype(np.float64) - scores.max())
    return masses / masses.sum()


class Drawn(NamedTuple):
    weights: jax.Array  # [B, T, V]
    total_weight: jax.Array
    captured_mass: jax.Array
    entropy: jax.Array
    label_log_prob: jax.Array
    best_id: jax.Array


def weights_of(shard, logits, labels, words, **options) -> Drawn:
    """The weights, as the gradient of logits of 1, whose sum is that of the weights."""
    drawn = online.draw(shard, logits, labels, words, **options)
    weighed = drawn.weigh(jnp.ones(logits.shape), lambda logits, weights, ids: weights)
    captured_mass, total_weight = shard.sum((weighed.captured_mass, weighed.dot))
    return Drawn(weighed.gradient, total_weight, captured_mass, *drawn[1:])


def draw(scores, *, num_keys=NUM_KEYS, **options) -> Drawn:
    """The weights [1, num_keys, V] of one distribution."""
    samples, shard = settings.Samples(**options), vocab_parallel.Shard(scores.shape[-1])
    rows = jnp.broadcast_to(jnp.asarray(scores), (1, num_keys, scores.shape[-1]))
    zeros, positions = jnp.zeros((1, num_keys), jnp.int32), jnp.arange(num_keys, dtype=jnp.int32)[None]
    run = functools.partial(weights_of, shard, samples=samples)
    return jax.jit(lambda *x: run(*x))(rows, zeros + 8, noise.token_words(3, zeros, positions))


def standard_errors_off(weights: np.ndarray, p: np.ndarray) -> float:
    """1e-6 is rounding, where nothing is random."""
    return (np.abs(weights.mean(axis=0) - p) / (weights.std(axis=0) / np.sqrt(len(weights)) + 1e-6)).max()


@pytest.mark.parametrize(
    ("estimator", "num_samples"),
    (pytest.param("stratified", 1, marks=pytest.mark.slow), ("stratified", 9), ("systematic", 8)),
)
def test_the_mean_weight_of_an_id_is_its_probability_and_weights_add_up(estimator, num_samples, small_pages):
    scores = logits()
    drawn = draw(scores, estimator=estimator, num_samples=num_samples)
    weights, p = np.asarray(drawn.weights[0], np.float64), softmax(scores)
    assert standard_errors_off(weights, p) < 4.5
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(drawn.total_weight[0], weights.sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(drawn.captured_mass[0], ((weights > 0) * p).sum(axis=1), rtol=1e-5)
    assert (weights[:, 5] == 0).all() and (weights >= 0).all()


def test_the_probable_half_has_its_probability_and_leaders_alone_do(small_pages):
    """Of two likely ids of one column the second is drawn, in proportion to within one draw."""
    scores = logits()
    p = softmax(scores)
    weights = np.asarray(draw(scores, num_samples=16, num_keys=200).weights[0], np.float64)
    exact = np.isclose(weights, p, rtol=1e-5).all(axis=0)
    assert exact.sum() >= 8 and exact[8] and exact[12] != small_pages
    each = np.unique(weights[:, ~exact][weights[:, ~exact] > 0]).min()
    assert np.abs(weights[:, ~exact] / each - p[~exact] / each).max() < 1 + 1e-4


def test_a_low_temperature_does_not_make_other_ids_likely_without_it():
    scores = np.random.default_rng(0).normal(size=8192).astype(np.float32) * 2
    scores[8] = 30
    drawn = draw(scores, num_samples=9, num_keys=1, temperature=0.05)
    assert drawn.label_log_prob[0, 0] == pytest.approx(np.log(softmax(scores)[8]), abs=1e-6)


def test_what_is_reported_beside_the_weights():
    scores = logits()
    drawn = draw(scores, num_samples=9, num_keys=3, temperature=2.0)
    p, untempered = softmax(scores / 2), softmax(scores)
    assert drawn.entropy[0, 0] == pytest.approx(-(p * np.log(np.maximum(p, 1e-300))).sum(), rel=1e-5)
    assert drawn.label_log_prob[0, 0] == pytest.approx(np.log(untempered[8]), rel=1e-5)
    assert (drawn.best_id == 8).all()
    np.testing.assert_array_equal(drawn.weights, draw(scores / 2, num_samples=9, num_keys=3).weights)


def test_equal_ids_are_all_exact_and_a_single_possible_id_has_all_weight():
    even = draw(np.zeros(V, np.float32), num_samples=8, num_keys=3)
    np.testing.assert_allclose(even.weights, 1 / V, rtol=1e-6)
    one = np.full(V, -1e9, np.float32)
    one[7] = 2
    weights = np.asarray(draw(one, num_samples=8, num_keys=3).weights[0])
    np.testing.assert_array_equal(weights, np.tile(np.arange(V) == 7, (3, 1)))


def test_units_add_up_exactly_over_all_of_gemmas_ids():
    """One float32 sum of as many masses is off by more than an id's part."""
    scores = np.log(1 / np.random.default_rng(0).permutation(np.arange(1, (1 << 18) + 1))).astype(np.float32)
    drawn = draw(scores, num_keys=4, estimator="systematic")
    counts = np.asarray(drawn.weights[0], np.float64) * 256
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-4)
    np.testing.assert_array_equal(np.round(counts).sum(axis=1), 256)
    assert np.abs(counts - 256 * softmax(scores)).max() < 1 + 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_ids", "largest_block", "temperature", "dtype"),
    ((4096, 2048, 1.0, jnp.bfloat16), (4096, 2048, 2.0, jnp.float32), (24_576, None, 0.7, jnp.bfloat16)),
)
def test_the_kernels_are_the_passes(num_ids, largest_block, temperature, dtype, monkeypatch):
    """Two blocks of tokens, the second not full; small blocks of ids, or those of today, of pages in groups.

    The best id comes in the second page, and again later.
    """
    if largest_block:
        monkeypatch.setattr(page_kernels, "LARGEST_BLOCK", largest_block)
    rows = np.random.default_rng(0).normal(size=(40, num_ids)).astype(np.float32) * 3
    rows[:, 7], rows[:, [2077, 4000]] = -np.inf, 20
    labels = np.random.default_rng(1).integers(-100, num_ids + 100, size=40).astype(np.int32)
    one, maxima = jax.jit(functools.partial(pages.summarize, temperature=temperature))(rows, labels)
    kernel = functools.partial(page_kernels.summarize, temperature=temperature, interpret=True)
    other, other_maxima = jax.jit(lambda *x: kernel(*x))(rows, labels)
    for name, x, y in zip(one._fields, one, other, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, err_msg=name)
    assert (one.best_id == 2077).all()
    jax.tree.map(np.testing.assert_array_equal, maxima, other_maxima)
    ones, tokens = jnp.ones(40), jnp.arange(40)
    units = 100.0 * 2 ** pages.spacing_bits(100) / one.mass
    plan = pages.Draw(one.max_score, 5 * ones, 1 / one.mass, units, 0.01 * ones, tokens / 40, tokens * 999)
    student = np.random.default_rng(2).normal(size=rows.shape).astype(np.float32)

    def gradient(logits, weights, ids, label, factor):
        return jnp.where(ids == label, -100.0, factor * weights + logits)

    options = {"temperature": temperature, "num_draws": 100}
    by_token = (jnp.asarray(labels, jnp.float32), tokens / 4)
    with_gradient = {**options, "gradient": gradient, "dtype": dtype}
    one = jax.jit(functools.partial(pages.weigh, **with_gradient))(rows, student, plan, *by_token)
    kernel = functools.partial(page_kernels.weigh, interpret=True)
    other = jax.jit(functools.partial(kernel, **with_gradient))(rows, student, plan, *by_token)
    np.testing.assert_allclose(one.dot, other.dot, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one.captured_mass, other.captured_mass, rtol=1e-5)
    ulp = 2.0**-7 if dtype == jnp.bfloat16 else 2.0**-22
    np.testing.assert_allclose(*(np.asarray(x.gradient, np.float32) for x in (one, other)), rtol=ulp, atol=ulp)
    assert (np.asarray(one.gradient) == -100).sum() == ((labels >= 0) & (labels < num_ids)).sum()
    forward = jax.jit(functools.partial(kernel, **options, gradient=None))(rows, student, plan)
    jax.tree.map(np.testing.assert_array_equal, forward, other._replace(gradient=None))


@pytest.mark.parametrize("sizes", ({"seq": 2, "model": 2}, {"data": 2, "seq": 2, "model": 2}))
def test_a_vocabulary_split_over_devices_is_a_whole_one(sizes, monkeypatch):
    for name, value in (("NUM_LINES", 2), ("NUM_COLUMNS", 4), ("PAGES_IN_GROUP", 1)):
        monkeypatch.setattr(pages, name, value)
    rows = np.round(np.random.default_rng(1).normal(size=(2, 30, 32)) * 4).astype(np.float32) / 4  # with ties
    ids = jnp.arange(60, dtype=jnp.int32).reshape(2, 30)
    options, words = {"samples": settings.Samples(num_samples=6)}, noise.token_words(0, ids, ids)
    alone = jax.jit(functools.partial(weights_of, vocab_parallel.Shard(32), **options))(rows, ids % 32, words)
    with jax.set_mesh(sharding.make_mesh(**sizes)):
        shard, batch = vocab_parallel.shard_of(32), PartitionSpec(sharding.ACTIVATION_AXES["B"])
        split = PartitionSpec(*batch, None, shard.axes)
        out = Drawn(split, *[batch] * 5)
        run = vocab_parallel.shard_map(functools.partial(weights_of, shard, **options), (split, batch, batch), out)
        together = jax.jit(run)(rows, ids % 32, words)
    for name, x, y in zip(alone._fields, alone, together, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("blend", ({}, {"temperature": 2.0, "hard_label_weight": 0.3, "z_loss": 0.01}), ids=len)
def test_the_loss_against_drawn_weights_is_that_against_the_same_weights_listed(blend):
    random = np.random.default_rng(0)
    hidden, table, teacher, teacher_table = (
        jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((2, 5, 8), (V, 8), (2, 5, 6), (V, 6))
    )
    labels = jnp.asarray(random.integers(0, V, size=(2, 5)), jnp.int32)
    positions = jnp.arange(10, dtype=jnp.int32).reshape(2, 5)
    samples = settings.Samples(num_samples=6, temperature=blend.get("temperature", 1.0))
    words = noise.token_words(0, positions, positions)
    sample = functools.partial(online.draw, samples=samples)
    drawn = drawn_targets.DrawnTargets(teacher, teacher_table, words, jax.tree_util.Partial(sample))
    teacher_logits = jnp.einsum("BTD,VD->BTV", teacher, teacher_table)
    dense = weights_of(vocab_parallel.Shard(V), teacher_logits, labels, words, samples=samples)
    ids = jnp.broadcast_to(jnp.arange(V, dtype=jnp.int32), dense.weights.shape)
    fields = dense.captured_mass, dense.entropy, dense.label_log_prob, dense.best_id
    listed = soft_targets.SparseTargets(ids, dense.weights, *fields)
    loss = functools.partial(cross_entropy.cross_entropy_sum, **blend)
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    mask = jnp.asarray([[True, True, False, True, True], [False, True, True, True, False]])
    one, other = (run(hidden, table, labels, mask, soft) for soft in (drawn, listed))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), one, other)


def test_a_key_is_two_uniform_words():
    positions = jnp.arange(4096, dtype=jnp.int32)[None]
    words = noise.token_words(0, jnp.zeros_like(positions), positions)
    np.testing.assert_array_equal(
        jax.random.key_data(noise.keys_of(words)),
        jax.random.key_data(noise.token_keys(0, jnp.zeros_like(positions), positions)),
    )
    for one in words:
        assert abs(np.mean(np.asarray(one, np.float64)) / 2**32 - 0.5) < 4 * np.sqrt(1 / 12 / 4096)


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1])
def test_a_seed_is_the_same_as_a_constant_and_as_an_input(seed):
    positions = jnp.arange(3, dtype=jnp.int32)[None]
    constant = jax.jit(lambda: noise.token_words(seed, positions, positions))()
    words = jax.jit(lambda seed: noise.token_words(seed, positions, positions))(np.uint32(seed))
    jax.tree.map(np.testing.assert_array_equal, constant, words)
