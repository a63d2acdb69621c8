"""The profile of a compiled TPU program: estimated cycles of every instruction, by place in the model and kind of work.

Cycles are estimates of the compiler's cost model, which it writes into the program; nothing is measured. It estimates
neither Pallas kernels, scatters, gathers and sorts, for which we do (bundles.py), nor collectives: waiting for links
and memory is estimated by a walk through the program (schedule.py). What has no estimate is listed with how often it
runs, and is in no sum of cycles.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from gemma3_jax import chips
from gemma3_jax.planning import bundles, call_stacks, hlo, kinds, places, schedule


class InstructionCost(NamedTuple):
    """An instruction of the compiled program in one step, on one chip."""

    name: str
    opcode: str
    part: str  # one of places.PARTS
    phase: str  # one of places.PHASES
    kind: str  # one of kinds.KINDS
    num_times: int
    cycles: int | None  # of all its runs; None: there is no estimate
    estimator: str  # a key of ESTIMATORS; empty: there is no estimate
    num_elements: int  # of its largest operand or result
    source: str  # file:line

    @property
    def place(self) -> places.StepPlace:
        return places.StepPlace(self.part, self.phase)


# Cycles of one run of an instruction on one chip; None: it has no estimate for it.
Estimator = Callable[[hlo.Module, hlo.Computation, hlo.Instruction, chips.Chip], int | None]
_ESTIMATED = re.compile(r'"estimated_cycles":"(\d+)"')
_NO_ESTIMATE = (1 << 63) - 1  # what the compiler notes for a scatter on the sparse cores of a v5p


def _by_compiler(
    module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction, chip: chips.Chip
) -> int | None:
    match = _ESTIMATED.search(instruction.attributes)
    return int(match[1]) if match and int(match[1]) != _NO_ESTIMATE else None


def _by_bundles(
    module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction, chip: chips.Chip
) -> int | None:
    found = bundles.estimate(module, computation, instruction, chip, chip.clock_hz)
    return found and found.cycles


# The first that has an estimate is taken. Ours, for what the compiler does not estimate, come after it.
ESTIMATORS: Mapping[str, Estimator] = {"compiler": _by_compiler, "bundles": _by_bundles}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """The profile of one step on one chip."""

    title: str  # config, stage, topology
    chip: str
    clock_hz: float
    peak_flops: float  # of a chip, a second
    formula_flops: float  # of a step on one chip, without recomputation
    instructions: tuple[InstructionCost, ...]  # dearest first, then those without an estimate
    exposed: tuple[schedule.Exposed, ...] | None = None  # waiting of the chip; None: not estimated
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def cycles(self) -> int:
        return sum(one.cycles or 0 for one in self.instructions)

    def cycles_by(self, estimator: str) -> int:
        """Returns the cycles that one of ESTIMATORS has estimated."""
        return sum(one.cycles or 0 for one in self.instructions if one.estimator == estimator)

    @property
    def exposed_seconds(self) -> float | None:
        """Estimated seconds in which the chip waits for links and memory."""
        return None if self.exposed is None else sum(one.seconds for one in self.exposed)

    @property
    def seconds(self) -> float:
        """Estimated seconds of the chip, and those in which it waits if they are estimated too."""
        return self.cycles / self.clock_hz + (self.exposed_seconds or 0)

    @property
    def mfu(self) -> float:
        """The estimated MFU, too high by what has no estimate; 0 if nothing is estimated."""
        return self.formula_flops / (self.peak_flops * self.seconds) if self.seconds else 0.0

    @property
    def runs_without_estimate(self) -> dict[str, int]:
        """Runs in a step by kind, of operations on more than one number."""
        runs = Counter()
        for one in self.instructions:
            runs[one.kind] += one.num_times if one.cycles is None and one.num_elements > 1 else 0
        return {kind: runs[kind] for kind in kinds.KINDS if runs[kind]}

    def by_place_and_kind(self) -> dict[tuple[places.StepPlace, str], int]:
        """Cycles by place and kind, in the order of places.PARTS; places without cycles are left out."""
        cycles: Counter[tuple[places.StepPlace, str]] = Counter()
        for one in self.instructions:
            cycles[one.place, one.kind] += one.cycles or 0
        order = [places.StepPlace(part, phase) for part in places.PARTS for phase in places.PHASES]
        return {(place, kind): cycles[place, kind] for place in order for kind in kinds.KINDS if cycles[place, kind]}


class Unestimated(NamedTuple):
    """Instructions without an estimate that have the same opcode, place and source."""

    part: str
    phase: str
    kind: str
    name: str  # without its number
    num_instructions: int
    num_times: int
    num_elements: int  # of the largest operand or result of the largest one
    source: str


def without_estimate(profile: Profile) -> list[Unestimated]:
    """Returns what has no estimate, the most elements x runs first; operations on one number are left out."""
    groups: dict[tuple, list[InstructionCost]] = {}
    for one in profile.instructions:
        if one.cycles is None and one.num_elements > 1:
            name = re.sub(r"[.\d]+(\.(clone|remat)\S*)?$", "", one.name)
            groups.setdefault((one.part, one.phase, one.kind, name, one.source), []).append(one)
    rows = [
        Unestimated(
            *key[:4],
            num_instructions=len(ones),
            num_times=sum(one.num_times for one in ones),
            num_elements=max(one.num_elements for one in ones),
            source=key[4],
        )
        for key, ones in groups.items()
    ]
    return sorted(rows, key=lambda row: -row.num_times * row.num_elements)


def instruction_costs(text: str, module: hlo.Module, chip: chips.Chip) -> tuple[InstructionCost, ...]:
    """Returns the cost of every instruction that does work, the dearest first, then those without an estimate.

    `text` is that of the module: its head has the lines of source.
    """
    stacks = call_stacks.read(text)
    times = hlo.count_runs(module).times
    fused = hlo.fused(module)
    costs = [
        cost
        for name, num_times in times.items()
        if name not in fused
        for cost in _of_computation(module, module.computations[name], num_times, chip, stacks)
    ]
    return tuple(sorted(costs, key=lambda one: (one.cycles is None, -(one.cycles or 0), -one.num_elements, one.name)))


def _of_computation(
    module: hlo.Module,
    computation: hlo.Computation,
    num_times: int,
    chip: chips.Chip,
    stacks: call_stacks.CallStacks,
) -> Iterator[InstructionCost]:
    known = {
        instruction.name: places.of(instruction, stacks)
        or places.most_common(places.of(one, stacks) for one in kinds.fused_instructions(module, instruction))
        for instruction in computation.instructions.values()
        if instruction.opcode not in ("parameter", "get-tuple-element", "tuple", "while")
    }
    others = places.REST_OF_STEP if computation.name == module.entry else places.most_common(known.values())
    for instruction in computation.instructions.values():
        if (kind := kinds.of(module, computation, instruction)) is None:
            continue
        place = known[instruction.name] or others or places.REST_OF_STEP
        if kind == kinds.KERNEL and "splash" in instruction.name:
            place = places.StepPlace(places.ATTENTION_KERNELS, place.phase)
        estimator, cycles = _estimate(module, computation, instruction, chip)
        arrays = [instruction, *(computation.instructions[name] for name in instruction.operands)]
        yield InstructionCost(
            name=instruction.name,
            opcode=instruction.opcode,
            part=place.part,
            phase=place.phase,
            kind=kind,
            num_times=num_times,
            cycles=None if cycles is None else cycles * num_times,
            estimator=estimator,
            num_elements=max((shape.num_elements for one in arrays for shape in one.shapes), default=0),
            source=_source(module, instruction, stacks),
        )


def _estimate(
    module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction, chip: chips.Chip
) -> tuple[str, int | None]:
    if computation.thread:  # runs beside the instructions of the step, on another core
        return "", None
    for name, estimator in ESTIMATORS.items():
        if (cycles := estimator(module, computation, instruction, chip)) is not None:
            return name, cycles
    return "", None


# Thin functions whose callers tell more.
_WRAPPERS = ("gemma3_jax/model/fsdp.py", "gemma3_jax/model/matmul.py", "gemma3_jax/sharding.py")


def _source(module: hlo.Module, instruction: hlo.Instruction, stacks: call_stacks.CallStacks) -> str:
    """Returns file:line of an instruction; if a fusion has none, that of most of its parts; empty if there is none."""
    if own := _line(call_stacks.of(instruction, stacks)):
        return own
    lines = Counter(_line(call_stacks.of(one, stacks)) for one in kinds.fused_instructions(module, instruction))
    del lines[""]
    return lines.most_common(1)[0][0] if lines else ""


def _line(stack: Sequence[call_stacks.Frame]) -> str:
    """Returns file:line of the innermost call in this package, else of the innermost one."""
    ours = [frame for frame in stack if frame.file.startswith("gemma3_jax/")]
    callers = [frame for frame in ours if frame.file not in _WRAPPERS]
    return next((f"{frame.file}:{frame.line}" for frame in (*callers, *ours, *stack)), "")
