"""The cross-entropy against autodiff on a dense target, on any mesh and in any chunks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from gemma3_jax import sharding
from gemma3_jax.losses import cross_entropy, soft_targets, vocab_parallel
from tests import toys

B, T, D, V, M = 4, 8, 16, 96, 7
ALL = {"temperature": 2.0, "hard_label_weight": 0.3, "z_loss": 0.1}
BLENDS = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"hard_label_weight": 0.3},
    {"z_loss": 0.1},
    {"hard_label_weight": 1.0},
    ALL,
]
cross_entropy_sum = cross_entropy.cross_entropy_sum
# Float32, and another order of some 100 terms in every sum.
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


def made(num_ids=V, embed_dim=D, dtype=jnp.float32):
    """Hidden states, table, labels, mask and targets: repeated ids, weights that add up to 0, 0.7, 1 and 1.4."""
    hidden, table = toys.noise("hidden", (B, T, embed_dim)), toys.noise("table", (num_ids, embed_dim))
    draw = lambda name, *shape: (np.abs(toys.noise(name, shape)) * num_ids).astype(np.int32)  # noqa: E731
    labels, ids = draw("labels", B, T), draw("ids", B, T, M)
    ids[..., 3], ids[..., 5] = ids[..., 2], labels
    weights = np.abs(toys.noise("weights", (B, T, M)))
    weights *= (np.asarray([0.0, 0.7, 1.0, 1.4])[np.arange(T) % 4] / weights.sum(-1))[..., None]
    mask = np.arange(B * T).reshape(B, T) % 5 != 4
    mass, entropy, label_nats = (np.abs(toys.noise(name, (B, T))) for name in ("mass", "entropy", "label"))
    weights = weights.astype(np.float32)
    soft = soft_targets.SparseTargets(ids, weights, mass, entropy, -label_nats, draw("best", B, T))
    return jax.tree.map(jnp.asarray, (hidden.astype(dtype), 3 * table, labels, mask, soft))


def written_out(hidden, table, labels, mask, soft, *, temperature=1.0, hard_label_weight=0.0, z_loss=0.0):
    """The same total with the target as a dense array [tokens, V]."""
    logits = jnp.einsum("BTD,VD->BTV", hidden, table)
    rows, columns = np.indices(labels.shape)
    target = jnp.zeros(logits.shape).at[rows[..., None], columns[..., None], soft.ids].add(soft.weights)
    soft_nats = -jnp.sum(target * jax.nn.log_softmax(logits / temperature), axis=-1)
    hard_nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    nats = (1 - hard_label_weight) * temperature**2 * soft_nats + hard_label_weight * hard_nats
    return jnp.sum((nats + z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2) * mask)


def differentiated(f, arguments, **blend):
    """Value, and gradients of the hidden states and of the table."""

    def total(hidden, table):
        result = f(hidden, table, *arguments[2:], **blend)
        return result[0] if isinstance(result, tuple) else result

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(*arguments[:2])


def assert_alike(one, other):
    jax.tree.map(close, one, other)


@pytest.mark.parametrize("blend", BLENDS, ids=str)
def test_value_and_gradients_are_those_of_the_target_written_out(blend):
    arguments = made()
    assert_alike(
        differentiated(cross_entropy_sum, arguments, **blend),
        differentiated(written_out, arguments, **blend),
    )


def dense_and_sparse(num_ids=V, temperature=1.0):
    """Dense targets of a teacher with another embedding dim, and the same as a weight on every id."""
    dense = soft_targets.DenseTargets(toys.noise("teacher", (B, T, 12)), 3 * toys.noise("teacher table", (num_ids, 12)))
    logits = jnp.einsum("BTW,VW->BTV", *dense)
    nats, untempered = jax.nn.log_softmax(logits / temperature), jax.nn.log_softmax(logits)
    label_nats = jnp.take_along_axis(untempered, made(num_ids)[2][..., None], axis=-1)[..., 0]
    ids = jnp.broadcast_to(jnp.arange(num_ids), nats.shape)
    entropy = -jnp.sum(jnp.exp(nats) * nats, axis=-1)
    sparse = (ids, jnp.exp(nats), jnp.ones((B, T)), entropy, label_nats, jnp.argmax(logits, axis=-1))
    return jax.tree.map(jnp.asarray, dense), soft_targets.SparseTargets(*sparse)


@pytest.mark.parametrize("blend", BLENDS, ids=str)
def test_dense_targets_are_a_weight_on_every_id(blend):
    *student, _ = made()
    dense, sparse = dense_and_sparse(temperature=blend.get("temperature", 1.0))
    expected = differentiated(written_out, (*student, sparse), **blend)
    assert_alike(differentiated(cross_entropy_sum, (*student, dense), **blend), expected)
    _, sums = cross_entropy_sum(*student, dense, **blend)
    assert_alike(sums, cross_entropy_sum(*student, sparse, **blend)[1])
    assert sums["soft_loss"] > sums["teacher_entropy"]


def test_a_student_that_is_its_teacher_has_no_gradient():
    _, _, labels, mask, _ = made()
    dense, _ = dense_and_sparse()
    (total, sums), gradients = jax.value_and_grad(cross_entropy_sum, argnums=(0, 1), has_aux=True)(
        *dense, labels, mask, dense
    )
    close(total, sums["teacher_entropy"])
    assert sums["agreement"] == mask.sum() and all(jnp.max(jnp.abs(gradient)) < 1e-5 for gradient in gradients)


def test_the_value_is_the_same_whether_or_not_it_is_differentiated():
    arguments = made()
    total, sums = jax.jit(functools.partial(cross_entropy_sum, **ALL))(*arguments)
    (again, sums_again), _ = jax.value_and_grad(functools.partial(cross_entropy_sum, **ALL), has_aux=True)(*arguments)
    assert_alike((total, sums), (again, sums_again))


def test_the_gradient_is_the_slope_of_the_value():
    """By finite differences along one direction, without autodiff."""
    hidden, table, *rest = made()
    direction = toys.noise("way", hidden.shape), toys.noise("way", table.shape, seed=1)
    _, gradients = differentiated(cross_entropy_sum, (hidden, table, *rest), **ALL)
    at = lambda h: cross_entropy_sum(hidden + h * direction[0], table + h * direction[1], *rest, **ALL)[0]  # noqa: E731
    slope = sum(float(jnp.vdot(gradient, way)) for gradient, way in zip(gradients, direction, strict=True))
    assert (at(0.01) - at(-0.01)) / 0.02 == pytest.approx(slope, rel=1e-3)


def test_a_factor_on_the_total_scales_the_gradients():
    arguments = made()
    thrice = lambda *a, **blend: 3 * cross_entropy_sum(*a, **blend)[0]  # noqa: E731
    once = differentiated(cross_entropy_sum, arguments, **ALL)
    assert_alike(differentiated(thrice, arguments, **ALL), jax.tree.map(lambda x: 3 * x, once))


def test_masked_tokens_have_no_gradient_and_may_hold_anything():
    hidden, table, labels, mask, soft = made()
    soft = soft._replace(
        weights=jnp.where(mask[..., None], soft.weights, jnp.nan),
        label_log_prob=jnp.where(mask, soft.label_log_prob, -jnp.inf),
    )
    value, (grad_hidden, grad_table) = differentiated(cross_entropy_sum, (hidden, table, labels, mask, soft), **ALL)
    assert jnp.isfinite(value) and jnp.all(jnp.isfinite(grad_table))
    assert not jnp.any(grad_hidden[~mask]) and jnp.all(jnp.any(grad_hidden[mask] != 0, axis=-1))
    assert jnp.isfinite(cross_entropy_sum(hidden, table, labels, mask, soft)[1]["teacher_cross_entropy"])


def test_the_targets_have_no_gradient():
    *student, soft = made()
    total = lambda weights: cross_entropy_sum(*student, soft._replace(weights=weights))[0]  # noqa: E731
    assert not jnp.any(jax.grad(total)(soft.weights))


def test_without_targets_it_is_the_cross_entropy_of_the_labels():
    hidden, table, labels, mask, _ = arguments = made()
    by_optax = lambda hidden, table: jnp.sum(  # noqa: E731
        optax.softmax_cross_entropy_with_integer_labels(hidden @ table.T, labels) * mask
    )
    expected = jax.value_and_grad(by_optax, argnums=(0, 1))(hidden, table)
    assert_alike(differentiated(cross_entropy_sum, (*arguments[:4], None)), expected)
    _, sums = cross_entropy_sum(hidden, table, labels, mask, None)
    assert sums.keys() == {"loss", "cross_entropy"}
    close(sums["cross_entropy"], expected[0])


def test_sums_are_those_of_numpy():
    hidden, table, labels, mask, soft = made()
    logits = np.einsum("btd,vd->btv", hidden, table).astype(np.float64)
    best = np.asarray(soft.best_id).copy()
    best[::2] = logits.argmax(-1)[::2]
    soft = soft._replace(best_id=jnp.asarray(best))
    total, sums = cross_entropy_sum(hidden, table, labels, mask, soft, **ALL)

    def at(temperature):
        scaled = logits / temperature
        return scaled, np.log(np.exp(scaled).sum(-1))

    (z, lse), (scaled, soft_lse) = at(1.0), at(2.0)
    mask, weights = np.asarray(mask), np.asarray(soft.weights)
    picked = (weights * np.take_along_axis(scaled, np.asarray(soft.ids), -1)).sum(-1)
    nats = lse - np.take_along_axis(z, np.asarray(labels)[..., None], -1)[..., 0]
    expected = {
        "cross_entropy": nats,
        "soft_loss": weights.sum(-1) * soft_lse - picked,
        "agreement": logits.argmax(-1) == best,
        "captured_mass": soft.captured_mass,
        "teacher_entropy": soft.entropy,
        "teacher_cross_entropy": -soft.label_log_prob,
    }
    expected = {name: np.sum(np.asarray(x) * mask) for name, x in expected.items()}
    expected["loss"] = 0.7 * 4 * expected["soft_loss"] + 0.3 * expected["cross_entropy"]
    assert 0 < expected["agreement"] < mask.sum() and sums.keys() == expected.keys()
    for name, value in expected.items():
        close(sums[name], value, err_msg=name)
    close(total, expected["loss"] + 0.1 * np.sum(lse**2 * mask))


@pytest.mark.parametrize("tokens_per_chunk", [1, 2])
def test_chunks_change_nothing(monkeypatch, tokens_per_chunk):
    arguments = made()
    whole = differentiated(cross_entropy_sum, arguments, **ALL)
    monkeypatch.setattr(vocab_parallel, "LOGITS_PER_CHUNK", B * tokens_per_chunk * V)
    assert vocab_parallel.chunk_size(vocab_parallel.Shard(V), B, T) == tokens_per_chunk
    assert_alike(differentiated(cross_entropy_sum, arguments, **ALL), whole)


slow = pytest.mark.slow
MESHES = [
    ({"data": 2, "seq": 2, "model": 2}, V, D),
    pytest.param({"replica": 2, "data": 2, "seq": 2}, V, D, marks=slow),
    pytest.param({"seq": 4, "model": 2}, V, D, marks=slow),
    ({"data": 4}, V, D),  # neither seq nor model: the vocabulary is split over data
    pytest.param({"replica": 2, "data": 2}, V, D, marks=slow),
    ({"data": 4, "model": 2}, V, 14),  # 14 is no multiple of 4: the table's gradient is split along V
    pytest.param({"data": 2, "seq": 2, "model": 2}, 98, D, marks=slow),  # 98 is a multiple of seq, not of seq x model
    pytest.param({"seq": 4, "model": 2}, 98, D, marks=slow),  # nor of 4: each shard of a row scores its tokens alone
    ({"data": 2, "seq": 2, "model": 2}, 97, 15),  # nothing divides
]


@pytest.mark.parametrize("axes, num_ids, embed_dim", MESHES, ids=str)
@pytest.mark.parametrize("targets", ["sparse", "dense", "none"])
def test_a_mesh_changes_nothing(monkeypatch, axes, num_ids, embed_dim, targets):
    hidden, table, labels, mask, sparse = made(num_ids, embed_dim)
    soft = {"sparse": sparse, "dense": dense_and_sparse(num_ids)[0], "none": None}[targets]
    arguments = hidden, table, labels, mask, soft
    run = jax.jit(jax.value_and_grad(functools.partial(cross_entropy_sum, **ALL), argnums=(0, 1), has_aux=True))
    expected = run(*arguments)
    monkeypatch.setattr(vocab_parallel, "LOGITS_PER_CHUNK", 4 * num_ids)
    mesh = sharding.make_mesh(**axes)
    batch = sharding.batch_sharding(mesh)
    rest = NamedSharding(mesh, sharding.parameter_spec(("V", "D"), table.shape, mesh.shape))
    placed = [jax.device_put(x, rest if x is table else batch) for x in arguments[:4]]
    if targets == "dense":
        soft = soft._replace(hidden=jax.device_put(soft.hidden, batch))
    placed.append(soft if targets == "dense" else jax.device_put(soft, batch))
    with jax.set_mesh(mesh):
        result = run(*placed)
        log_probs = jax.jit(cross_entropy.label_log_probs)(*placed[:3])
    assert_alike(result, expected)
    assert result[1][1].sharding.is_equivalent_to(rest, 2)
    close(log_probs, cross_entropy.label_log_probs(*arguments[:3]))


def test_label_log_probs_are_those_of_the_softmax(monkeypatch):
    hidden, table, labels, *_ = made()
    monkeypatch.setattr(vocab_parallel, "LOGITS_PER_CHUNK", B * 2 * V)
    log_probs = jax.jit(cross_entropy.label_log_probs)(hidden, table, labels)
    close(log_probs, -optax.softmax_cross_entropy_with_integer_labels(hidden @ table.T, labels))


def test_bfloat16_is_close_and_its_sums_are_float32():
    arguments, rounded = made(), made(dtype=jnp.bfloat16)
    value, (grad_hidden, grad_table) = differentiated(cross_entropy_sum, rounded, **ALL)
    expected = differentiated(cross_entropy_sum, arguments, **ALL)
    assert value.dtype == grad_table.dtype == jnp.float32 and grad_hidden.dtype == jnp.bfloat16
    assert value == pytest.approx(float(expected[0]), rel=3e-3)  # 2**-9 of each logit, without a bias
    for gradient, exact in zip((grad_hidden, grad_table), expected[1], strict=True):
        error = jnp.linalg.norm(gradient.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
        assert error < 0.01


def test_no_array_of_tokens_and_vocabulary_is_made(monkeypatch):
    monkeypatch.setattr(vocab_parallel, "LOGITS_PER_CHUNK", B * 2 * V)
    arguments = made()
    run = jax.value_and_grad(lambda *a: cross_entropy_sum(*a, *arguments[2:], **ALL)[0], argnums=(0, 1))
    text = jax.jit(run).lower(*arguments[:2]).as_text()
    assert (
        f"tensor<1x{B * 2}x{V}xf32>" in text
        and f"{B * T}x{V}x" not in text
        and f"{T}x{V}x" not in text.replace(f"1x{B * 2}x{V}x", "")
    )
    assert text.count("dot_general") == 3  # logits, and two of the gradients: nothing is recomputed


def test_without_differentiation_no_gradient_is_made():
    text = jax.jit(cross_entropy_sum).lower(*made()).as_text()
    assert text.count("dot_general") == 1 and "scatter" not in text
