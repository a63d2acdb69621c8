"""A step: gradient accumulation equals the big batch, and a skipped step changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gemma3_jax import sharding
from gemma3_jax.model import masks, parameters
from gemma3_jax.train import optimizer, settings, step
from tests import toys

NUM_ROWS, NUM_TOKENS = 8, 12
MODEL = dataclasses.replace(toys.TOY, num_layers=2, num_local_per_global=1)


@pytest.fixture(scope="module")
def rows():
    """Rows whose numbers of targets differ widely: 1 in one row, 11 in another."""
    draw = np.random.default_rng(0)
    mask = np.arange(NUM_TOKENS)[None] < draw.integers(1, NUM_TOKENS, NUM_ROWS)[:, None]
    mask[0], mask[1] = np.arange(NUM_TOKENS) < 1, np.arange(NUM_TOKENS) < 11
    ids = draw.integers(0, MODEL.vocab_size, (2, NUM_ROWS, NUM_TOKENS)).astype(np.int32)
    return {"tokens": jnp.asarray(ids[0]), "targets": jnp.asarray(ids[1]), "mask": jnp.asarray(mask)}


def gemma_loss(params, rows):
    model = parameters.bind(MODEL, params)
    scores = model.logits(model(rows["tokens"], masks.whole_rows(rows["tokens"])))
    nats = optax.softmax_cross_entropy_with_integer_labels(scores, rows["targets"])
    right = scores.argmax(-1) == rows["targets"]
    mask = rows["mask"]
    return jnp.sum(nats * mask), jnp.sum(mask), {"accuracy": jnp.sum(right * mask).astype(jnp.float32)}


@pytest.fixture(scope="module")
def params():
    return toys.params(MODEL)


@pytest.mark.parametrize("grad_accum_steps", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_accumulated_gradients_are_those_of_the_big_batch_however_targets_are_spread(rows, params, grad_accum_steps):
    whole = jax.jit(lambda p, r: step.accumulate(gemma_loss, p, r, 1))(params, rows)
    parts = jax.jit(lambda p, r: step.accumulate(gemma_loss, p, r, grad_accum_steps))(params, rows)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)  # other sums of float32, of size 10
    assert int(whole[1]) == int(rows["mask"].sum())


def compiled(loss, optimize, *, donate=False, **options):
    """The jitted step(state, batch), with the optimizer's own hyperparameters."""
    jitted = jax.jit(step.make(loss, optimize, **options), donate_argnums=0 if donate else ())
    return lambda state, batch: jitted(state, batch, optimize.hyperparameters)


def test_the_mean_is_over_targets_not_over_rows(rows, params):
    """The mean of the parts' means would be another number: the test fails for it."""
    loss = jax.jit(gemma_loss)
    total, count, _ = loss(params, rows)
    halves = [jax.tree.map(lambda x, part=part: step.split(x, 2)[part], rows) for part in range(2)]
    means = [float(summed / number) for summed, number, _ in (loss(params, half) for half in halves)]
    made = compiled(gemma_loss, sgd(0.1), grad_accum_steps=2)
    _, reported = made(step.init(params, sgd(0.1)), rows)
    assert float(reported["loss"]) == pytest.approx(float(total / count), rel=1e-5)
    assert abs(np.mean(means) - float(total / count)) > 1e-3


def test_accumulation_leaves_rows_on_their_devices(rows):
    mesh = sharding.make_mesh(data=4)
    placed = jax.device_put(rows["tokens"], sharding.batch_sharding(mesh))
    compiled = jax.jit(lambda x: step.split(x, 2).sum(2)).lower(placed).compile()
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-to-all", "collective-permute"))
    np.testing.assert_array_equal(step.split(rows["tokens"], 2)[1], rows["tokens"][1::2])


def test_a_batch_that_does_not_split_into_parts_is_refused(rows):
    with pytest.raises(
        ValueError,
        match="a batch of 8 sequences does not split into grad_accum_steps = 3 parts; make the first a multiple",
    ):
        step.split(rows["tokens"], 3)


# --- a loss by hand: 0.5 * (w - row)^2, gradient w - row ---


def square_loss(params, rows):
    return 0.5 * jnp.sum(jnp.square(params["w"][None] - rows)), jnp.asarray(rows.size), {}


def sgd(rate):
    return optimizer.Optimizer(np.float32(rate), optax.sgd, lambda rate, update: rate)


