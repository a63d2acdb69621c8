"""Which estimators are unbiased, and that shards, blocks and ties change nothing."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gemma3_jax import sharding
from gemma3_jax.distill import estimators, noise, search, settings
from gemma3_jax.losses import blocks, vocab_parallel
from gemma3_jax.losses import softmax as sharded_softmax

V = 24
NUM_KEYS = 20_000
WHOLE_OR_BLOCKS = pytest.mark.parametrize("small_blocks", (False, True), ids=("whole", "blocks_of_4"), indirect=True)
EVERY = pytest.mark.parametrize("name", settings.ESTIMATORS)


@pytest.fixture
def small_blocks(request, monkeypatch):
    """Makes a small vocabulary take the code paths of a large one: three levels of blocks, a race between blocks."""
    if request.param:
        monkeypatch.setattr(blocks, "SIZE", 4)
        monkeypatch.setattr(estimators, "RACED_BY_BLOCK", 1)


def logits(vocab_size: int = V, seed: int = 0) -> np.ndarray:
    """One likely id, a long tail, and one that is impossible."""
    scores = np.random.default_rng(seed).normal(size=vocab_size)
    scores[vocab_size // 2] += 3
    scores[5] = -np.inf
    return scores.astype(np.float32)


def softmax(scores: np.ndarray) -> np.ndarray:
    masses = np.exp(scores.astype(np.float64) - scores.max())
    return masses / masses.sum()


def draw(
    scores: np.ndarray, name: str, num_samples: int, num_keys: int = 1, temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and weights [num_keys, M] of draws from one distribution, or from a row of each in `scores`."""
    rows = jnp.broadcast_to(jnp.asarray(scores), (num_keys, scores.shape[-1]))[None]
    samples = settings.Samples(estimator=name, num_samples=num_samples, temperature=temperature)

    def sample(rows):
        keys = noise.token_keys(7, jnp.full(rows.shape[:2], 3), jnp.arange(rows.shape[1])[None])
        teacher = sharded_softmax.of_logits(rows, temperature, vocab_parallel.Shard(rows.shape[2]))
        return estimators.estimate(teacher, keys, samples)

    ids, weights, is_new = jax.jit(sample)(rows)
    named = np.where(weights[0] > 0, ids[0], -1).tolist()
    assert int((is_new & (weights > 0)).sum()) == sum(len({*row} - {-1}) for row in named)
    assert ids.dtype == jnp.int32 and weights.dtype == jnp.float32
    assert ids.min() >= 0 and ids.max() < scores.shape[-1]
    return np.asarray(ids[0]), np.asarray(weights[0], np.float64)


def spread(ids: np.ndarray, weights: np.ndarray, vocab_size: int = V) -> np.ndarray:
    """The weight of every id, [num_keys, V]."""
    dense = np.zeros((len(ids), vocab_size))
    np.add.at(dense, (np.arange(len(ids))[:, None], ids), weights)
    return dense


def standard_errors_off(dense: np.ndarray, p: np.ndarray) -> np.ndarray:
    """How far the mean weight of each id is from its probability. 1e-6 is rounding, where nothing is random."""
    return np.abs(dense.mean(axis=0) - p) / (dense.std(axis=0) / np.sqrt(len(dense)) + 1e-6)


@pytest.mark.parametrize(
    ("num_samples", "small_blocks"),
    ((3, True), *(pytest.param(num_samples, False, marks=pytest.mark.slow) for num_samples in (1, 8))),
    indirect=["small_blocks"],
)
@pytest.mark.parametrize("name", settings.UNBIASED)
def test_the_mean_weight_of_an_id_is_its_probability(name, num_samples, small_blocks):
    scores = logits()
    dense = spread(*draw(scores, name, num_samples, NUM_KEYS))
    assert standard_errors_off(dense, softmax(scores)).max() < 4


@pytest.mark.parametrize("name", ("top_k", "sampled"))
def test_biased_estimators_give_probable_ids_the_mass_of_the_others(name):
    """They fail the test above: by hundreds of standard errors, and by much of the mass."""
    scores = logits()
    p, dense = softmax(scores), spread(*draw(scores, name, 8, NUM_KEYS))
    assert standard_errors_off(dense, p).max() > 100
    assert dense.mean(axis=0)[np.argmax(p)] - p.max() > 0.05


