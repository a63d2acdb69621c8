"""Operations of the Pallas kernels that a program calls: XLA cannot look into them, so each has its formula."""

import math
import re

from gemma3_jax.planning import costs

TARGET = "tpu_custom_call"  # what XLA calls a Pallas kernel; other custom calls move data or wait

# Products of a block of queries with one of keys: scores and what they weigh; in the passes back the scores once more,
# and what makes the gradients of keys and values, or of queries.
_PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}
_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dkv|dq)(_segmented)?_")


def is_global(call: costs.CustomCall) -> bool:
    """Whether it is attention of a global layer: only there the kernel has segments."""
    found = _SPLASH.search(call.name)
    return bool(found and found[2])


def flops(call: costs.CustomCall) -> float | None:
    """Of one call on one device, two for each multiply-add; None for a kernel that is not known.

    Splash attention multiplies whole blocks. A local layer visits those that model/splash.py lists for it; a global
    one (segmented) those up to its own, in a row of one document, averaged over the devices that hold parts of it.
    """
    found = _SPLASH.search(call.name)
    if not found:
        return None
    kind = found[1]
    listed = call.operands[0].dims  # [..., blocks of queries, visits], and for keys the other way round
    query, key = [shape.dims for shape in call.operands if len(shape.dims) >= 3 and shape.dtype in ("bf16", "f32")][:2]
    block = key[-2] // listed[-1] if kind == "dkv" else query[-2] // listed[-2]
    num_queries, num_keys = query[-2] // block, key[-2] // block
    visits = num_queries * (num_keys + 1) / 2 if is_global(call) else listed[-1] * listed[-2]
    return 2.0 * _PRODUCTS[kind] * math.prod(query[:-2]) * visits * block**2 * query[-1]
