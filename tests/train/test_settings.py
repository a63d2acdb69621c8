"""Values that the settings refuse, with the error of each."""

import pytest

from gemma3_jax.train import settings


@pytest.mark.parametrize(
    ("made", "fields", "problem"),
    [
        (settings.AdamW, {"decay": "cubic"}, "decay is 'cubic'; it must be one of cosine, linear, constant"),
        (
            settings.AdamW,
            {"first_moment_dtype": "int8"},
            "first_moment_dtype is 'int8'; it must be one of float32, bfloat16",
        ),
        (settings.AdamW, {"peak_lr": 0.0}, "peak_lr is 0.0; it must be over 0"),
        (settings.AdamW, {"clip_norm": float("nan")}, "clip_norm is nan; it must be over 0"),
        (settings.AdamW, {"beta2": 1.0}, "beta2 is 1.0; it must be at least 0 and under 1"),
        (settings.AdamW, {"warmup_steps": -1}, "warmup_steps is -1; it must be at least 0"),
        (settings.AdamW, {"no_decay": ("a", "(")}, r"no_decay has '\(', which is not a regular expression: missing \)"),
        (settings.AdamW, {"no_decay": ("*",)}, r"no_decay has '\*', which is not a regular expression"),
        (settings.AdamW, {"decay_steps": 3}, "decay_steps is 3, but decay is 'cosine'; it must be 'constant'"),
        (settings.SpikeGuard, {"memory": 1.0}, "memory 1.0, .*; they must be over 0, between 0 and 1, and at least 0"),
        (settings.SpikeGuard, {"max_skipped_in_a_row": 0}, "max_skipped_in_a_row is 0; it must be at least 1"),
        (settings.Checkpoints, {"keep_last": 0}, "keep_last is 0; it must be at least 1"),
        (settings.Checkpoints, {"every_minutes": -1.0}, "every_minutes is -1.0; it must be at least 0"),
        (settings.Checkpoints, {"max_failures": 0}, "max_failures is 0; it must be at least 1"),
        (settings.Deadlines, {"step": -1.0}, "step is -1.0 seconds; it must be at least 0"),
        (settings.Log, {"every_steps": 0}, "every_steps is 0; it must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(made, fields, problem):
    with pytest.raises(ValueError, match=problem):
        made(**fields)
