"""Weights on ids by comparison and by the kernel, as on a TPU, against gathers and scatters, and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.losses import cross_entropy, id_weights, sparse_kernel, vocab_parallel
from tests import toys
from tests.losses import test_cross_entropy as whole

B, T, M = 2, 9, 5  # 18 tokens are no whole block of the kernel


def ids_and_weights(num_ids):
    """Ids in and around the shard, two of them equal, and float32 weights from 0.5 to 1."""
    random = np.random.default_rng(0)
    ids = random.integers(-40, num_ids + 40, (B, T, M)).astype(np.int32)
    ids[..., 3] = ids[..., 2]
    ids[0, 0] = [0, num_ids - 1, -1, num_ids, num_ids + 1]
    return ids, random.uniform(0.5, 1, ids.shape).astype(np.float32)


def written_out(ids, weights, num_ids):
    dense = np.zeros((B, T, num_ids))
    for token in np.ndindex(B, T):
        for number, weight in zip(ids[token], weights[token], strict=True):
            if 0 <= number < num_ids:
                dense[(*token, number)] += weight
    return dense


def grad_logits(label_factor=None):
    """The gradient: logits times a number of each token."""
    numbers = jnp.asarray(toys.noise("numbers", (B, T)))
    factor = jnp.full((B, T), 2.0)
    return id_weights.LogitsGradient(lambda logits, x: logits * x, (numbers,), factor, label_factor, jnp.float32)


@pytest.mark.parametrize("num_ids", [96, 300], ids="{} ids".format)
def test_the_kernel_sums_and_subtracts_weights_to_16_bits(monkeypatch, num_ids):
    """One block that is larger than the shard; two, the second partly beyond it."""
    monkeypatch.setattr(sparse_kernel, "ROWS", 2)
    ids, weights = ids_and_weights(num_ids)
    logits, labels = toys.noise("logits", (B, T, num_ids)), ids[..., 1]
    few = id_weights.FewIds(jnp.asarray(ids), jnp.asarray(weights), (ids >= 0) & (ids < num_ids))
    kernel, label = id_weights.FewIdsByKernel(few), id_weights.OneId(jnp.asarray(labels), few.is_here[..., 1])
    dense = written_out(ids, weights, num_ids)
    ours = grad_logits(label_factor=jnp.full((B, T), 0.25))
    dot, gradient, _ = jax.jit(lambda logits: kernel.weigh(logits, ours, label))(logits)
    largest = np.abs(logits).max()
    np.testing.assert_allclose(dot, (dense * logits).sum(-1), atol=M * largest * 2.0**-16)
    np.testing.assert_array_equal(dot, kernel.weigh(jnp.asarray(logits), None, label).dot)
    expected = logits * np.asarray(ours.per_token[0])[..., None] - 2 * dense
    expected -= 0.25 * written_out(labels[..., None], np.ones((B, T, 1)), num_ids)
    # Two weights of at most 1 on an id, each to 2**-17.
    np.testing.assert_allclose(gradient, expected, atol=2 * 2 * 2.0**-17 + 1e-6)
    np.testing.assert_allclose(ours.of(jnp.asarray(logits), few, label), expected, atol=1e-5)


def test_the_kernels_rounding_has_no_direction():
    """Unbiased weights stay unbiased: over many of them the mean error is far below the largest."""
    num_ids, count = 2048, 1024
    ids = np.broadcast_to(np.arange(count, dtype=np.int32), (1, 16, count))
    weights = np.random.default_rng(1).uniform(0.5, 1, ids.shape).astype(np.float32)
    few = id_weights.FewIds(jnp.asarray(ids), jnp.asarray(weights), jnp.ones(ids.shape, bool))
    zero = jnp.zeros((1, 16))
    label = id_weights.OneId(jnp.zeros((1, 16), jnp.int32), jnp.ones((1, 16), bool))
    alone = id_weights.LogitsGradient(lambda logits, x: logits * x, (zero,), zero - 1, None, jnp.float32)
    rounded = id_weights.FewIdsByKernel(few).weigh(jnp.zeros((1, 16, num_ids)), alone, label).gradient
    error = np.asarray(rounded[..., :count], np.float64) - weights
    assert np.abs(error).max() <= 2.0**-17 and not np.asarray(rounded[..., count:]).any()
    assert abs(error.mean()) < 4 * error.std() / error.size**0.5


@pytest.mark.parametrize("num_ids", [96, 300])
def test_a_comparison_is_a_gather_and_a_scatter(num_ids):
    ids, _ = ids_and_weights(num_ids)
    ids, values = jnp.asarray(ids[..., 0]), jnp.asarray(toys.noise("logits", (B, T, num_ids)))
    is_here, factor = (ids >= 0) & (ids < num_ids), jnp.full((B, T), 0.75)
    compared = id_weights.OneId(ids, is_here)
    looked_up = id_weights.FewIds(ids[..., None], jnp.ones((B, T, 1)), is_here[..., None])
    for method, more in (("total", ()), ("dot", (values,)), ("subtract_from", (values, factor))):
        np.testing.assert_allclose(
            getattr(compared, method)(*more), getattr(looked_up, method)(*more), rtol=1e-6, atol=1e-6
        )
    assert 0 < compared.total().sum() < B * T


@pytest.mark.parametrize(
    "targets, axes, blend",
    [
        ("sparse", {"data": 2, "seq": 2, "model": 2}, whole.ALL),
        pytest.param("sparse", {}, {}, marks=pytest.mark.slow),
        pytest.param("none", {"data": 4}, whole.ALL, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_loss_of_a_tpu_is_that_of_other_platforms(monkeypatch, targets, axes, blend):
    hidden, table, labels, mask, sparse = whole.made()
    arguments = hidden, table, labels, mask, sparse if targets == "sparse" else None
    run = functools.partial(cross_entropy.cross_entropy_sum, **blend)
    differentiated = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)
    expected, alone = jax.jit(differentiated)(*arguments), jax.jit(run)(*arguments)
    monkeypatch.setattr(id_weights, "compares", lambda: True)
    monkeypatch.setattr(vocab_parallel, "LOGITS_PER_CHUNK", 4 * whole.V)
    mesh = sharding.make_mesh(**axes)
    placed = jax.device_put((labels, mask, arguments[-1]), sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        again = lambda f: jax.jit(lambda *x: f(*x))(hidden, table, *placed)  # noqa: E731
        result, forward = again(differentiated), again(run)
    close = functools.partial(np.testing.assert_allclose, rtol=5e-5, atol=5e-5)
    jax.tree.map(close, result, expected)
    jax.tree.map(close, forward, alone)
