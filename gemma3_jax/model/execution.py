"""How to compute, never what: choices that change speed and memory, not the model."""

import dataclasses

import ml_dtypes
import numpy as np

# Activation dtype by policy name. Parameters keep their own dtype; norms, RoPE, softmax and logits are always float32.
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}

# Rematerialization policies: the checkpoint names that a local and a global layer save for the backward pass, which
# recomputes the rest; "none" saves everything. All four names are at most (2N + 2K) * H numbers per token and layer, a
# small part of the 2F and more of the MLP, which is recomputed. "keep_global" saves what costs most to recompute in a
# long row and little to hold. On the splash path "attended" includes N float32 log-sum-exps, without which its kernel
# would run again.
REMAT_POLICIES = {
    "none": None,
    "full": ((), ()),
    "keep_global": ((), ("attended",)),
    "keep_attention": (("query", "key", "value", "attended"),) * 2,
}

ATTENTION_PATHS = ("auto", "dense", "banded", "splash")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """Names of the dtype policy, the rematerialization policy and the attention path."""

    dtype: str = "float32"  # of activations: float32 or bfloat16; parameters are float32
    remat: str = "none"  # what the backward pass computes again: none, full, keep_global, keep_attention
    attention: str = "auto"  # auto, dense, banded, or splash (a TPU kernel)

    def __post_init__(self):
        for name, allowed in (("dtype", DTYPES), ("remat", REMAT_POLICIES), ("attention", ATTENTION_PATHS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")


REFERENCE = Execution()  # float32 without rematerialization: what every other choice is compared with