def test_weights_made_to_add_up_are_biased_by_little():
    """Many keys show it; it is a small part of the bias of `sampled`, and shrinks with more samples."""
    p = np.array([0.5, *[0.025] * 20])
    scores = np.log(p).astype(np.float32)
    few, more = (spread(*draw(scores, "gumbel_ht_normalized", size, NUM_KEYS), 21) for size in (2, 8))
    worst = spread(*draw(scores, "sampled", 2, NUM_KEYS), 21)
    assert standard_errors_off(few, p).max() > 4
    bias, bias_of_more, worst_bias = (np.abs(dense.mean(axis=0) - p).sum() for dense in (few, more, worst))
    assert bias_of_more < bias / 2 and bias < worst_bias / 5, (bias, bias_of_more, worst_bias)


@EVERY
def test_as_many_samples_as_ids_are_all_probabilities(name):
    scores = logits()
    ids, weights = draw(scores, name, V, num_keys=3)
    np.testing.assert_array_equal(ids, np.tile(np.arange(V), (3, 1)))
    np.testing.assert_allclose(weights, np.tile(softmax(scores), (3, 1)), rtol=1e-6)


def test_more_samples_than_ids_are_refused():
    with pytest.raises(ValueError, match=r"^samples\.num_samples is 25, .* 24 ids; it must be at most 24"):
        draw(logits(), "top_k", V + 1)
    estimators.check(settings.Samples(num_samples=V), V)


@pytest.mark.parametrize(("num_samples", "small_blocks"), ((1, True), (V - 1, False)), indirect=["small_blocks"])
@EVERY
def test_weights_add_up_to_one_and_the_impossible_has_none(name, num_samples, small_blocks):
    ids, weights = draw(logits(), name, num_samples, num_keys=500)
    assert ids.shape == weights.shape == (500, num_samples)
    assert (weights[ids == 5] == 0).all() and (weights >= 0).all()
    if name != "gumbel_ht":
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("small_blocks", (True,), indirect=True)
@EVERY
def test_a_single_possible_id_gets_all_weight_and_padding_is_never_drawn(name, small_blocks):
    """23 ids do not fill blocks of 4; `draw` checks that no id beyond them is drawn."""
    scores = np.full(23, -1e9, np.float32)
    scores[-1] = 2
    ids, weights = draw(scores, name, 5, num_keys=50)
    np.testing.assert_allclose(spread(ids, weights, 23)[:, -1], 1, rtol=1e-6)
    assert (weights[ids != 22] == 0).all()


def test_top_k_by_hand():
    ids, weights = draw(np.log(np.float32([0.1, 0.4, 0.2, 0.3])), "top_k", 2)
    np.testing.assert_array_equal(ids, [[1, 3]])
    np.testing.assert_allclose(weights, [[4 / 7, 3 / 7]], rtol=1e-6)


def test_stratified_by_hand():
    """The first half of the slots holds the most probable ids; three of five samples are drawn from the rest."""
    ids, weights = draw(np.log(np.float32([0.1, 0.35, 0.05, 0.3, 0.11, 0.09])), "stratified", 5, num_keys=9)
    np.testing.assert_array_equal(ids[:, :2], np.tile([1, 3], (9, 1)))
    assert np.isin(ids[:, 2:], [0, 2, 4, 5]).all()
    np.testing.assert_allclose(weights, np.tile([0.35, 0.3, *[0.35 / 3] * 3], (9, 1)), rtol=1e-5)


def test_systematic_draws_an_id_in_proportion_to_within_one():
    p = np.array([0.5, 0.25, 0.15, 0.06, 0.04])
    ids, weights = draw(np.log(p).astype(np.float32), "systematic", 4, num_keys=200)
    counts = spread(ids, np.ones_like(weights), 5)
    assert (np.abs(counts - 4 * p) < 1 + 1e-5).all() and (np.diff(ids, axis=1) >= 0).all()
    np.testing.assert_array_equal(counts[:, :2], np.tile([2, 1], (200, 1)))


def test_the_points_of_a_cumulative_sum_by_hand():
    """Ends of runs belong to the next id; ids without mass are skipped, at the end too."""
    masses = jnp.asarray([0, 1, 0, 2, 1, 0, 0], jnp.float32)[None, None]
    parts = jnp.asarray([0, 0.24, 0.25, 0.74, 0.75, 0.99, 1], jnp.float32)[None, None]
    ids, mass = search.at_quantiles(masses, parts, vocab_parallel.Shard(7))
    np.testing.assert_array_equal(ids[0, 0], [1, 1, 3, 3, 4, 4, 4])
    assert mass[0, 0] == 4
    assert search.at_quantiles(0 * masses, parts, vocab_parallel.Shard(7))[0].max() < 7


