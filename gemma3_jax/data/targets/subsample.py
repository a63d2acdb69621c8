"""Few samples out of many: what the estimator would have drawn, had it been asked for so many."""

import numpy as np

from gemma3_jax.distill import settings


def check(stored: settings.Samples, num_wanted: int, vocab_size: int) -> None:
    """Raises: ValueError if so many samples, as many as ids at most, cannot be had from those that are stored."""
    has, wanted, name = stored.num_samples, num_wanted, stored.estimator
    if wanted == has or (wanted < has and name == "top_k"):
        return
    if wanted > has:
        why = "no more can be had than were stored"
    elif has == vocab_size:
        why = "they are whole distributions, of which nothing was sampled, and only top_k is a part of that"
    elif name in ("sampled", "sampled_counts"):
        return
    elif name == "systematic":
        if has % wanted == 0:
            return
        why = f"of systematic ones every n-th can be taken, so it must divide {has}"
    else:
        why = f"fewer of {name} weigh otherwise, and what that takes is not stored"
    raise ValueError(
        f"num_samples is {wanted}, and {has} are stored: {why}; set num_samples to {has}, or teach with {wanted}"
    )


def cut(learned: dict[str, np.ndarray], estimator: str, num_wanted: int, number: int) -> dict[str, np.ndarray]:
    """The targets of the learned tokens of row `number` with so many samples, as `check` allows.

    "top_k" and "sampled" keep their first slots and share the weight out anew. Of "sampled_counts" any slots are as
    good as others, and of "systematic" every n-th from a random one on is what a coarser grid finds; which ones depends
    on the number of the row alone. Of these two the mass of the ids that are left is not known: `captured_mass` is NaN.
    """
    ids, weights = learned["ids"], learned["weights"]
    num_tokens, num_slots = ids.shape
    if num_wanted >= num_slots:
        return learned
    if estimator in ("top_k", "sampled"):
        left = weights[:, :num_wanted]
        total = left.sum(axis=1)
        captured_mass = learned["captured_mass"] * total / weights.sum(axis=1)
        return {**learned, "ids": ids[:, :num_wanted], "weights": left / total[:, None], "captured_mass": captured_mass}
    random = np.random.default_rng(number)
    if estimator == "systematic":
        stride = num_slots // num_wanted
        first = random.integers(stride, size=(num_tokens, 1))
        ids = np.take_along_axis(ids, first + stride * np.arange(num_wanted), axis=1)
    else:
        ids = random.permuted(ids, axis=1)[:, :num_wanted]
    return {
        **learned,
        "ids": ids,
        "weights": np.full(ids.shape, 1 / num_wanted, np.float32),
        "captured_mass": np.full(num_tokens, np.nan, np.float32),
    }
