"""The schedule by hand, AdamW against its formula, and which parameters decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gemma3_jax.model import parameters
from gemma3_jax.train import optimizer, settings
from tests import toys


def rates(num_steps, **fields):
    numbers = optimizer.hyperparameters(settings.AdamW(peak_lr=1.0, **fields), num_steps)
    return [float(optimizer.learning_rate(numbers, step)) for step in range(num_steps + 1)]


def test_warm_up_reaches_the_peak_with_its_last_step():
    assert rates(num_steps=8, warmup_steps=4, decay="linear", final_lr_fraction=0.0)[:6] == pytest.approx(
        [0.25, 0.5, 0.75, 1.0, 1.0, 0.75]
    )


def test_cosine_ends_at_its_final_fraction():
    by_step = rates(num_steps=10, warmup_steps=0, final_lr_fraction=0.1)
    assert by_step == pytest.approx([0.1 + 0.9 * (1 + np.cos(np.pi * step / 10)) / 2 for step in range(11)])


def test_constant_falls_in_its_last_steps():
    by_step = rates(num_steps=10, warmup_steps=2, decay="constant", decay_steps=4, final_lr_fraction=0.2)
    assert by_step == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert rates(num_steps=4, decay="constant", final_lr_fraction=1.0) == [1.0] * 5


def test_an_update_is_adamw_after_a_clip():
    adamw = settings.AdamW(peak_lr=0.1, decay="constant", final_lr_fraction=1.0, clip_norm=1.0, weight_decay=0.5)
    params = {"mlp": {"up": jnp.array([1.0, -2.0])}, "final_norm/": {"scale": jnp.array([3.0])}}
    gradients = {"mlp": {"up": jnp.array([3.0, 0.0])}, "final_norm/": {"scale": jnp.array([4.0])}}
    made = optimizer.make(adamw, 10).transform
    updates, _ = made.update(gradients, made.init(params), params)
    # The norm is 5, so gradients are [0.6, 0] and [0.8]; Adam's first step is their sign; decay is of the matrix alone.
    assert updates["mlp"]["up"] == pytest.approx([-0.1 * (1 + 0.5 * 1.0), -0.1 * 0.5 * -2.0], rel=1e-5)
    assert updates["final_norm/"]["scale"] == pytest.approx([-0.1], rel=1e-5)


def test_norms_and_the_embedding_do_not_decay():
    params = parameters.shapes(toys.TOY)
    marks = jax.tree_util.tree_leaves_with_path(optimizer.decayed(params, ("norm/", "embedder/")))
    for path, is_decayed in marks:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert is_decayed == ("scale" not in name and "table" not in name), name
    assert sum(is_decayed for _, is_decayed in marks) == 21  # 7 matrices in each of three stacks


def test_the_first_moment_may_be_bfloat16_and_the_second_never():
    adamw = settings.AdamW(peak_lr=0.1, first_moment_dtype="bfloat16")
    state = optimizer.make(adamw, 10).transform.init({"w": jnp.ones(3)})
    [adam] = [part for part in state if isinstance(part, optax.ScaleByAdamState)]
    assert adam.mu["w"].dtype == jnp.bfloat16 and adam.nu["w"].dtype == jnp.float32


def test_a_warm_up_longer_than_the_stage_is_refused():
    expected = "warmup_steps is 11 and decay_steps 0; their sum must be at most num_steps, 10"
    with pytest.raises(ValueError, match=expected):
        optimizer.make(settings.AdamW(warmup_steps=11), 10)