def take(made, state, *values):
    reported = []
    for value in values:
        state, seen = made(state, jnp.full((2, 1), value))
        reported.append(seen)
    return state, reported


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.fixture(scope="module")
def adam():
    return optimizer.make(settings.AdamW(peak_lr=0.01, decay="constant", final_lr_fraction=1.0), 1_000)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counts(adam, bad):
    made = compiled(square_loss, adam)
    state, _ = take(made, step.init({"w": jnp.ones(1)}, adam, ema=True), 2.0, 3.0)
    after, [reported] = take(made, state, bad)
    assert bool(reported["skipped"]) and int(reported["num_skipped_in_a_row"]) == 1
    assert same((after.params, after.opt_state, after.ema_params), (state.params, state.opt_state, state.ema_params))
    assert same((after.loss_stats.mean, after.loss_stats.variance), (state.loss_stats.mean, state.loss_stats.variance))
    assert int(after.step) == int(state.step) + 1 and int(after.loss_stats.num_skipped) == 1


@pytest.mark.parametrize("rate", [3e38, float("nan")])
def test_an_update_that_is_not_finite_is_skipped_though_the_gradient_is(rate):
    made = compiled(square_loss, sgd(rate))
    state = step.init({"w": jnp.ones(1)}, sgd(rate), ema=True)
    after, [reported] = take(made, state, 100.0)
    assert np.isfinite([reported["loss"], reported["gradient_norm"]]).all() and bool(reported["skipped"])
    assert same((after.params, after.ema_params), (state.params, state.ema_params))


def test_a_run_with_a_bad_step_goes_on_as_if_it_had_not_been(adam):
    made = compiled(square_loss, adam)
    start = step.init({"w": jnp.ones(1)}, adam)
    clean, _ = take(made, start, 2.0, 3.0, 4.0)
    dirty, _ = take(made, start, 2.0, float("nan"), 3.0, float("nan"), 4.0)
    assert same((clean.params, clean.opt_state), (dirty.params, dirty.opt_state))
    assert int(dirty.loss_stats.num_skipped) == 2 and int(dirty.loss_stats.num_skipped_in_a_row) == 0


def test_a_spike_is_skipped_once_the_watch_knows_what_is_normal(adam):
    spike_guard = settings.SpikeGuard(num_deviations=4.0, num_steps_before=20)
    made = compiled(square_loss, adam, spike_guard=spike_guard)
    draw = np.random.default_rng(0)
    early, [reported] = take(made, step.init({"w": jnp.zeros(1)}, adam), 1_000.0)
    assert not bool(reported["skipped"])  # nothing to tell it by yet
    state, seen = take(made, step.init({"w": jnp.zeros(1)}, adam), *(5 + draw.normal(size=40)))
    assert not any(bool(reported["skipped"]) for reported in seen)
    after, [reported] = take(made, state, 1_000.0)
    assert bool(reported["skipped"]) and same(after.params, state.params)
    unwatched = compiled(square_loss, adam, spike_guard=dataclasses.replace(spike_guard, num_deviations=float("inf")))
    _, [reported] = take(unwatched, state, 1_000.0)
    assert not bool(reported["skipped"])


def test_what_is_normal_is_the_mean_and_variance_of_what_was_seen(adam):
    made = compiled(square_loss, sgd(0.0), spike_guard=settings.SpikeGuard(memory=1 - 1e-9))
    values = np.random.default_rng(0).normal(5, 1, 30)
    state, _ = take(made, step.init({"w": jnp.zeros(1)}, sgd(0.0)), *values)
    losses = 0.5 * values**2
    assert state.loss_stats.mean == pytest.approx([losses.mean(), np.abs(values).mean()], rel=1e-4)
    assert state.loss_stats.variance == pytest.approx([losses.var(), np.abs(values).var()], rel=1e-3)


def test_the_average_follows_the_parameters(adam):
    made = compiled(square_loss, sgd(0.5), ema_decay=0.75)
    state, _ = take(made, step.init({"w": jnp.zeros(1)}, sgd(0.5), ema=True), 4.0, 4.0)
    # w: 0, 2, 3; average: 0, 0.5, 0.75 * 0.5 + 0.25 * 3
    assert float(state.params["w"][0]) == 3.0 and float(state.ema_params["w"][0]) == pytest.approx(1.125)


def test_what_is_reported_is_of_this_step(adam):
    made = compiled(square_loss, sgd(0.5))
    _, [reported] = take(made, step.init({"w": jnp.zeros(1)}, sgd(0.5)), 4.0)
    expected = {"loss": 8.0, "num_targets": 2, "gradient_norm": 4.0, "update_norm": 2.0, "parameter_norm": 2.0}
    expected["learning_rate"] = 0.5
    assert {name: float(reported[name]) for name in expected} == pytest.approx(expected)


def test_a_donated_state_with_an_average_is_not_given_away_twice(adam):
    made = compiled(square_loss, adam, donate=True)
    state = step.init({"w": jnp.ones(1)}, adam, ema=True)
    state, _ = made(state, jnp.ones((2, 1)))
    made(state, jnp.ones((2, 1)))
