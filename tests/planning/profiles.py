"""Profiles of a few instructions, for tests."""

import dataclasses
import lzma
import pathlib

from gemma3_jax import chips
from gemma3_jax.planning import profile, schedule

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tpu_programs"
CHIPS = {chip.name: chip for chip in chips.CHIPS}


def golden(what: str, chip: str) -> str:
    """The text of a stored program: golden/make_tpu_programs.py."""
    return lzma.decompress((GOLDEN / f"{what}_{chip}.txt.xz").read_bytes()).decode()


def cost(name: str, cycles: int | None, **fields) -> profile.InstructionCost:
    values = {"opcode": "fusion", "part": "loss", "phase": "forward", "kind": "elementwise", "num_times": 1}
    values |= {"num_elements": 8, "source": "gemma3_jax/losses/a.py:7"} | fields
    return profile.InstructionCost(name=name, cycles=cycles, estimator="" if cycles is None else "compiler", **values)


def make(*costs: profile.InstructionCost, title: str = "this job", **fields) -> profile.Profile:
    """A profile on a chip of 1 GHz and 1000 FLOPs a cycle."""
    values = {"chip": "v5e", "clock_hz": 1e9, "peak_flops": 1e12, "formula_flops": 1e6} | fields
    return profile.Profile(title=title, instructions=costs, **values)


BEFORE = make(
    cost("fusion.1", 3000, kind="product", part="local layers"),
    cost("fusion.2", 1000),
    cost("scatter.1", None, kind="scatter/gather/sort", num_times=4, num_elements=100),
    cost("scatter.2", None, kind="scatter/gather/sort", num_times=4, num_elements=100),
    cost("all-reduce.7", None, opcode="all-reduce", kind="collective", num_elements=16),
    cost("add.3", None, num_times=50, num_elements=1),
)
AFTER = make(
    cost("fusion.1", 3000, kind="product", part="local layers"),
    cost("fusion.2", 500, kind="reduction"),
    cost("all-reduce.7", None, opcode="all-reduce", kind="collective", num_elements=16),
    title="the job after",
)
WAITING = dataclasses.replace(
    BEFORE,
    exposed=(
        schedule.Exposed("reduce-scatter", ("data", "seq"), "local layers, backward", 8e-7),
        schedule.Exposed("memory", (), "rest", 2e-7),
    ),
)
