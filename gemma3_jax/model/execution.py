"""How to compute, never what: the choices that change speed and memory, not the model."""

import dataclasses

import jax
import jax.numpy as jnp

# Activation dtype by policy name. Parameters keep their own dtype; norms, RoPE, softmax and logits are float32 always.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# What the backward pass finds ready instead of computing again, by policy name; None keeps everything.
KEPT_NAMES = ("query", "key", "value", "attended")
REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    # (2N + 2K) * H numbers a token and layer: a small part of the 2F and more of the MLP, which is computed again.
    "keep_attention": jax.checkpoint_policies.save_only_these_names(*KEPT_NAMES),
}

ATTENTION_PATHS = ("auto", "dense", "banded")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """Names of the dtype policy, the remat policy and the attention path."""

    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        for name, allowed in (("dtype", DTYPES), ("remat", REMAT_POLICIES), ("attention", ATTENTION_PATHS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"execution.{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")


REFERENCE = Execution()  # float32, nothing computed twice: what every other choice is held against
