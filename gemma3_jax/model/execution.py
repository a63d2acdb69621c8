"""How to compute, never what: the choices that change speed and memory, not the model."""

import dataclasses

import ml_dtypes
import numpy as np

# Activation dtype by policy name. Parameters keep their own dtype; norms, RoPE, softmax and logits are float32 always.
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}

# What a layer's backward pass finds ready instead of computing again. "none" computes nothing again; the others name
# what is kept in local layers, and in global ones: (2N + 2K) * H numbers a token and layer at most, a small part of the
# 2F and more of the MLP, which is computed again. "keep_global" keeps what costs most to make in a long row and little
# to hold. On the splash path "attended" is N float32 logarithms of sums, too, without which its kernel would run again.
REMAT_POLICIES = {
    "none": None,
    "full": ((), ()),
    "keep_global": ((), ("attended",)),
    "keep_attention": (("query", "key", "value", "attended"),) * 2,
}

ATTENTION_PATHS = ("auto", "dense", "banded", "splash")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """Names of the dtype policy, the remat policy and the attention path."""

    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        for name, allowed in (("dtype", DTYPES), ("remat", REMAT_POLICIES), ("attention", ATTENTION_PATHS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")


REFERENCE = Execution()  # float32, nothing computed twice: what every other choice is held against
