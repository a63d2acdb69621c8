"""The place of an instruction in a training step: a part of the model, and a phase.

Layers are recognized by the scopes that model/transformer.py opens, everything else by the file it was traced in. XLA
leaves both out where it makes an instruction of its own, such as a copy: that one has the place of most of the
instructions that it fuses, else of most of the same computation, as that is the body of a loop over one place.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from gemma3_jax.planning import call_stacks, hlo

EMBEDDING, LOSS, OPTIMIZER, REST = "embedding", "loss", "optimizer", "rest"
TEACHER, SOFT_TARGETS, QUANTIZATION = "teacher", "soft targets", "quantization"
LAYERS = {"local_layer": "local layers", "global_layer": "global layers"}  # by scope
ATTENTION_KERNELS = "attention kernels"
PARTS = (EMBEDDING, *LAYERS.values(), ATTENTION_KERNELS, LOSS, TEACHER, SOFT_TARGETS, QUANTIZATION, OPTIMIZER, REST)

FORWARD, RECOMPUTED, BACKWARD = "forward", "recomputed", "backward"
PHASES = (FORWARD, RECOMPUTED, BACKWARD, "")


class StepPlace(NamedTuple):
    part: str  # one of PARTS
    phase: str  # one of PHASES; recomputed: of the forward pass, once more; empty: what is not differentiated

    def __str__(self) -> str:
        return f"{self.part}, {self.phase}" if self.phase else self.part


REST_OF_STEP = StepPlace(REST, "")

_LAYER = re.compile(rf"\b({'|'.join(LAYERS)})\b")
# The innermost call that matches decides: the step calls the loss, which calls the model, which calls the embedding.
# By file:function.
CALLS = (
    (re.compile(r"gemma3_jax/model/sharded_embedding\.py|.*:Embedder\.encode"), EMBEDDING),
    (re.compile(r"gemma3_jax/model/transformer\.py"), ""),  # the loops over layers: the place of most of the loop
    (re.compile(r"gemma3_jax/distill/"), SOFT_TARGETS),
    (re.compile(r"gemma3_jax/losses/"), LOSS),
    (re.compile(r"gemma3_jax/quant/"), QUANTIZATION),
    (re.compile(r"gemma3_jax/train/|optax/"), OPTIMIZER),
)


def of(instruction: hlo.Instruction, stacks: call_stacks.CallStacks) -> StepPlace | None:
    """Returns the place of an instruction by its own metadata; None if it has none that tells."""
    scopes = hlo.source(instruction)
    part = _part(scopes, call_stacks.of(instruction, stacks))
    return StepPlace(part, _phase(scopes, part)) if part else None


def _part(scopes: str, stack: Iterable[call_stacks.Frame]) -> str | None:
    calls = (f"{frame.file}:{frame.function}" for frame in stack)
    traced = next((part for call in calls for pattern, part in CALLS if pattern.match(call)), None)
    if re.search(r"\bteacher\b", scopes):
        return SOFT_TARGETS if traced in (SOFT_TARGETS, LOSS) else TEACHER
    layer = _LAYER.findall(scopes)
    return LAYERS[layer[-1]] if layer else traced or None


def _phase(scopes: str, part: str) -> str:
    if part in (TEACHER, SOFT_TARGETS, OPTIMIZER):
        return ""
    if "rematted_computation" in scopes:
        return RECOMPUTED
    return BACKWARD if "transpose(" in scopes else FORWARD if "jvp(" in scopes else ""


def most_common(places: Iterable[StepPlace | None]) -> StepPlace | None:
    """Returns the place of most instructions; None if no place is known."""
    known = Counter(place for place in places if place)
    return known.most_common(1)[0][0] if known else None