def test_horvitz_thompson_weights_by_hand():
    """p over the chance to arrive before the first id that is not drawn."""
    scores = logits()
    teacher = sharded_softmax.of_logits(jnp.asarray(scores)[None, None], 1.0, vocab_parallel.Shard(V))
    keys = noise.token_keys(7, jnp.full((1, 1), 3), jnp.zeros((1, 1), jnp.int32))
    times, order = (np.asarray(x)[0, 0] for x in jax.jit(lambda: estimators.race(teacher, keys, 5))())
    assert (np.diff(times) > 0).all() and len(set(order)) == 5
    ids, weights = draw(scores, "gumbel_ht", 4)
    np.testing.assert_array_equal(ids[0], order[:4])
    p = softmax(scores)[order[:4]]
    q = 1 - np.exp(-p * times[4] * float(teacher.total_mass[0, 0]))
    np.testing.assert_allclose(weights[0], p / q, rtol=1e-5)


@WHOLE_OR_BLOCKS
def test_the_race_is_won_in_proportion(small_blocks):
    """All pairs of the first two, by Plackett and Luce: a race between blocks is a race between ids."""
    p = np.array([0.4, 0.2, 0.15, 0.1, 0.08, 0.04, 0.02, 0.01])
    ids, _ = draw(np.log(p).astype(np.float32), "sampled", 2, NUM_KEYS)
    pairs = np.zeros((8, 8))
    np.add.at(pairs, tuple(ids.T), 1 / NUM_KEYS)
    wanted = p[:, None] * p / (1 - p[:, None]) * (1 - np.eye(8))
    assert (np.abs(pairs - wanted) <= 4.5 * np.sqrt(wanted / NUM_KEYS) + 1e-9).all()


@pytest.mark.parametrize("name", ("top_k", "sampled", "sampled_counts"))
def test_the_first_samples_of_many_are_those_of_few(name):
    ids, weights = draw(logits(), name, 12, num_keys=20)
    fewer, their_weights = draw(logits(), name, 5, num_keys=20)
    np.testing.assert_array_equal(ids[:, :5], fewer)
    np.testing.assert_allclose(weights[:, :5] / weights[:, :5].sum(axis=1, keepdims=True), their_weights, rtol=1e-5)


@WHOLE_OR_BLOCKS
@pytest.mark.parametrize("count", (1, 2, 3, 9))
def test_ties_of_the_largest_are_in_order_of_index(count, small_blocks):
    values = np.random.default_rng(0).integers(0, 6, size=(40, 50, 41)).astype(np.float32)
    values[0] = -np.inf
    best, indices = search.largest(jnp.asarray(values), count)
    wanted = np.argsort(-values, axis=-1, kind="stable")[..., :count]
    np.testing.assert_array_equal(indices, wanted)
    np.testing.assert_array_equal(best, np.take_along_axis(values, wanted, axis=-1))


@WHOLE_OR_BLOCKS
def test_the_probable_half_and_the_rest_split_ties_by_id(small_blocks):
    ids, weights = draw(np.zeros(16, np.float32), "stratified", 8, num_keys=200)
    np.testing.assert_array_equal(ids[:, :4], np.tile(np.arange(4), (200, 1)))
    assert ids[:, 4:].min() == 4 and ids[:, 4:].max() == 15
    np.testing.assert_allclose(weights, np.tile([1 / 16] * 4 + [3 / 16] * 4, (200, 1)), rtol=1e-6)


def test_temperature_divides_the_logits():
    scores = logits()
    warm, halved = draw(scores, "stratified", 6, 9, temperature=2.0), draw(scores / 2, "stratified", 6, 9)
    for one, other in zip(warm, halved, strict=True):
        np.testing.assert_array_equal(one, other)


SPLIT_4 = {"seq": 2, "model": 2}
SPLIT_4_TWICE = {"data": 2, "seq": 2, "model": 2}


def sample(rows, positions, *, samples, shard):
    keys = noise.token_keys(0, jnp.zeros_like(positions), positions)
    return estimators.estimate(sharded_softmax.of_logits(rows, 1.0, shard), keys, samples)


