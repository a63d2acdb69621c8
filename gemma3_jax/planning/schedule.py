"""When a chip waits: a walk through a scheduled TPU program with a clock for the chip and one for each kind of link.

A compiled TPU program is scheduled: its computations run in the order of their text. A collective that starts occupies
its links for bytes / bandwidth, whatever the chip does meanwhile; the instruction that ends it waits for what is left.
A synchronous collective stops the chip. Copies between memories are the same, over the memory's bandwidth. What the
chip waits for is exposed.

It is a model, and an optimistic one: transfers take no time but their bytes (no latency of hops, of hosts or of
barriers), one transfer at a time has links of one kind for itself, and copies do not compete with what instructions
read and write. Instructions without an estimate take no time, so what they overlap with counts as waiting. Nor do calls
that another core runs beside this one, such as the scatters that libtpu moves to the SparseCores of a v5p. No run time
has been measured.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gemma3_jax import sharding
from gemma3_jax.planning import costs, hlo, topologies

ICI, DCN, MEMORY = "links of a slice", "network between slices", "memory"
_COPY_START = re.compile(r"(copy|slice|dynamic-slice|dynamic-update-slice)-start$")
_WALKED_TRIPS = 3  # of a loop; the last of them stands for those that follow


class TorusAxis(NamedTuple):
    """A torus axis of a slice."""

    size: int  # chips
    bytes_per_second: float  # that a chip receives along it


class Bandwidths(NamedTuple):
    """Bandwidths of a chip, in bytes received a second."""

    torus_axes: tuple[TorusAxis, ...]
    between_slices: float
    memory: float
    from_neighbor: float  # over one link of a slice

    def seconds(self, transfer: costs.Transfer) -> float:
        """Returns the time of a collective that has its links for itself.

        A group of n devices spans the fewest torus axes, the longest first, that have n chips: each device has one
        neighbor or two along each of them.
        """
        if transfer.crosses_slices:
            return transfer.num_bytes / self.between_slices
        if transfer.kind == "collective-permute":  # from one neighbor, whatever the way around
            return transfer.num_bytes / self.from_neighbor
        num_chips, total = 1, 0.0
        for axis in sorted(self.torus_axes, reverse=True):
            if num_chips < transfer.num_devices:
                num_chips, total = num_chips * axis.size, total + axis.bytes_per_second
        return transfer.num_bytes / total if transfer.num_bytes else 0.0


def bandwidths(topology: topologies.Topology) -> Bandwidths:
    """Returns the bandwidths of a chip of a slice.

    An axis with a link from its last chip to its first brings bytes from two neighbors; on others the chips at the
    ends have one neighbor, and a collective is as slow as they are. v5e and v6e have such links along 16 chips, v4,
    v5p and tpu7x where every dim is a multiple of 4. Bytes between the two devices of a tpu7x count as those of other
    neighbors. Source: docs.cloud.google.com/tpu (v4, v5e, v5p, v6e, tpu7x).
    """
    chip, shape = topology.chip, topology.shape
    is_cube = all(size % 4 == 0 for size in shape)
    axes = tuple(
        TorusAxis(size, chip.link.bytes_per_second * (2 if (is_cube if len(shape) == 3 else size == 16) else 1))
        for size in shape
        if size > 1
    )
    return Bandwidths(axes, chip.link.between_slices, chip.hbm_bytes_per_second, chip.link.bytes_per_second)


class Exposed(NamedTuple):
    """Time in which the chip waits for transfers of one kind, of one place in the program."""

    kind: str  # of collective, or `memory`
    axes: tuple[str, ...]  # of the mesh; empty for memory
    place: str
    seconds: float  # in a step


class Timeline(NamedTuple):
    """One step of a chip, by the walk."""

    chip_seconds: float  # in which it computes
    exposed: tuple[Exposed, ...]  # the longest first
    link_seconds: dict[str, float]  # in which transfers are under way, by ICI, DCN, MEMORY: overlapped or not

    @property
    def exposed_seconds(self) -> float:
        return sum(one.seconds for one in self.exposed)

    @property
    def seconds(self) -> float:
        return self.chip_seconds + self.exposed_seconds


def walk(
    module: hlo.Module,
    mesh: sharding.AnyMesh,
    of_chip: Bandwidths,
    *,
    cycles_of: Callable[[hlo.Instruction], float | None],
    clock_hz: float,
    num_slices: int = 1,
    place_of: Callable[[hlo.Instruction], str] = hlo.source,
) -> Timeline:
    """Walks through one step of a chip.

    `cycles_of` returns the cycles of one run of an instruction: of a whole fusion, never of what is in it; None counts
    as none, so what has no estimate makes the step too short.
    Raises: ValueError if the program is not scheduled, or not for this mesh.
    """
    costs.check_mesh(module, mesh, num_slices)
    if not module.is_scheduled:
        raise ValueError(
            "the program is not scheduled (is_scheduled=true is not in its first line), so its order means nothing; "
            "pass the text of a program that was compiled for a TPU"
        )
    trips = {loop.name: 1 if loop.num_trips is None else loop.num_trips for loop in hlo.count_runs(module).loops}
    walker = _Walker(module, mesh, num_slices, of_chip, lambda one: (cycles_of(one) or 0) / clock_hz, place_of, trips)
    walker.run(module.computations[module.entry])
    exposed = tuple(Exposed(*key, seconds) for key, seconds in walker.exposed.most_common() if seconds > 0)
    return Timeline(walker.busy, exposed, dict(walker.used))


class _Pending(NamedTuple):
    """A transfer under way."""

    ends: float
    kind: str
    axes: tuple[str, ...]
    place: str


@dataclasses.dataclass
class _Walker:
    """The state of a walk: times in seconds from the start of the step."""

    module: hlo.Module
    mesh: sharding.AnyMesh
    num_slices: int
    of_chip: Bandwidths
    seconds_of: Callable[[hlo.Instruction], float]
    place_of: Callable[[hlo.Instruction], str]
    trips: dict[str, int]
    now: float = 0.0
    busy: float = 0.0
    exposed: Counter = dataclasses.field(default_factory=Counter)
    used: Counter = dataclasses.field(default_factory=Counter)
    free: Counter = dataclasses.field(default_factory=Counter)  # when the links of each kind are free
    pending: dict[str, _Pending] = dataclasses.field(default_factory=dict)  # by _key; the last by kind of links too

    def run(self, computation: hlo.Computation) -> None:
        for instruction in computation.instructions.values():
            match instruction.opcode:
                case "while":
                    self._loop(instruction)
                case "call" | "conditional":  # every branch counts, as in hlo.count_runs
                    for _, callee in instruction.called:
                        self.run(self.module.computations[callee])
                case "fusion":
                    self._fusion(instruction)
                case opcode if opcode.endswith("-done"):
                    self._wait_for(computation, instruction)
                case _:
                    self._one(computation, instruction)

    def _one(self, computation: hlo.Computation, instruction: hlo.Instruction) -> None:
        self._compute(instruction)
        transfers = list(self._transfers(computation, instruction))
        if transfers:
            is_async = instruction.opcode.endswith("-start") or instruction.opcode == "send"
            for one in transfers:
                pending = self._begin(one, instruction)
                if not is_async:
                    self._wait(pending)
            if is_async:
                self.pending[_key(instruction)] = pending
        elif _COPY_START.match(instruction.opcode):
            seconds = _copied_bytes(computation, instruction) / self.of_chip.memory
            self.pending[_key(instruction)] = self._occupy(MEMORY, seconds, MEMORY, (), self.place_of(instruction))

    def _transfers(self, computation: hlo.Computation, instruction: hlo.Instruction) -> Iterator[costs.Transfer]:
        """Yields the collectives of an instruction, those that an async-start wraps too."""
        inside = [(computation, instruction)]
        if instruction.opcode == "async-start":
            callees = [self.module.computations[callee] for _, callee in instruction.called]
            inside = [(callee, one) for callee in callees for one in callee.instructions.values()]
        for place, one in inside:
            transfer = costs.transfer(self.module, place, one, self.mesh, num_slices=self.num_slices)
            if transfer and transfer.axes:
                yield transfer

    def _fusion(self, instruction: hlo.Instruction) -> None:
        """A fusion may start a collective, end one that another fusion started, or hold a synchronous one."""
        starts, ends, synchronous = [], [], []
        for _, callee in instruction.called:
            computation = self.module.computations[callee]
            for one in computation.instructions.values():
                transfer = costs.transfer(
                    self.module, computation, one, self.mesh, num_slices=self.num_slices, is_fused=True
                )
                if not transfer or not transfer.axes:
                    continue
                if '"async_collective_fusion_config"' not in one.attributes:
                    synchronous.append(transfer)
                elif not costs.is_continuation(computation, one):
                    starts.append((_channel(one), transfer))
                elif any(
                    one.name in other.operands and '"AsyncCollectiveDone"' in other.attributes
                    for other in computation.instructions.values()
                ):
                    ends.append(_channel(one))
        for channel in ends:
            if channel in self.pending:
                self._wait(self.pending.pop(channel))
            elif ICI in self.pending:
                self._wait(self.pending[ICI])
        for channel, transfer in starts:
            self.pending[channel] = self._begin(transfer, instruction)
        self._compute(instruction)
        for transfer in synchronous:
            self._wait(self._begin(transfer, instruction))

    def _loop(self, instruction: hlo.Instruction) -> None:
        called = dict(instruction.called)
        body, condition = (self.module.computations[called[role]] for role in ("body", "condition"))
        num_trips = self.trips.get(instruction.name, 1)
        self.run(condition)
        for trip in range(min(num_trips, _WALKED_TRIPS)):
            before = self.now, self.busy, *(counter.copy() for counter in self._counters()), dict(self.pending)
            self.run(body)
            self.run(condition)
            if trip + 1 == _WALKED_TRIPS:
                self._repeat(before, num_trips - _WALKED_TRIPS)

    def _counters(self) -> tuple[Counter, ...]:
        return self.exposed, self.used, self.free

    def _repeat(self, before: tuple, num_trips: int) -> None:
        """Repeats `num_trips` times what has changed since `before`: what is under way then ends as much later."""
        now, busy, *counters, pending = before
        self.now += (self.now - now) * num_trips
        self.busy += (self.busy - busy) * num_trips
        for counter, old in zip(self._counters(), counters, strict=True):
            for key, value in counter.items():
                counter[key] = value + (value - old[key]) * num_trips
        for key, one in self.pending.items():
            later = one.ends - pending[key].ends if key in pending else 0.0
            self.pending[key] = one._replace(ends=one.ends + later * num_trips)

    def _compute(self, instruction: hlo.Instruction) -> None:
        seconds = self.seconds_of(instruction)
        self.now += seconds
        self.busy += seconds

    def _begin(self, transfer: costs.Transfer, instruction: hlo.Instruction) -> _Pending:
        links = DCN if transfer.crosses_slices else ICI
        seconds = self.of_chip.seconds(transfer)
        return self._occupy(links, seconds, transfer.kind, transfer.axes, self.place_of(instruction))

    def _occupy(self, links: str, seconds: float, kind: str, axes: tuple[str, ...], place: str) -> _Pending:
        ends = max(self.now, self.free[links]) + seconds
        self.free[links] = ends
        self.used[links] += seconds
        self.pending[links] = _Pending(ends, kind, axes, place)
        return self.pending[links]

    def _wait_for(self, computation: hlo.Computation, instruction: hlo.Instruction) -> None:
        """Ends what an operand started; if that was in another trip or computation, the last on the same links."""
        started = computation.instructions.get(instruction.operands[0])
        while started and started.opcode.endswith("-update"):
            started = computation.instructions.get(started.operands[0])
        pending = self.pending.pop(_key(started), None) if started else None
        if not pending and not (started and started.opcode.endswith(("-start", "-update", "send", "recv"))):
            pending = self.pending.get(_links_of_done(instruction.opcode))
        self._compute(instruction)
        if pending:
            self._wait(pending)

    def _wait(self, pending: _Pending) -> None:
        if pending.ends > self.now:
            self.exposed[pending.kind, pending.axes, pending.place] += pending.ends - self.now
            self.now = pending.ends


def _key(instruction: hlo.Instruction) -> str:
    """Returns what a start and its done have in common: a send and a receive of hosts meet by name."""
    match = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', instruction.attributes)
    return f"rendezvous {match[1]}" if match else instruction.name


def _channel(instruction: hlo.Instruction) -> str:
    match = re.search(r"channel_id=(\d+)", instruction.attributes)
    return f"channel {match[1] if match else instruction.name}"


def _links_of_done(opcode: str) -> str:
    if opcode in ("send-done", "recv-done"):
        return DCN
    started = opcode.replace("-done", "-start")
    if _COPY_START.match(started):
        return MEMORY
    return "" if started in ("call-start", "async-start") else ICI  # a call may be of anything


def _copied_bytes(computation: hlo.Computation, instruction: hlo.Instruction) -> int:
    """Bytes that a copy-start, slice-start or the like moves: of what it takes from, or puts into, a larger array."""
    [source, *_] = [computation.instructions[name].shapes for name in instruction.operands] or [()]
    sizes = [shape.num_bytes for shapes in (source, instruction.shapes) for shape in shapes if shape.dims]
    return min(sizes, default=0)
