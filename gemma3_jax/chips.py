"""Peak FLOPs, memory and links of each chip, for MFU and lower bounds; and what programs for it are compiled with."""

import os
import re
from typing import NamedTuple

GIB = 1 << 30


class Link(NamedTuple):
    """The links of a chip to others. Bandwidths are those of incoming bytes, a second.

    Devices that share a chip share its links: an array that both gather comes over them once, so each counts all of
    them, which is too much for what each fetches for itself, as halos. Between slices both fetch their own.
    """

    num_axes: int  # of the torus of a slice; a chip has two neighbors along each
    bytes_per_second: float  # from one neighbor
    between_slices: float  # of the network between slices: that of the host, divided by its devices


class Chip(NamedTuple):
    """A kind of chip. All figures are those of one JAX device: a chip, or where it is two devices, half of it."""

    name: str  # as in names of topologies and machines
    pattern: str  # regular expression that JAX's device_kind matches
    peak_flops: float  # in bfloat16, a second
    flops_per_cycle: int | None  # in bfloat16, of its matrix units; None: cycles are not counted for it
    hbm_bytes: int
    hbm_bytes_per_second: float
    link: Link | None = None
    num_devices: int = 1  # of JAX, that are one chip

    @property
    def clock_hz(self) -> float | None:
        """Cycles a second: the peak, divided by 2 x size^2 x number of matrix units. 1.5 GHz for v5e."""
        return self.peak_flops / self.flops_per_cycle if self.flops_per_cycle else None


# The first chip whose pattern matches is taken.
# Source: docs.cloud.google.com/tpu for peak, memory and links. A host has 25 GB/s of network and 4 chips (v5e: 8 chips;
# v6e: 8 chips and 100 GB/s). NVIDIA's data sheets of the SXM parts, without sparsity.
# FLOPs a cycle: 2 for each multiply-add of the matrix units. A v5e has 4 of 128 x 128; a v4 and a v5p have 8 in two
# cores, which are one device; a v6e has the equal of 4 of 256 x 256. The compiler's estimates of a product of
# [4096, 4096] matrices are 87 to 97 % of that on each (libtpu 0.0.42). A tpu7x has two TensorCores, each a device with
# units as those of a v6e, and 81 to 83 % (libtpu 0.0.42 and 0.0.50). Its page has v5p's figures of links within a
# slice, and 100 Gbit/s of network a chip, where v5p's has 50: half for each device.
CHIPS = (
    Chip("v4", "TPU v4", 275e12, 2 * 8 * 128**2, 32 * GIB, 1.2e12, Link(3, 45e9, 25e9 / 4)),
    Chip("v5e", "TPU v5 lite|TPU v5e", 197e12, 2 * 4 * 128**2, 16 * GIB, 819e9, Link(2, 45e9, 25e9 / 8)),
    Chip("v5p", "TPU v5", 459e12, 2 * 8 * 128**2, 95 * GIB, 2.765e12, Link(3, 90e9, 25e9 / 4)),
    Chip("v6e", "TPU v6", 918e12, 2 * 4 * 256**2, 32 * GIB, 1.638e12, Link(2, 90e9, 100e9 / 8)),
    Chip("tpu7x", "TPU7x", 2307e12 / 2, 2 * 4 * 256**2, 96 * GIB, 7.38e12 / 2, Link(3, 90e9, 100e9 / 8 / 2), 2),
    Chip("H100", "H100", 989e12, None, 80 * GIB, 3.35e12),
    Chip("H200", "H200", 989e12, None, 141 * GIB, 4.8e12),
)


def find(device_kind: str) -> Chip | None:
    """Returns the chip of a JAX device_kind; None if the table does not have it, as for a CPU."""
    return next((chip for chip in CHIPS if re.search(chip.pattern, device_kind)), None)


# Vector memory that one operation may use, in MiB, where the compiler's default of 16 is less than there is: 3/8 of a
# v5e's, half of a v5p's, for the fewest cycles by the compiler's estimate (docs/tpu_loss.md). v6e: MaxText,
# benchmarks/xla_flags_library.py (DENSE_VMEM_LIMIT_FLAG).
_SCOPED_VMEM_MIB = {"v5e": 48, "v5p": 32, "v6e": 96}
_SCOPED_VMEM = "xla_tpu_scoped_vmem_limit_kib"


def compiler_options(device_kind: str) -> dict[str, str]:
    """Options of XLA for programs that train or teach on this chip, but those that LIBTPU_INIT_ARGS sets."""
    chip = find(device_kind)
    limit = _SCOPED_VMEM_MIB.get(chip.name) if chip else None
    if limit is None or _SCOPED_VMEM in os.environ.get("LIBTPU_INIT_ARGS", ""):
        return {}
    return {_SCOPED_VMEM: str(limit << 10)}
