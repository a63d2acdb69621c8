"""What stages minimise, against optax and by hand, on a mesh and without, and what they report."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gemma3_jax import sharding
from gemma3_jax.data import stream
from gemma3_jax.distill import settings, targets
from gemma3_jax.losses import objectives, vocab_parallel
from gemma3_jax.model import execution, masks, parameters
from tests import toys

MODEL = dataclasses.replace(toys.TOY, num_layers=1)
NUM_BYTES = np.arange(MODEL.vocab_size, dtype=np.int32) % 7


@pytest.fixture(scope="module")
def params():
    return toys.params(MODEL)


@pytest.fixture(scope="module")
def rows():
    """Two documents a row and padding; some targets not to be learned."""
    segments, positions = (np.repeat(x, 2, axis=0) for x in toys.packed([5, 6], 12))
    tokens, targets = toys.tokens(MODEL, 2, 12), toys.tokens(MODEL, 2, 12, seed=1)
    mask = (segments > 0) & (np.arange(12) % 5 != 4)
    numbers = np.zeros_like(tokens)
    return stream.Rows(*map(jnp.asarray, (tokens, targets, mask, segments, positions, numbers)))


def made(**options):
    return objectives.next_token(MODEL, execution.REFERENCE, num_bytes=NUM_BYTES, **options)


def logits(params, rows):
    model = parameters.bind(MODEL, params)
    return model.logits(model(rows.tokens, masks.Places(rows.segments, rows.positions)))


def by_optax(params, rows):
    scores = logits(params, rows)
    nats = optax.softmax_cross_entropy_with_integer_labels(scores, rows.labels)
    return jnp.sum(nats * rows.loss_mask), jnp.sum(jax.nn.logsumexp(scores, axis=-1) ** 2 * rows.loss_mask)


def test_it_is_the_cross_entropy_over_the_targets_alone(params, rows):
    total, num_targets, sums = jax.jit(made())(params, rows)
    assert total == pytest.approx(float(by_optax(params, rows)[0]), rel=1e-5)
    mask = np.asarray(rows.loss_mask)
    assert num_targets == mask.sum() and sums.keys() == {"loss", "bytes_per_target"} and sums["loss"] == total
    assert sums["bytes_per_target"] == NUM_BYTES[np.asarray(rows.labels)][mask].sum()


def test_gradients_are_those_of_optax(params, rows):
    """The table's has two parts: of what it looks up, and of what it scores."""
    ours = jax.jit(jax.grad(lambda params: made()(params, rows)[0]))(params)
    theirs = jax.jit(jax.grad(lambda params: by_optax(params, rows)[0]))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def test_z_loss_is_minimised_and_not_shown(params, rows):
    nats, squares = map(float, by_optax(params, rows))
    total, _, sums = jax.jit(made(z_loss=0.01))(params, rows)
    assert total == pytest.approx(nats + 0.01 * squares, rel=1e-5)
    assert sums["loss"] == pytest.approx(nats, rel=1e-5)


def test_the_logits_of_a_chunk_fit_and_are_the_largest_array(monkeypatch, params, rows):
    """No array of tokens x vocabulary is made, forward or backward."""
    monkeypatch.setattr(vocab_parallel, "LOGITS_PER_CHUNK", 2 * 2 * MODEL.vocab_size)
    text = jax.jit(jax.grad(lambda params: made()(params, rows)[0])).lower(params).as_text()
    assert "tensor<2x2x96xf32>" in text and "tensor<2x12x96x" not in text


def test_a_sharded_loss_is_that_of_one_device(params, rows):
    value_and_grad = jax.jit(jax.value_and_grad(lambda params, rows: made(z_loss=0.1)(params, rows)[0]))
    alone = value_and_grad(params, rows)
    mesh = sharding.make_mesh(data=2, seq=2, model=2)
    placed = map(jax.device_put, (params, rows), (parameters.shardings(MODEL, mesh), sharding.batch_sharding(mesh)))
    with jax.set_mesh(mesh):
        together = value_and_grad(*placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), alone, together)


def exact(teacher, rows):
    """All that the teacher thinks, as one weight for each id."""
    log_probs = jax.nn.log_softmax(logits(teacher, rows))
    probs = jnp.exp(log_probs)
    ids = jnp.broadcast_to(jnp.arange(MODEL.vocab_size), probs.shape)
    of_label = jnp.take_along_axis(log_probs, rows.labels[..., None], axis=-1)[..., 0]
    entropy = -jnp.sum(probs * log_probs, axis=-1)
    return targets.Targets(ids, probs, jnp.sum(probs, axis=-1), entropy, of_label, jnp.argmax(probs, axis=-1))


def distilled(estimator="top_k", num_samples=96, targets_of=exact, **options):
    samples = settings.Samples(estimator=estimator, num_samples=num_samples)
    options = {"num_bytes": NUM_BYTES, "samples": samples, "targets_of": targets_of, **options}
    return objectives.distilled(MODEL, execution.REFERENCE, **options)


def test_distilling_reports_what_the_teacher_and_the_student_say(params, rows):
    teacher = toys.params(MODEL, seed=1)
    total, num_targets, sums = jax.jit(distilled(hard_label_weight=0.25, z_loss=0.01))(params, teacher, rows)
    mine, its, mask = (
        jax.nn.log_softmax(logits(params, rows)),
        jax.nn.log_softmax(logits(teacher, rows)),
        rows.loss_mask,
    )
    soft = jnp.sum(-jnp.sum(jnp.exp(its) * mine, axis=-1) * mask)
    (hard, squares), (teacher_hard, _) = by_optax(params, rows), by_optax(teacher, rows)
    expected = {
        "loss": 0.75 * soft + 0.25 * hard,
        "cross_entropy": hard,
        "teacher_cross_entropy": teacher_hard,
        "captured_mass": num_targets,
        "agreement": jnp.sum((mine.argmax(-1) == its.argmax(-1)) & mask),
        "kl_to_teacher": jnp.sum(jnp.sum(jnp.exp(its) * (its - mine), axis=-1) * mask),
        "bytes_per_target": jnp.sum(NUM_BYTES[rows.labels] * mask),
    }
    assert sums.keys() == expected.keys() and num_targets == mask.sum()
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name], value, rtol=2e-5, err_msg=name)
    np.testing.assert_allclose(total, expected["loss"] + 0.01 * squares, rtol=2e-5)


def test_a_student_that_is_its_teacher_has_no_divergence_and_no_gradient(params, rows):
    def total(student):
        found, _, sums = distilled()(student, params, rows)
        return found, sums

    gradients, sums = jax.jit(jax.grad(total, has_aux=True))(params)
    assert abs(sums["kl_to_teacher"]) < 1e-4 and sums["agreement"] == jnp.sum(rows.loss_mask)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients)) < 1e-4


@pytest.mark.parametrize(
    "estimator, num_samples, known", [("stratified", 8, True), ("top_k", 8, False), ("sampled", 96, True)]
)
def test_divergence_is_told_only_where_it_is_unbiased_or_exact(params, rows, estimator, num_samples, known):
    run = distilled(estimator, num_samples)
    assert ("kl_to_teacher" in jax.eval_shape(run, params, params, rows)[2]) == known
