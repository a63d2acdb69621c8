"""The loss against a teacher by hand, what it reports, and from where it takes its targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax.data import stream
from gemma3_jax.distill import settings
from gemma3_jax.losses import distillation, soft_targets
from gemma3_jax.model import execution
from tests.losses.reference import MODEL, NUM_BYTES, by_optax, logits


def exact(frozen, rows):
    """The teacher's whole distribution, as one weight for each id."""
    log_probs = jax.nn.log_softmax(logits(frozen["teacher"], rows))
    probs = jnp.exp(log_probs)
    ids = jnp.broadcast_to(jnp.arange(MODEL.vocab_size), probs.shape)
    label_nats = jnp.take_along_axis(log_probs, rows.labels[..., None], axis=-1)[..., 0]
    entropy = -jnp.sum(probs * log_probs, axis=-1)
    return soft_targets.SparseTargets(
        ids, probs, jnp.sum(probs, axis=-1), entropy, label_nats, jnp.argmax(probs, axis=-1)
    )


def made(estimator="top_k", num_samples=96, targets_of=exact, **options):
    samples = settings.Samples(estimator=estimator, num_samples=num_samples)
    return distillation.make(
        MODEL,
        execution.REFERENCE,
        num_bytes=NUM_BYTES,
        temperature=samples.temperature,
        knows_kl=samples.knows_kl(MODEL.vocab_size),
        targets_of=targets_of,
        **options,
    )


def test_it_reports_teacher_and_student(params, teacher, rows):
    run = jax.jit(made(hard_label_weight=0.25, z_loss=0.01))
    total, num_targets, sums = run(params, {"teacher": teacher}, rows)
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
    def loss(student):
        total, _, sums = made()(student, {"teacher": params}, rows)
        return total, sums

    gradients, sums = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert abs(sums["kl_to_teacher"]) < 1e-4 and sums["agreement"] == jnp.sum(rows.loss_mask)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients)) < 1e-4


@pytest.mark.parametrize(
    "estimator, num_samples, known", [("stratified", 8, True), ("top_k", 8, False), ("sampled", 96, True)]
)
def test_divergence_is_reported_only_where_it_is_unbiased_or_exact(params, rows, estimator, num_samples, known):
    run = made(estimator, num_samples)
    assert ("kl_to_teacher" in jax.eval_shape(run, params, {"teacher": params}, rows)[2]) == known


def test_stored_targets_come_with_the_batch(params, teacher, rows):
    frozen = {"teacher": teacher}
    batch = stream.DistillBatch(rows, exact(frozen, rows))
    stored = jax.jit(made(targets_of=distillation.stored_targets))(params, {}, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), stored, jax.jit(made())(params, frozen, rows)
    )
