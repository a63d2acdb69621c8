"""Rows, and what a made-up teacher says of them."""

import numpy as np

from gemma3_jax.data.targets import codec
from gemma3_jax.distill import settings

V, T = 1 << 18, 40
TOP_8 = settings.Samples(estimator="top_k", num_samples=8)


def row_of(number: int) -> dict[str, np.ndarray]:
    """Two documents and padding; a third of the tokens is not to be learned."""
    random = np.random.default_rng(number)
    segments = np.repeat([1, 2, 0], [25, 10, 5]).astype(np.int32)
    positions = np.concatenate([np.arange(25), np.arange(10), np.zeros(5)]).astype(np.int32)
    mask = (segments > 0) & (random.random(T) < 0.66)
    tokens = random.integers(0, V, T).astype(np.int32) * (segments > 0)
    return {"tokens": tokens, "segments": segments, "positions": positions, "loss_mask": mask}


def targets_of(number: int, samples: settings.Samples, num_tokens: int = T) -> dict[str, np.ndarray]:
    """Of the form that each estimator gives: ids in no order but that of their weights, and repeated where they may."""
    random, count = np.random.default_rng([number, 1]), samples.num_samples
    weights = -np.sort(-random.dirichlet(np.full(count, 0.3), num_tokens), axis=1)
    ids = np.stack([random.choice(V, count, replace=False) for _ in range(num_tokens)])
    if samples.estimator in ("sampled", "gumbel_ht", "gumbel_ht_normalized"):
        weights = random.permuted(weights, axis=1)
    elif samples.estimator in codec.COUNTED:
        first = codec.num_weighted_slots(samples)
        weights[:, first:] = weights[:, first:].sum(axis=1, keepdims=True) / (count - first)
        ids[:, first:] = random.choice(V, 5, replace=False)[random.integers(0, 5, (num_tokens, count - first))]
    numbers = random.normal(size=(3, num_tokens)).astype(np.float32) * [[1], [1], [40]]
    return {
        "ids": ids.astype(np.int32),
        "weights": weights.astype(np.float32),
        **dict(zip(codec.NUMBERS, numbers.astype(np.float32), strict=True)),
        "best_id": ids[:, 0].astype(np.int32),
    }


def stored(number: int, samples: settings.Samples) -> bytes:
    return codec.encode(row_of(number), targets_of(number, samples), samples)
