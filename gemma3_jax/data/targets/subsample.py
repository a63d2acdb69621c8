"""Fewer samples out of many: what the estimator would have drawn for a smaller `num_samples`."""

import numpy as np

from gemma3_jax.distill import settings


def check(stored: settings.Samples, num_samples: int, vocab_size: int) -> None:
    """Raises: ValueError if `num_samples` samples of a token cannot be taken from those that are stored."""
    num_stored, name = stored.num_samples, stored.estimator
    if num_samples == num_stored or (num_samples < num_stored and name == "top_k"):
        return
    if num_samples > num_stored:
        why = "no more can be had than were stored"
    elif num_stored == vocab_size:
        why = "they are whole distributions, of which nothing was sampled, and only top_k is a part of that"
    elif name in ("sampled", "sampled_counts"):
        return
    elif name == "systematic":
        if num_stored % num_samples == 0:
            return
        why = f"of systematic samples every n-th can be taken, so it must divide {num_stored}"
    else:
        why = f"fewer samples of {name} have other weights, and what those depend on is not stored"
    raise ValueError(
        f"num_samples is {num_samples}, and {num_stored} are stored: {why}; set num_samples to {num_stored}, or teach "
        f"with {num_samples}"
    )


def take(targets: dict[str, np.ndarray], estimator: str, num_samples: int, row_id: int) -> dict[str, np.ndarray]:
    """Returns targets of the tokens of a row with `num_samples` samples each, where `check` allows it.

    "top_k" and "sampled" keep their first slots and renormalize the weights. Of "sampled_counts" any slots are as good
    as others, and of "systematic" every n-th from a random one on is what a coarser grid draws; which ones depends on
    the row id alone. For these two the mass of the ids that are left is unknown: `captured_mass` is NaN.
    """
    ids, weights = targets["ids"], targets["weights"]
    num_tokens, num_slots = ids.shape
    if num_samples >= num_slots:
        return targets
    if estimator in ("top_k", "sampled"):
        left = weights[:, :num_samples]
        total = left.sum(axis=1)
        captured_mass = targets["captured_mass"] * total / weights.sum(axis=1)
        return {
            **targets,
            "ids": ids[:, :num_samples],
            "weights": left / total[:, None],
            "captured_mass": captured_mass,
        }
    random = np.random.default_rng(row_id)
    if estimator == "systematic":
        stride = num_slots // num_samples
        first = random.integers(stride, size=(num_tokens, 1))
        ids = np.take_along_axis(ids, first + stride * np.arange(num_samples), axis=1)
    else:
        ids = random.permuted(ids, axis=1)[:, :num_samples]
    return {
        **targets,
        "ids": ids,
        "weights": np.full(ids.shape, 1 / num_samples, np.float32),
        "captured_mass": np.full(num_tokens, np.nan, np.float32),
    }
