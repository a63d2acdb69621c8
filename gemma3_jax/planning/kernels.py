"""FLOPs of Pallas kernels, by formula: HLO does not show what is inside a kernel."""

import math
import re
from typing import NamedTuple

from gemma3_jax.model import load_balance
from gemma3_jax.planning import costs, hlo

TARGET = "tpu_custom_call"  # of a Pallas kernel; other custom calls move data or wait

# Matrix products for each pair of a query block and a key block. Forward: scores, and their product with the values.
# Backward: the scores again, and the products for the gradients of keys and values (dkv) or of queries (dq).
_NUM_PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}
DRAWING = "teacher_summary", "teacher_weights"  # distill/page_kernels.py: elementwise, no products
LISTS = "teacher_list"  # distill/list_kernel.py: products with ones and zeros pick what is of a slot
_NUM_PICKED, _NUM_LINES = 4, 16  # numbers of each column that are picked for its exact id; lines of a page
FEW_IDS = "weights_of_few_ids"  # losses/sparse_kernel.py: two factors of the weights of all ids are multiplied
_NUM_WEIGHT_PARTS = 2
_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dkv|dq)(_segmented)?_")


def is_global(call: costs.CustomCall) -> bool:
    """Whether the kernel is the attention of a global layer: only that one takes segments."""
    match = _SPLASH.search(call.name)
    return bool(match and match[2])


def kind(call: costs.CustomCall) -> str | None:
    """Returns fwd, dkv or dq for a kernel of splash attention; None for another."""
    match = _SPLASH.search(call.name)
    return match[1] if match else None


def drawing(call: costs.CustomCall) -> str | None:
    """Returns which of DRAWING a kernel is; None for another."""
    return next((name for name in DRAWING if name in call.name), None)


class Scores(NamedTuple):
    """Scores of queries and keys that a call computes on one device."""

    mean: float  # over the shards of a sequence
    most: float  # on the busiest of them


def num_scores(call: costs.CustomCall) -> Scores | None:
    """Counts the scores of a call; None for an unknown kernel.

    Splash attention multiplies whole blocks. In a local layer a query block meets the key blocks that model/splash.py
    lists. In a global (segmented) layer it meets those up to its own, exactly so for a sequence of one document: the
    last of its shards the most, unless the queries are balanced.
    """
    if not kind(call):
        return None
    listed = call.operands[0].dims  # [..., query blocks, visits]; of dkv [..., visits, key blocks]
    query, key = [shape.dims for shape in _queries_and_keys(call)]
    block = key[-2] // listed[-1] if kind(call) == "dkv" else query[-2] // listed[-2]
    num_queries, num_keys = query[-2] // block, key[-2] // block
    mean = most = listed[-1] * listed[-2]
    if is_global(call):
        mean = most = num_queries * (num_keys + 1) / 2
        if load_balance.SCOPE not in call.scopes:
            most = num_queries * (num_keys - (num_queries - 1) / 2)
    scores = math.prod(query[:-2]) * float(block**2)
    return Scores(scores * mean, scores * most)


def _queries_and_keys(call: costs.CustomCall) -> list[hlo.Shape]:
    return [shape for shape in call.operands if len(shape.dims) >= 3 and shape.dtype in ("bf16", "f32")][:2]


def flops(call: costs.CustomCall, *, busiest: bool = False) -> float | None:
    """FLOPs of a call, 2 for each multiply-add; None for an unknown kernel.

    Of a device on average over the shards of a sequence, or of the busiest one.
    """
    if drawing(call):
        return 0.0
    if LISTS in call.name:
        drawn, exact = num_slots(call)
        by_column = _NUM_PICKED * exact + exact + drawn
        return 2.0 * max(shape.num_elements for shape in call.operands) * (drawn + by_column / _NUM_LINES)
    if FEW_IDS in call.name:
        logits, ids = (shape.dims for shape in call.operands[:2])
        return 2.0 * _NUM_WEIGHT_PARTS * math.prod(logits) * ids[-1]
    if (scores := num_scores(call)) is None:
        return None
    return flops_of_scores(kind(call), scores.most if busiest else scores.mean, _queries_and_keys(call)[0].dims[-1])


def num_slots(call: costs.CustomCall) -> tuple[int, int]:
    """Slots of a token in the lists of LISTS: of draws, and of ids with their probability; each in whole lane tiles."""
    *exact, drawn = [shape.dims[-1] for shape in call.results if shape.dtype == "s32"]
    return drawn, sum(exact)


def flops_of_scores(of_kind: str, scores: float, head_dim: int) -> float:
    """FLOPs of a kernel of splash attention that computes so many scores."""
    return 2.0 * _NUM_PRODUCTS[of_kind] * scores * head_dim
