"""A toy model, its logits, and its loss by optax: what the losses must equal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gemma3_jax.model import masks, parameters
from tests import toys

MODEL = dataclasses.replace(toys.TOY, num_layers=1)
NUM_BYTES = np.arange(MODEL.vocab_size, dtype=np.int32) % 7


def logits(params, rows):
    model = parameters.bind(MODEL, params)
    return model.logits(model(rows.tokens, masks.TokenLayout(rows.segments, rows.positions)))


def by_optax(params, rows):
    """Sums over the targets: cross-entropy, and squared log of the softmax's denominator."""
    scores = logits(params, rows)
    nats = optax.softmax_cross_entropy_with_integer_labels(scores, rows.labels)
    return jnp.sum(nats * rows.loss_mask), jnp.sum(jax.nn.logsumexp(scores, axis=-1) ** 2 * rows.loss_mask)
