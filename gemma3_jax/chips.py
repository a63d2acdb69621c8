"""What a chip can do at most: the one table that shares of it are counted by."""

import re
from typing import NamedTuple

GIB = 1 << 30


class Link(NamedTuple):
    """How a chip is tied to others. Bytes a second are those that come in."""

    num_axes: int  # of the torus of a slice, with a neighbour on both sides
    bytes_per_second: float  # from one neighbour
    between_slices: float  # of the network between slices, a chip's share of its host's


class Chip(NamedTuple):
    """One kind of chip."""

    name: str  # as topologies and machines are named
    pattern: str  # of JAX's device_kind
    peak_flops: float  # bfloat16, a second
    hbm_bytes: int
    hbm_bytes_per_second: float
    link: Link | None = None


# The first pattern that matches counts.
# Source: docs.cloud.google.com/tpu (v4, v5e, v5p, v6e: peak, memory, links; hosts of 4 chips, of v5e and v6e 8, have 25
# GB/s and more of network, v6e 100); NVIDIA's data sheets of the SXM parts, without sparsity.
CHIPS = (
    Chip("v4", "TPU v4", 275e12, 32 * GIB, 1.2e12, Link(3, 45e9, 25e9 / 4)),
    Chip("v5e", "TPU v5 lite|TPU v5e", 197e12, 16 * GIB, 819e9, Link(2, 45e9, 25e9 / 8)),
    Chip("v5p", "TPU v5", 459e12, 95 * GIB, 2.765e12, Link(3, 90e9, 25e9 / 4)),
    Chip("v6e", "TPU v6", 918e12, 32 * GIB, 1.638e12, Link(2, 90e9, 100e9 / 8)),
    Chip("H100", "H100", 989e12, 80 * GIB, 3.35e12),
    Chip("H200", "H200", 989e12, 141 * GIB, 4.8e12),
)


def find(device_kind: str) -> Chip | None:
    """The chip that JAX calls so; None for a device that is not in the table (a CPU is not)."""
    return next((chip for chip in CHIPS if re.search(chip.pattern, device_kind)), None)
