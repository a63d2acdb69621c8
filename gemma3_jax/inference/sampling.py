"""How the next id is drawn from logits.

The order is that of Transformers: temperature, then top-k, then top-p of what is left, renormalised, then min-p of what
is left of that. (Google's PyTorch code cuts the whole distribution by k and p at once; llama.cpp has temperature last.)
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from gemma3_jax.checkpoint import modelfile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Defaults are what Gemma 3 is published with."""

    temperature: float = modelfile.TEMPERATURE  # divides logits; 0: always the most probable id
    top_k: int = modelfile.TOP_K  # so many most probable ids; 0: all
    top_p: float = modelfile.TOP_P  # the fewest ids that have this share together; 1: all
    min_p: float = 0.0  # ids at least so probable as this share of the most probable one

    def __post_init__(self):
        for name, allowed, says in (
            ("temperature", 0 <= self.temperature < float("inf"), "a finite number, at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "over 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
        ):
            if not allowed:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {says} (--{name})")


GREEDY = Sampling(temperature=0.0)


def draw(keys: Key[Array, "B"], logits: Float[Array, "B V"], sampling: Sampling) -> Int[Array, "B"]:
    """An id for each row. A row's draw depends on its key and its logits alone."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits, ids = jax.lax.top_k(logits / sampling.temperature, min(sampling.top_k, logits.shape[1]) or logits.shape[1])
    logits = jnp.where(kept(logits, sampling), logits, -jnp.inf)
    drawn = jax.vmap(jax.random.categorical)(keys, logits)
    return jnp.take_along_axis(ids, drawn[:, None], axis=1)[:, 0]


def kept(logits: Float[Array, "B _"], sampling: Sampling) -> Bool[Array, "B _"]:
    """Which of some logits, the greatest first, are left by top-p and min-p. The first one always is."""
    probs = jax.nn.softmax(logits, axis=-1)
    left = jnp.cumsum(probs, axis=-1) - probs < sampling.top_p
    return left & (probs >= sampling.min_p * probs[:, :1])
