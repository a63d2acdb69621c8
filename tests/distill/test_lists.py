"""Lists of ids drawn as on a TPU: their weights are those of the passes that make a weight for every id."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gemma3_jax import sharding
from gemma3_jax.data.targets import codec
from gemma3_jax.distill import list_kernel, lists, noise, online, page_kernels, pages, settings
from gemma3_jax.losses import soft_targets, vocab_parallel

V, NUM_KEYS = 512, 1000


@pytest.fixture(autouse=True)
def small_pages(monkeypatch):
    """Two pages of two lines: less for the interpreter to compile."""
    monkeypatch.setattr(pages, "NUM_LINES", 2)
    monkeypatch.setattr(page_kernels, "PAGE", 2 * pages.NUM_COLUMNS)


def logits(num_tokens: int, num_ids: int = V) -> np.ndarray:
    """Two likely ids of one column, a long tail, and an id that is impossible."""
    scores = np.random.default_rng(0).normal(size=(num_tokens, num_ids)).astype(np.float32) * 2
    scores[:, [8, 136]] = 9, 8.5
    scores[:, 5] = -np.inf
    return scores


def probabilities(scores: np.ndarray) -> np.ndarray:
    masses = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return masses / masses.sum(axis=-1, keepdims=True)


def spread(ids: np.ndarray, weights: np.ndarray, num_ids: int = V) -> np.ndarray:
    """The weight of every id, [tokens, V]."""
    dense = np.zeros((len(ids), num_ids))
    np.add.at(dense, (np.arange(len(ids))[:, None], ids), weights)
    return dense


STRATIFIED = settings.Samples(num_samples=64)


@functools.cache
def compiled(samples: settings.Samples):
    def draw_row(scores):
        ids = jnp.arange(NUM_KEYS, dtype=jnp.int32)[None]
        return lists.draw(
            vocab_parallel.Shard(V), scores[None], 0 * ids + 8, noise.token_words(3, 0 * ids, ids), samples=samples
        )

    return jax.jit(draw_row).lower(jax.ShapeDtypeStruct((NUM_KEYS, V), jnp.float32)).compile()


def draw(scores: np.ndarray, samples: settings.Samples = STRATIFIED) -> soft_targets.SparseTargets:
    """Draws for the tokens of one row, each with the label 8, of one distribution or of one each."""
    return compiled(samples)(jnp.broadcast_to(jnp.asarray(scores), (NUM_KEYS, V)))


@pytest.mark.parametrize(
    ("num_lines", "num_ids", "num_draws"), ((2, 1024, 300), pytest.param(16, 8192, 40, marks=pytest.mark.slow))
)
def test_the_lists_have_the_weights_that_the_passes_give_all_ids(num_lines, num_ids, num_draws, monkeypatch):
    """More slots than a group, and than bfloat16 counts; a second block of tokens that is not full; ties; one id."""
    monkeypatch.setattr(pages, "NUM_LINES", num_lines)
    monkeypatch.setattr(page_kernels, "PAGE", num_lines * pages.NUM_COLUMNS)
    monkeypatch.setattr(page_kernels, "LARGEST_BLOCK", num_ids // 2)
    rows = logits(20, num_ids)
    rows[3], rows[4], rows[4, 9] = 0, -1e9, 1
    rows, tokens = jnp.asarray(rows), jnp.arange(20)
    one, maxima = jax.jit(functools.partial(pages.summarize, temperature=1.0))(rows, tokens)
    gaps = one.max_score[:, None] - maxima.columns
    reach = jnp.full(20, 6.0)
    mass = one.trailing_mass + jnp.sum(jnp.where(gaps < 6, 0, jnp.exp(-gaps)), axis=1)
    bits = pages.spacing_bits(num_draws)
    units = jnp.where(mass > 0, (num_draws << bits) / jnp.maximum(mass, 1e-20), 0)
    weight, starts = mass / num_draws / one.mass, (tokens + 1) * ((1 << bits) // 22)
    plan = pages.Draw(one.max_score, reach, 1 / one.mass, units, weight, tokens / 40, starts)
    weights_alone = lambda logits, weights, ids: weights  # noqa: E731
    weigh = functools.partial(pages.weigh, gradient=weights_alone, temperature=1.0, num_draws=num_draws)
    dense = jax.jit(weigh)(rows, rows, plan)
    num_exact = int(jnp.max(jnp.sum(gaps < 6, axis=1))) + 2
    run = functools.partial(list_kernel.listed, temperature=1.0, num_draws=num_draws, interpret=True)
    listed = jax.jit(functools.partial(run, num_exact=num_exact))(rows, plan, jnp.full(20, 2))
    assert num_exact > 256 and (listed.exact_ids[:, :2] == -1).all()
    ids = np.concatenate([listed.exact_ids, listed.drawn_ids], axis=1)
    exact = np.exp(np.asarray(listed.below, np.float64)) * np.asarray(plan.weight_of_mass)[:, None]
    weights = np.concatenate([exact, np.broadcast_to(weight[:, None], listed.drawn_ids.shape)], axis=1)
    dense_of_lists = spread(np.maximum(ids, 0), np.where(ids >= 0, weights, 0), num_ids)
    np.testing.assert_allclose(dense_of_lists, dense.gradient, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(listed.captured_mass, dense.captured_mass, rtol=1e-5)


SLOW = [
    pytest.param(settings.Samples(estimator=name, num_samples=number), marks=pytest.mark.slow, id=f"{name}_{number}")
    for name, number in (("stratified", 1), ("stratified", 9), ("systematic", 8))
]


WARM = settings.Samples(num_samples=64, temperature=2.0)


@pytest.mark.parametrize("samples", (STRATIFIED, WARM, *SLOW))
def test_the_mean_weight_of_an_id_is_its_probability_and_weights_add_up(samples):
    drawn, p = draw(logits(1), samples), probabilities(logits(1) / samples.temperature)[0]
    dense = spread(np.asarray(drawn.ids[0]), np.asarray(drawn.weights[0], np.float64))
    often = p * samples.num_samples * NUM_KEYS > 60  # drawn often enough for a mean to be normal
    errors = np.abs(dense.mean(axis=0) - p) / (dense.std(axis=0) / np.sqrt(NUM_KEYS) + 1e-6)
    assert often.sum() > 1 and errors[often].max() < 4.5
    rare = dense[:, ~often].sum(axis=1)
    assert abs(rare.mean() - p[~often].sum()) < 4.5 * rare.std() / np.sqrt(NUM_KEYS) + 1e-6
    np.testing.assert_allclose(dense.sum(axis=1), 1, rtol=1e-5)
    assert (dense[:, 5] == 0).all() and drawn.ids.shape == (1, NUM_KEYS, samples.num_samples)
    np.testing.assert_allclose(drawn.captured_mass[0], ((dense > 0) * p).sum(axis=1), rtol=1e-5)


def test_the_most_probable_leaders_have_their_probability_up_to_a_step():
    scores = logits(NUM_KEYS)
    drawn, p = draw(scores), probabilities(scores)
    leaders = p.reshape(NUM_KEYS, 2, 2, 128).max(axis=2).reshape(NUM_KEYS, -1)
    ids, weights = (np.asarray(x[0, :, :32]) for x in (drawn.ids, drawn.weights))
    is_exact = weights > 0
    np.testing.assert_allclose(weights[is_exact], np.take_along_axis(p, ids, 1)[is_exact], rtol=1e-5)
    assert is_exact.sum(axis=1).min() >= 24 and is_exact.mean() > 0.97
    for row in range(30):
        exact, ordered = ids[row][is_exact[row]], np.sort(leaders[row])[::-1]
        np.testing.assert_allclose(np.sort(p[row, exact])[::-1], ordered[: len(exact)], rtol=1e-6)  # none is left out
        # One more step, and they would be too many.
        assert (ordered > ordered[len(exact) - 1] * np.exp(-2 / 128)).sum() >= len(exact)


@pytest.mark.parametrize("samples", (STRATIFIED, WARM))
def test_what_is_reported_beside_the_lists(samples):
    drawn, p = draw(logits(1), samples), probabilities(logits(1) / samples.temperature)[0]
    assert drawn.entropy[0, 0] == pytest.approx(-(p * np.log(np.maximum(p, 1e-300))).sum(), rel=1e-5)
    assert drawn.label_log_prob[0, 0] == pytest.approx(np.log(probabilities(logits(1))[0, 8]), rel=1e-5)
    assert (drawn.best_id == 8).all()


def test_equal_ids_are_all_drawn_from_and_a_single_possible_id_has_all_weight():
    even = draw(np.zeros((1, V), np.float32))
    np.testing.assert_allclose(even.weights[0, 0], [0.0] * 32 + [1 / 32] * 32, rtol=1e-5)
    one = draw(jnp.full((1, V), -1e9).at[0, 7].set(2))
    np.testing.assert_array_equal(spread(np.asarray(one.ids[0]), np.asarray(one.weights[0]))[0], np.arange(V) == 7)


def test_lists_are_stored_as_weighted_and_counted_slots():
    drawn = draw(logits(1))
    targets = {name: np.asarray(x[0, :5]) for name, x in drawn._asdict().items()}
    row = {name: np.zeros(5, np.int32) for name in codec.ROW_FIELDS} | {"loss_mask": np.ones(5, bool)}
    record = codec.encode(row, targets, STRATIFIED)
    assert codec.HEADER.unpack_from(record)[1:] == (5, 64, 32)
    stored, made = (spread(x["ids"], x["weights"]) for x in (codec.decode(record), targets))
    np.testing.assert_allclose(stored, made, rtol=2**-8)


def test_a_slot_that_two_shards_claim_or_none_has_the_id_before_it():
    """Four draws of two shards of 100 ids. The first ends one draw in, though it lists two; the last is on no list."""
    spacing, one = 1 << pages.spacing_bits(4), jnp.ones((2, 1))
    drawn = jnp.asarray([[[10, 11, -1, -1]], [[-1, 20, 21, -1]]])
    exact = jnp.asarray([[[7, -1]], [[-1, -1]]])
    below = jnp.asarray([[[np.log(0.5), 0.0]], [[0.0, 0.0]]], jnp.float32)
    draw = pages.Draw(*[one] * len(pages.Draw._fields))._replace(weight=one / 8)
    plan = online.DrawPlan(draw, jnp.asarray([[1 * spacing], [4 * spacing]]))
    shard = vocab_parallel.Shard(100, ("model",))
    run = lambda listed, plan: lists.over_shards(listed, plan, shard, jnp.asarray([42]))  # noqa: E731
    ids, weights = jax.vmap(run, axis_name="model")(list_kernel.Lists(exact, below, drawn, one), plan)
    for of_shard in range(2):
        np.testing.assert_array_equal(ids[of_shard, 0], [7, 42, 10, 120, 121, 121])
        np.testing.assert_allclose(weights[of_shard, 0], [0.5, 0, *[1 / 8] * 4], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", ({"seq": 2, "model": 2}, {"data": 2, "seq": 2}))
def test_a_vocabulary_split_over_devices_is_a_whole_one(sizes):
    rows = logits(32, 4 * V).reshape(2, 16, -1)
    ids = jnp.arange(32, dtype=jnp.int32).reshape(2, 16)
    options, words = {"samples": settings.Samples(num_samples=30)}, noise.token_words(0, ids, ids)
    alone = jax.jit(functools.partial(lists.draw, vocab_parallel.Shard(4 * V), **options))(rows, ids, words)
    with jax.set_mesh(sharding.make_mesh(**sizes)):
        shard, batch = vocab_parallel.shard_of(4 * V), PartitionSpec(sharding.ACTIVATION_AXES["B"])
        split = PartitionSpec(*batch, None, shard.axes)
        draw_part = functools.partial(lists.draw, shard, **options)
        run = vocab_parallel.shard_map(draw_part, (split, batch, batch), batch)
        together = jax.jit(run)(rows, ids, words)
    differ = (alone.ids != together.ids).mean()  # masses are rounded otherwise where shards meet
    assert differ < 0.01
    np.testing.assert_allclose(alone.weights, together.weights, rtol=1e-4)
    for name in ("entropy", "label_log_prob", "best_id"):
        np.testing.assert_allclose(getattr(alone, name), getattr(together, name), rtol=1e-5)


def test_a_shard_that_is_not_whole_pages_is_drawn_otherwise():
    samples = settings.Samples()
    assert lists.draws(samples, V) and not lists.draws(samples, V + 128)
    assert not lists.draws(settings.Samples(estimator="top_k"), V)
