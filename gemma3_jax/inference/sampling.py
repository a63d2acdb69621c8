"""Drawing the next token from logits.

The filters apply in the order of Transformers: temperature, top-k, then top-p of the renormalized rest, then min-p.
(Google's PyTorch code applies top-k and top-p to the whole distribution; llama.cpp applies temperature last.)
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from gemma3_jax.checkpoint import modelfile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn. The defaults are those that Gemma 3 is published with."""

    temperature: float = modelfile.TEMPERATURE  # divides the logits; 0: greedy
    top_k: int = modelfile.TOP_K  # keeps the k most probable tokens; 0: all
    top_p: float = modelfile.TOP_P  # keeps the fewest tokens with this much probability together; 1: all
    min_p: float = 0.0  # keeps tokens at least this probable, relative to the most probable one

    def __post_init__(self):
        for name, is_valid, rule in (
            # Logits over or under it stay finite float32s.
            ("temperature", self.temperature == 0 or 1e-30 <= self.temperature <= 1e30, "0, or from 1e-30 to 1e30"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "over 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
        ):
            if not is_valid:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {rule} (--{name})")


GREEDY = Sampling(temperature=0.0)


def draw(keys: Key[Array, "B"], logits: Float[Array, "B V"], options: Sampling) -> Int[Array, "B"]:
    """Draws a token for each sequence, from its own key and logits alone."""
    if options.temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits, ids = jax.lax.top_k(logits / options.temperature, min(options.top_k, logits.shape[1]) or logits.shape[1])
    logits = jnp.where(passes_filters(logits, options), logits, -jnp.inf)
    drawn = jax.vmap(jax.random.categorical)(keys, logits)
    return jnp.take_along_axis(ids, drawn[:, None], axis=1)[:, 0]


def passes_filters(logits: Float[Array, "B _"], options: Sampling) -> Bool[Array, "B _"]:
    """True where a token passes top-p and min-p; `logits` are in descending order, and the first always passes."""
    probs = jax.nn.softmax(logits, axis=-1)
    in_top_p = jnp.cumsum(probs, axis=-1) - probs < options.top_p
    return in_top_p & (probs >= options.min_p * probs[:, :1])
