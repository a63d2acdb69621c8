"""The fields of drawn targets beside ids and weights, against float64; and that a restart draws the same again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gemma3_jax import sharding
from gemma3_jax.distill import noise, settings, targets
from gemma3_jax.losses import soft_targets, vocab_parallel

B, T, V = 2, 12, 32


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, ...]:
    """Logits with ties, one id impossible, for tokens of two rows; labels; row ids; positions."""
    random = np.random.default_rng(0)
    logits = np.round(random.normal(size=(B, T, V)) * 6).astype(np.float32) / 2
    logits[:, :, 7] = -np.inf
    labels = random.integers(8, V, size=(B, T)).astype(np.int32)
    row_ids = np.broadcast_to(np.int32([[40], [3]]), (B, T))
    return logits, labels, row_ids, np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))


def draw(rows, *, seed: int = 0, **options) -> soft_targets.SparseTargets:
    samples = settings.Samples(**options)
    shard = vocab_parallel.Shard(V)
    logits, labels, *token = map(jnp.asarray, rows)
    words = noise.token_words(seed, *token)
    return jax.jit(functools.partial(targets.draw, shard, samples=samples))(logits, labels, words)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def assert_same(one: soft_targets.SparseTargets, other: soft_targets.SparseTargets, rtol: float = 0) -> None:
    for name, x, y in zip(one._fields, one, other, strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.parametrize(("name", "temperature"), (("sampled_counts", 1.0), ("gumbel_ht", 2.0), ("stratified", 0.5)))
def test_the_fields_beside_the_samples(rows, name, temperature):
    logits, labels, _, _ = rows
    drawn = draw(rows, estimator=name, num_samples=6, temperature=temperature)
    p = np.exp(log_softmax(logits / temperature))
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)
    np.testing.assert_allclose(drawn.entropy, entropy, rtol=1e-5)
    label_nats = np.take_along_axis(log_softmax(logits), labels[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(drawn.label_log_prob, label_nats, rtol=1e-5)
    np.testing.assert_array_equal(drawn.best_id, np.argmax(logits, axis=-1))  # numpy's is the first one, too
    drawn_ids = np.zeros((B, T, V), bool)
    np.put_along_axis(drawn_ids, np.asarray(drawn.ids), True, axis=-1)
    np.testing.assert_allclose(drawn.captured_mass, (p * drawn_ids).sum(axis=-1), rtol=1e-5)


def test_a_restart_draws_the_same_for_the_same_token_whatever_is_drawn_beside_it(rows):
    whole = draw(rows, num_samples=5)
    swapped = draw([np.asarray(x)[::-1, 4:] for x in rows], num_samples=5)
    assert_same(jax.tree.map(lambda x: x[::-1, 4:], whole), swapped, rtol=1e-6)


@pytest.mark.parametrize("changed", ("seed", "row_ids", "positions"))
def test_another_seed_row_or_position_draws_others(rows, changed):
    logits, labels, row_ids, positions = rows
    other = (logits, labels, row_ids + 1 * (changed == "row_ids"), positions + 100 * (changed == "positions"))
    one = draw(rows, estimator="sampled", num_samples=5)
    two = draw(other, estimator="sampled", num_samples=5, seed=int(changed == "seed"))
    assert (np.asarray(one.ids) != np.asarray(two.ids)).any(axis=-1).mean() > 0.5
    np.testing.assert_array_equal(one.entropy, two.entropy)


def test_parts_of_a_row_are_drawn_as_the_whole_row(rows, monkeypatch):
    whole = draw(rows, num_samples=5)
    monkeypatch.setattr(targets, "LOGITS_PER_PART", B * 5 * V)  # 4 of the 12 tokens: the most that divide them
    assert_same(whole, draw(rows, num_samples=5), rtol=1e-6)


def test_bfloat16_logits_are_read_as_float32(rows):
    """These are halves, and small: they pass through bfloat16 unchanged."""
    logits, *others = rows
    assert_same(draw(rows, num_samples=5), draw((logits.astype(jnp.bfloat16), *others), num_samples=5))


def test_all_ids_capture_all_the_mass(rows):
    drawn = draw(rows, num_samples=V)
    np.testing.assert_allclose(drawn.captured_mass, 1, rtol=1e-6)


def test_a_split_vocabulary_draws_the_same(rows):
    samples = settings.Samples(num_samples=7, temperature=2.0)
    with jax.set_mesh(sharding.make_mesh(data=2, seq=2, model=2)):
        shard, batch = vocab_parallel.shard_of(V), PartitionSpec(sharding.ACTIVATION_AXES["B"])
        split = vocab_parallel.shard_map(
            functools.partial(targets.draw, shard, samples=samples),
            (PartitionSpec(*batch, None, shard.axes), batch, batch),
            batch,
        )
        logits, labels, *token = map(jnp.asarray, rows)
        together = jax.jit(split)(logits, labels, noise.token_words(0, *token))
    assert_same(draw(rows, num_samples=7, temperature=2.0), together, rtol=1e-5)
