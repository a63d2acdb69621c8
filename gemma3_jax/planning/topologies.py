"""Slices of TPUs as they can be had, and their devices without one of them at hand."""

import difflib
import math
import re
from typing import NamedTuple

from gemma3_jax import chips

# Source: docs.cloud.google.com/tpu (v4, v5e, v5p, v6e).
_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SHAPES = {"v5e": _FLAT, "v6e": _FLAT}
# In one job; as many v4 as the report's 12B has, more than a pod.
_MOST_CHIPS = {"v4": 6_144, "v5p": 6_144}
_SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # and beyond them every AxBxC of multiples of 4, A <= B <= C


class Topology(NamedTuple):
    """Some slices of one shape."""

    name: str  # v5e:16x16
    chip: chips.Chip
    shape: tuple[int, ...]  # of a slice, in chips
    num_slices: int

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape) * self.num_slices

    def devices(self) -> list:
        """Its devices, for which programs can be compiled and by which nothing can be run."""
        from jax.experimental import topologies

        options = {"num_slices": self.num_slices} if self.num_slices > 1 else {}
        if self.chip.name == "v4":
            options["chip_config_name"] = "megacore"  # a chip is one device; without it, two
        described = topologies.get_topology_desc(platform="tpu", topology_name=self.name, **options)
        assert len(described.devices) == self.num_chips, (self.name, len(described.devices))
        return described.devices


def find(name: str, num_slices: int = 1) -> Topology:
    """The topology of a name such as v5e:16x16 or v5p:4x4x8.

    Raises: ValueError with the nearest that there are.
    """
    kinds = [chip for chip in chips.CHIPS if chip.link]
    found = re.fullmatch(r"(v\w+):(\d+(?:x\d+)+)", name)
    chip = found and next((chip for chip in kinds if chip.name == found[1]), None)
    if not chip:
        names = [f"{chip.name}:{nearest(chip.name, 16)[0]}" for chip in kinds]
        raise ValueError(f"--topology is {name}; it must be a chip and the shape of a slice: {', '.join(names)}, ...")
    shape = tuple(map(int, found[2].split("x")))
    if found[2] not in shapes(chip.name):
        close = difflib.get_close_matches(found[2], shapes(chip.name), n=1)
        close += [other for other in nearest(chip.name, math.prod(shape)) if other not in close]
        raise ValueError(f"--topology is {name}; no slice of {chip.name} is {found[2]}: near it are {', '.join(close)}")
    if num_slices < 1:
        raise ValueError(f"--num_slices is {num_slices}; it must be at least 1")
    return Topology(name, chip, shape, num_slices)


def shapes(chip: str) -> list[str]:
    """All shapes of a slice of this chip."""
    if chip in _SHAPES:
        return list(_SHAPES[chip])
    most, fours = _MOST_CHIPS[chip], range(4, 29, 4)
    cubes = [(a, b, c) for a in fours for b in fours for c in fours if a <= b <= c and a * b * c <= most]
    return [*_SMALL, *("x".join(map(str, cube)) for cube in sorted(cubes, key=math.prod))]


def nearest(chip: str, num_chips: int, num: int = 3) -> list[str]:
    """The shapes with about so many chips."""

    def distance(shape: str) -> float:
        return abs(math.log(math.prod(map(int, shape.split("x"))) / max(1, num_chips)))

    return sorted(shapes(chip), key=distance)[:num]
