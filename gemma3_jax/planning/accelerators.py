"""TPU slices by the accelerator types of Cloud TPU and GKE, and the slices that each published job runs on.

Imports nothing outside the standard library, as the launchers run this on machines without JAX (launch/check.py).
"""

import math
import re
from typing import NamedTuple

from gemma3_jax.planning import topologies


class Offer(NamedTuple):
    """How Cloud TPU offers one generation of chips."""

    prefix: str  # of its accelerator types
    cores_per_chip: int  # 2 where the number in an accelerator type counts TensorCores, 1 where it counts chips
    shapes: tuple[str, ...]  # of slices, smallest first: the documented shape of each number of chips
    runtime_version: str  # the machine image that TPU VMs start from; empty where GKE alone has them
    zones: tuple[str, ...]  # that had such TPUs for everybody; a hint for errors, as the cloud knows what it has


_UP_TO_2048_CHIPS = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16".split()

# Largest slices: 2,048 chips of v4, 256 of v5e and v6e, 6,144 of v5p; of tpu7x 2,048 here, where a pod has 9,216.
# Source: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x,runtimes,regions-zones}; xpk 1.16 for types of tpu7x.
OFFERS = {
    "v4": Offer(
        prefix="v4",
        cores_per_chip=2,
        shapes=tuple(_UP_TO_2048_CHIPS),
        runtime_version="tpu-ubuntu2204-base",
        zones=("us-central2-b",),
    ),
    "v5e": Offer(
        prefix="v5litepod",
        cores_per_chip=1,
        shapes=tuple(topologies.shapes("v5e")),
        runtime_version="v2-alpha-tpuv5-lite",
        zones=("us-central1-a", "us-south1-a", "us-west1-c", "us-west4-a"),
    ),
    "v5p": Offer(
        prefix="v5p",
        cores_per_chip=2,
        shapes=(*_UP_TO_2048_CHIPS, "16x16x16", "16x16x24"),
        runtime_version="v2-alpha-tpuv5",
        zones=("us-central1-a", "us-east5-a"),
    ),
    "v6e": Offer(
        prefix="v6e",
        cores_per_chip=1,
        shapes=tuple(topologies.shapes("v6e")),
        runtime_version="v2-alpha-tpuv6e",
        zones=("us-central1-b", "us-east1-d", "us-east5-a", "us-east5-b"),
    ),
    "tpu7x": Offer(
        prefix="tpu7x",
        cores_per_chip=2,
        shapes=tuple(_UP_TO_2048_CHIPS),
        runtime_version="",
        zones=(),
    ),
}


def _num_chips(shape: str) -> int:
    return math.prod(map(int, shape.split("x")))


# The topology of each accelerator type: v5litepod-16 is v5e:4x4.
TOPOLOGIES = {
    f"{offer.prefix}-{_num_chips(shape) * offer.cores_per_chip}": f"{chip}:{shape}"
    for chip, offer in OFFERS.items()
    for shape in offer.shapes
}

# By size of model: the accelerator type and number of slices that fill the mesh of experiments/recipe.py (report,
# Table 2). Slices are connected along the mesh axis `replica` alone, so their number divides it. The 6,144 chips of v4
# for 12B are more than a pod has, and are three half pods here.
JOBS = {
    "270m": ("v5litepod-256", 1),
    "1b": ("v5litepod-256", 2),
    "4b": ("v5litepod-256", 8),
    "12b": ("v4-4096", 3),
    "27b": ("v5p-12288", 1),
}


def topology(accelerator_type: str, num_slices: int = 1) -> topologies.Topology:
    """Returns the topology of slices of this type. Raises: ValueError that names the nearest types."""
    if accelerator_type not in TOPOLOGIES:
        raise ValueError(
            f"there is no slice {accelerator_type} in gemma3_jax/planning/accelerators.py; "
            f"the nearest: {', '.join(nearest(accelerator_type))}"
        )
    return topologies.find(TOPOLOGIES[accelerator_type], num_slices)


def nearest(accelerator_type: str) -> list[str]:
    """Returns the types of the same generation next below and above in size, or of every generation one of 16 chips."""
    prefix, _, number = accelerator_type.partition("-")
    prefix = "v5litepod" if prefix in ("v5e", "v5lite") else prefix
    digits = re.match(r"\d+", number)
    size = int(digits[0]) if digits else 0
    types = [name for name in TOPOLOGIES if name.startswith(f"{prefix}-")]
    below = [name for name in types if int(name.split("-")[1]) <= size]
    above = [name for name in types if name not in below]
    return below[-1:] + above[:1] or [
        name for name, topology in TOPOLOGIES.items() if _num_chips(topology.split(":")[1]) == 16
    ]