def check_split_is_whole(name: str, num_samples: int, sizes: dict[str, int]) -> None:
    """Shards of 8 ids, with ties across them."""
    rows = np.round(np.random.default_rng(1).normal(size=(2, 30, 32)) * 4).astype(np.float32) / 4
    positions = np.arange(60).reshape(2, 30)
    samples = settings.Samples(estimator=name, num_samples=num_samples)
    alone = jax.jit(functools.partial(sample, samples=samples, shard=vocab_parallel.Shard(32)))(rows, positions)
    with jax.set_mesh(sharding.make_mesh(**sizes)):
        shard, batch = vocab_parallel.shard_of(32), sharding.ACTIVATION_AXES["B"]
        assert shard.size == 8
        split = vocab_parallel.shard_map(
            functools.partial(sample, samples=samples, shard=shard),
            (PartitionSpec(batch, None, shard.axes), PartitionSpec(batch)),
            PartitionSpec(batch),
        )
        together = jax.jit(split)(rows, positions)
    np.testing.assert_array_equal(together.ids, alone.ids)
    np.testing.assert_allclose(together.weights, alone.weights, rtol=1e-5)


@EVERY
def test_a_vocabulary_split_over_devices_is_a_whole_one(name):
    check_split_is_whole(name, 13, SPLIT_4)  # more than a shard has


@pytest.mark.parametrize(("name", "num_samples"), (("stratified", 5), ("gumbel_ht", 5), ("top_k", 32)))
def test_rows_split_too_change_nothing(name, num_samples):
    check_split_is_whole(name, num_samples, SPLIT_4_TWICE)


@pytest.mark.parametrize("small_blocks", (True,), indirect=True)
def test_a_race_between_blocks_is_the_same_on_every_mesh(small_blocks):
    check_split_is_whole("gumbel_ht", 3, SPLIT_4)


def heavy_tailed() -> tuple[np.ndarray, np.ndarray]:
    """As many ids as Gemma has, and their ranks: half of the mass on one id, a fifth beyond the first 4,096."""
    ranks = np.random.default_rng(0).permutation(1 << 18) + 1
    p = ranks**-1.05
    p /= 2 * p.sum()
    p[np.argmin(ranks)] += 0.5
    return np.log(p).astype(np.float32), ranks


def test_cumulative_sums_over_all_of_gemmas_ids_are_exact_to_a_millionth():
    scores, _ = heavy_tailed()
    masses = np.exp(scores)
    ends = np.cumsum(masses, dtype=np.float64)
    wanted = np.random.default_rng(1).integers(1, 1 << 18, size=2048)
    parts = np.concatenate([ends[wanted] / ends[-1], np.linspace(0, 1, 2049)]).astype(np.float32)
    at = functools.partial(search.at_quantiles, shard=vocab_parallel.Shard(1 << 18))
    ids, mass = jax.jit(at)(jnp.asarray(masses)[None, None], jnp.asarray(parts)[None, None])
    ids, starts = np.asarray(ids)[0, 0], np.concatenate([[0], ends])
    assert float(mass[0, 0]) == pytest.approx(ends[-1], rel=1e-6)
    points = parts.astype(np.float64)
    assert (points >= starts[ids] / ends[-1] - 1e-6).all() and (points <= starts[ids + 1] / ends[-1] + 1e-6).all()


SLOW_ONES = [
    pytest.param(name, marks=pytest.mark.slow) for name in settings.UNBIASED if name not in ("stratified", "gumbel_ht")
]


@pytest.mark.parametrize("name", ["stratified", "gumbel_ht", *SLOW_ONES])
def test_the_tail_of_gemmas_vocabulary_gets_its_mass(name):
    scores, ranks = heavy_tailed()
    ids, weights = draw(scores, name, 256, num_keys=64)
    tails = np.where(ranks[ids] > 4096, weights, 0).sum(axis=1)
    p = softmax(scores)[ranks > 4096].sum()
    assert p > 0.1 and abs(tails.mean() - p) < 4 * tails.std() / 8 + 1e-6


@pytest.mark.parametrize("name", ("stratified", "gumbel_ht"))
def test_gemmas_vocabulary_is_never_sorted_nor_all_of_it_hashed(name):
    """The program sorts, and draws random bits for, some candidates; for no array of V."""
    samples = settings.Samples(estimator=name)
    shard = vocab_parallel.Shard(1 << 18)
    rows, positions = jax.ShapeDtypeStruct((1, 2, 1 << 18), jnp.float32), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    text = jax.jit(functools.partial(sample, samples=samples, shard=shard)).lower(rows, positions).as_text()
    sizes = [int(size) for size in re.findall(r"chlo\.top_k\(.*?tensor<1x2x(\d+)xf32>", text)]
    assert sizes and max(sizes) < 20_000, sizes
    assert "262144xui32" not in text


def test_the_settings_name_every_estimator():
    assert set(estimators.BY_NAME) == set(settings.ESTIMATORS)
    assert dataclasses.replace(settings.Samples(), estimator="top_k").num_samples == 256
