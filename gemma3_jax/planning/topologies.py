"""The TPU slices that Google Cloud offers, and their devices for compilation without a TPU."""

import difflib
import math
import re
from typing import NamedTuple

from gemma3_jax import chips

# Source: docs.cloud.google.com/tpu (v4, v5e, v5p, v6e, tpu7x).
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SHAPES = {"v5e": _FLAT, "v6e": _FLAT}
# In one job. The report trains 12B on 6,144 v4 chips, which is more than a pod.
_MOST_CHIPS = {"v4": 6_144, "v5p": 6_144, "tpu7x": 9_216}
_SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # larger ones: every AxBxC of multiples of 4 with A <= B <= C


class Topology(NamedTuple):
    """One or more slices of one shape."""

    name: str  # as "v5e:16x16"
    chip: chips.Chip
    shape: tuple[int, ...]  # of a slice, in chips
    num_slices: int

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape) * self.num_slices

    @property
    def num_devices(self) -> int:
        return self.num_chips * self.chip.num_devices

    def devices(self) -> list:
        """Returns the devices: a program can be compiled for them, and not run."""
        from jax.experimental import topologies

        options = {"num_slices": self.num_slices} if self.num_slices > 1 else {}
        if self.chip.name == "v4":
            options["chip_config_name"] = "megacore"  # a chip is one device; without it, two
        if math.prod(self.shape) == 1:
            options["chips_per_host_bounds"] = [1, 1, 1]  # a host has 2x2 by default
        description = topologies.get_topology_desc(platform="tpu", topology_name=self.name, **options)
        assert len(description.devices) == self.num_devices, (self.name, len(description.devices))
        return description.devices


def find(name: str, num_slices: int = 1) -> Topology:
    """Returns the topology of a name such as v5e:16x16 or v5p:4x4x8.

    Raises: ValueError that names the nearest topologies.
    """
    kinds = [chip for chip in chips.CHIPS if chip.link]
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    chip = match and next((chip for chip in kinds if chip.name == match[1]), None)
    if not chip:
        names = [f"{chip.name}:{nearest(chip.name, 16)[0]}" for chip in kinds]
        raise ValueError(f"--topology is {name}; it must be a chip and the shape of a slice: {', '.join(names)}, ...")
    shape = tuple(map(int, match[2].split("x")))
    if match[2] not in shapes(chip.name):
        close = difflib.get_close_matches(match[2], shapes(chip.name), n=1)
        close += [other for other in nearest(chip.name, math.prod(shape)) if other not in close]
        raise ValueError(f"--topology is {name}; {chip.name} has no slice {match[2]}; the nearest: {', '.join(close)}")
    if num_slices < 1:
        raise ValueError(f"--num_slices is {num_slices}; it must be at least 1")
    return Topology(name, chip, shape, num_slices)


def shapes(chip: str) -> list[str]:
    """Returns all shapes of a slice of this chip."""
    if chip in _SHAPES:
        return list(_SHAPES[chip])
    most, fours = _MOST_CHIPS[chip], range(4, 29, 4)
    cubes = [(a, b, c) for a in fours for b in fours for c in fours if a <= b <= c and a * b * c <= most]
    return [*_SMALL, *("x".join(map(str, cube)) for cube in sorted(cubes, key=math.prod))]


def nearest(chip: str, num_chips: int, num: int = 3) -> list[str]:
    """Returns the shapes of the `num` slices whose number of chips is nearest to `num_chips`."""

    def distance(shape: str) -> float:
        return abs(math.log(math.prod(map(int, shape.split("x"))) / max(1, num_chips)))

    return sorted(shapes(chip), key=distance)[:num]
