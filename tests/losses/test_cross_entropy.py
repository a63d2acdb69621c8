"""The loss against few weights: dense autodiff on the same target written out, on any mesh, in any chunks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from gemma3_jax import sharding
from gemma3_jax.distill import targets
from gemma3_jax.losses import cross_entropy, vocab_parallel
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
# Float32, and another order of some 100 terms in every sum.
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


def made(num_ids=V, width=D, dtype=jnp.float32):
    """Hidden states, table, labels, mask and targets: ids that come twice, weights that add up to 0, 0.7, 1 and 1.4."""
    hidden, table = toys.noise("hidden", (B, T, width)), toys.noise("table", (num_ids, width))
    draw = lambda name, *shape: (np.abs(toys.noise(name, shape)) * num_ids).astype(np.int32)  # noqa: E731
    labels, ids = draw("labels", B, T), draw("ids", B, T, M)
    ids[..., 3], ids[..., 5] = ids[..., 2], labels
    weights = np.abs(toys.noise("weights", (B, T, M)))
    weights *= (np.asarray([0.0, 0.7, 1.0, 1.4])[np.arange(T) % 4] / weights.sum(-1))[..., None]
    mask = np.arange(B * T).reshape(B, T) % 5 != 4
    told = [np.abs(toys.noise(name, (B, T))) for name in ("mass", "entropy", "label")]
    soft = targets.Targets(ids, weights.astype(np.float32), *told[:2], -told[2], draw("best", B, T))
    return jax.tree.map(jnp.asarray, (hidden.astype(dtype), 3 * table, labels, mask, soft))


def written_out(hidden, table, labels, mask, soft, *, temperature=1.0, hard_label_weight=0.0, z_loss=0.0):
    """The same total with the target as an array [tokens, V]."""
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
        found = f(hidden, table, *arguments[2:], **blend)
        return found[0] if isinstance(found, tuple) else found

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(*arguments[:2])


def assert_alike(one, other):
    jax.tree.map(close, one, other)


@pytest.mark.parametrize("blend", BLENDS, ids=str)
def test_value_and_gradients_are_those_of_the_target_written_out(blend):
    arguments = made()
    assert_alike(
        differentiated(cross_entropy.summed, arguments, **blend), differentiated(written_out, arguments, **blend)
    )


def told_whole(num_ids=V, temperature=1.0):
    """What a teacher of another width says: to be multiplied, and written out as a weight on every id."""
    whole = targets.Whole(toys.noise("teacher", (B, T, 12)), 3 * toys.noise("teacher table", (num_ids, 12)))
    logits = jnp.einsum("BTW,VW->BTV", *whole)
    nats, untempered = jax.nn.log_softmax(logits / temperature), jax.nn.log_softmax(logits)
    of_labels = jnp.take_along_axis(untempered, made(num_ids)[2][..., None], axis=-1)[..., 0]
    ids = jnp.broadcast_to(jnp.arange(num_ids), nats.shape)
    entropy = -jnp.sum(jnp.exp(nats) * nats, axis=-1)
    written = (ids, jnp.exp(nats), jnp.ones((B, T)), entropy, of_labels, jnp.argmax(logits, axis=-1))
    return jax.tree.map(jnp.asarray, whole), targets.Targets(*written)


@pytest.mark.parametrize("blend", BLENDS, ids=str)
def test_the_whole_of_what_a_teacher_says_is_a_weight_on_every_id(blend):
    *student, _ = made()
    whole, written = told_whole(temperature=blend.get("temperature", 1.0))
    expected = differentiated(written_out, (*student, written), **blend)
    assert_alike(differentiated(cross_entropy.summed, (*student, whole), **blend), expected)
    _, sums = cross_entropy.summed(*student, whole, **blend)
    assert_alike(sums, cross_entropy.summed(*student, written, **blend)[1])
    assert sums["soft_loss"] > sums["teacher_entropy"]


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    _, _, labels, mask, _ = made()
    whole, _ = told_whole()
    (total, sums), gradients = jax.value_and_grad(cross_entropy.summed, argnums=(0, 1), has_aux=True)(
        *whole, labels, mask, whole
    )
    close(total, sums["teacher_entropy"])
    assert sums["agreement"] == mask.sum() and all(jnp.max(jnp.abs(gradient)) < 1e-5 for gradient in gradients)


def test_the_value_is_the_same_whether_or_not_it_is_differentiated():
    arguments = made()
    total, sums = jax.jit(functools.partial(cross_entropy.summed, **ALL))(*arguments)
    (again, sums_again), _ = jax.value_and_grad(functools.partial(cross_entropy.summed, **ALL), has_aux=True)(
        *arguments
    )
    assert_alike((total, sums), (again, sums_again))


def test_the_gradient_is_the_slope_of_the_value():
    """By finite differences along one direction, in no way through autodiff."""
    hidden, table, *rest = made()
    ways = toys.noise("way", hidden.shape), toys.noise("way", table.shape, seed=1)
    _, gradients = differentiated(cross_entropy.summed, (hidden, table, *rest), **ALL)
    at = lambda h: cross_entropy.summed(hidden + h * ways[0], table + h * ways[1], *rest, **ALL)[0]  # noqa: E731
    slope = sum(float(jnp.vdot(gradient, way)) for gradient, way in zip(gradients, ways, strict=True))
    assert (at(0.01) - at(-0.01)) / 0.02 == pytest.approx(slope, rel=1e-3)


def test_a_factor_on_the_total_is_one_on_the_gradients():
    arguments = made()
    thrice = lambda *a, **blend: 3 * cross_entropy.summed(*a, **blend)[0]  # noqa: E731
    once = differentiated(cross_entropy.summed, arguments, **ALL)
    assert_alike(differentiated(thrice, arguments, **ALL), jax.tree.map(lambda x: 3 * x, once))


def test_masked_tokens_have_no_gradient_and_may_hold_anything():
    hidden, table, labels, mask, soft = made()
    soft = soft._replace(
        weights=jnp.where(mask[..., None], soft.weights, jnp.nan),
        label_log_prob=jnp.where(mask, soft.label_log_prob, -jnp.inf),
    )
    value, (of_hidden, grad_table) = differentiated(cross_entropy.summed, (hidden, table, labels, mask, soft), **ALL)
    assert jnp.isfinite(value) and jnp.all(jnp.isfinite(grad_table))
    assert not jnp.any(of_hidden[~mask]) and jnp.all(jnp.any(of_hidden[mask] != 0, axis=-1))
    assert jnp.isfinite(cross_entropy.summed(hidden, table, labels, mask, soft)[1]["teacher_cross_entropy"])


def test_the_teacher_learns_nothing():
    *student, soft = made()
    total = lambda weights: cross_entropy.summed(*student, soft._replace(weights=weights))[0]  # noqa: E731
    assert not jnp.any(jax.grad(total)(soft.weights))


def test_without_targets_it_is_the_cross_entropy_of_the_labels():
    hidden, table, labels, mask, _ = arguments = made()
    by_optax = lambda hidden, table: jnp.sum(  # noqa: E731
        optax.softmax_cross_entropy_with_integer_labels(hidden @ table.T, labels) * mask
    )
    expected = jax.value_and_grad(by_optax, argnums=(0, 1))(hidden, table)
    assert_alike(differentiated(cross_entropy.summed, (*arguments[:4], None)), expected)
    _, sums = cross_entropy.summed(hidden, table, labels, mask, None)
    assert sums.keys() == {"loss", "cross_entropy"}
    close(sums["cross_entropy"], expected[0])


def test_sums_are_what_they_say():
    hidden, table, labels, mask, soft = made()
    logits = np.einsum("btd,vd->btv", hidden, table).astype(np.float64)
    best = np.asarray(soft.best_id).copy()
    best[::2] = logits.argmax(-1)[::2]
    soft = soft._replace(best_id=jnp.asarray(best))
    total, sums = cross_entropy.summed(hidden, table, labels, mask, soft, **ALL)

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
def test_chunks_give_what_the_whole_gives(monkeypatch, tokens_per_chunk):
    arguments = made()
    whole = differentiated(cross_entropy.summed, arguments, **ALL)
    monkeypatch.setattr(vocab_parallel, "LOGITS_PER_CHUNK", B * tokens_per_chunk * V)
    assert vocab_parallel.chunk_size(vocab_parallel.Shard(V), B, T) == tokens_per_chunk
    assert_alike(differentiated(cross_entropy.summed, arguments, **ALL), whole)


MESHES = [
    ({"data": 2, "seq": 2, "model": 2}, V, D),
    ({"replica": 2, "data": 2, "seq": 2}, V, D),
    ({"seq": 4, "model": 2}, V, D),
    ({"data": 4}, V, D),  # neither seq nor model: the vocabulary is split over data
    ({"replica": 2, "data": 2}, V, D),
    ({"data": 4, "model": 2}, V, 14),  # 14 is no multiple of 4: the table's gradient is split along V
    ({"data": 2, "seq": 2, "model": 2}, 98, D),  # 98 is a multiple of seq, not of seq x model
    ({"seq": 4, "model": 2}, 98, D),  # nor of 4: each shard of a row scores its tokens alone
    ({"data": 2, "seq": 2, "model": 2}, 97, 15),  # nothing divides
]


@pytest.mark.parametrize("axes, num_ids, width", MESHES, ids=str)
@pytest.mark.parametrize("told", ["few", "whole", "nothing"])
def test_a_mesh_changes_nothing(monkeypatch, axes, num_ids, width, told):
    hidden, table, labels, mask, few = made(num_ids, width)
    soft = {"few": few, "whole": told_whole(num_ids)[0], "nothing": None}[told]
    arguments = hidden, table, labels, mask, soft
    run = jax.jit(jax.value_and_grad(functools.partial(cross_entropy.summed, **ALL), argnums=(0, 1), has_aux=True))
    expected = run(*arguments)
    monkeypatch.setattr(vocab_parallel, "LOGITS_PER_CHUNK", 4 * num_ids)
    mesh = sharding.make_mesh(**axes)
    place = sharding.batch_sharding(mesh)
    rest = NamedSharding(mesh, sharding.parameter_spec(("V", "D"), table.shape, mesh.shape))
    placed = [jax.device_put(x, rest if x is table else place) for x in arguments[:4]]
    if told == "whole":
        soft = soft._replace(hidden=jax.device_put(soft.hidden, place))
    placed.append(soft if told == "whole" else jax.device_put(soft, place))
    with jax.set_mesh(mesh):
        found = run(*placed)
        log_probs = jax.jit(cross_entropy.label_log_probs)(*placed[:3])
    assert_alike(found, expected)
    assert found[1][1].sharding.is_equivalent_to(rest, 2)
    close(log_probs, cross_entropy.label_log_probs(*arguments[:3]))


def test_label_log_probs_are_those_of_the_softmax(monkeypatch):
    hidden, table, labels, *_ = made()
    monkeypatch.setattr(vocab_parallel, "LOGITS_PER_CHUNK", B * 2 * V)
    found = jax.jit(cross_entropy.label_log_probs)(hidden, table, labels)
    close(found, -optax.softmax_cross_entropy_with_integer_labels(hidden @ table.T, labels))


def test_bfloat16_is_close_and_its_sums_are_float32():
    arguments, rounded = made(), made(dtype=jnp.bfloat16)
    value, (of_hidden, grad_table) = differentiated(cross_entropy.summed, rounded, **ALL)
    expected = differentiated(cross_entropy.summed, arguments, **ALL)
    assert value.dtype == grad_table.dtype == jnp.float32 and of_hidden.dtype == jnp.bfloat16
    assert value == pytest.approx(float(expected[0]), rel=3e-3)  # 2**-9 of each logit, and they do not lean one way
    for found, exact in zip((of_hidden, grad_table), expected[1], strict=True):
        error = jnp.linalg.norm(found.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
        assert error < 0.01


def test_no_array_of_tokens_and_vocabulary_is_made(monkeypatch):
    monkeypatch.setattr(vocab_parallel, "LOGITS_PER_CHUNK", B * 2 * V)
    arguments = made()
    run = jax.value_and_grad(lambda *a: cross_entropy.summed(*a, *arguments[2:], **ALL)[0], argnums=(0, 1))
    text = jax.jit(run).lower(*arguments[:2]).as_text()
    assert f"tensor<{B}x2x{V}xf32>" in text and f"{T}x{V}x" not in text
    assert text.count("dot_general") == 3  # logits, and two of the gradients: nothing is computed again


def test_without_differentiation_no_gradient_is_made():
    text = jax.jit(cross_entropy.summed).lower(*made()).as_text()
    assert text.count("dot_general") == 1 and "scatter" not in text
