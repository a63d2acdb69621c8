"""The cost of a stage on a topology: memory, FLOPs, collectives, and the time of a step, as a bound and an estimate."""

import dataclasses
import importlib.metadata
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gemma3_jax import settings, sharding
from gemma3_jax.model import config as model_config
from gemma3_jax.planning import bundles, compiling, costs, hlo, kernels, profile, schedule, topologies
from gemma3_jax.train import program

SECONDS_PER_DAY = 86_400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of one stage on one topology. Fields that need a compiled program are None if it does not fit."""

    stage: str
    topology: str
    num_slices: int
    num_chips: int
    mesh: dict[str, int]
    seq_len: int
    batch_size: int
    fits: bool
    hbm_bytes_per_chip: int
    hbm_bytes_allowed: int
    hbm_bytes_by_kind: dict[str, int]
    temporary_bytes: int | None  # by XLA's memory analysis: more than exist at one time
    flops_per_step_formula: float  # of all chips, without recomputation
    flops_per_step_hlo: float | None
    flops_ratio: float | None  # as compiled / by formula: recomputation and padding
    collective_bytes: tuple[dict, ...] | None  # that a chip receives in a step, by kind and mesh axes
    ici_bytes_per_step: float | None
    dcn_bytes_per_step: float | None
    seconds_by_limit: dict[str, float] | None  # of a step that does nothing else
    step_seconds_bound: float | None  # the largest of them, as they may overlap: a lower bound
    mfu_bound: float | None
    estimated_cycles: int | None  # of a chip in a step; what has no estimate is not in it
    compiler_cycles: int | None  # those of them that the compiler's cost model estimates
    estimated_exposed_seconds: float | None  # in which the chip waits for links and memory, by a walk of the program
    estimated_step_seconds: float | None  # both
    estimated_mfu: float | None
    runs_without_estimate: dict[str, int] | None  # in a step, by kind of work
    tokens_per_stage: int
    days_per_stage: float  # at `mfu`
    mfu: float
    compile_seconds: float
    notes: tuple[str, ...]
    profile: profile.Profile | None  # None too where the compiler estimates nothing, as for a CPU

    def as_json(self) -> dict:
        """Returns all fields but the profile, which has a file of its own."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "profile"}


def make(
    config: settings.StageConfig,
    topology: topologies.Topology,
    *,
    teacher_model: model_config.Config | None = None,
    mfu: float = 0.4,
) -> Plan:
    """Compiles the step of a stage for a topology, and counts its cost.

    Raises: ValueError if stage and topology do not match.
    """
    step_program = compiling.make_program(config, topology, teacher_model)
    compiled = compiling.run(step_program)
    by_kind = _bytes_by_kind(compiled)
    formula = step_program.flops_per_token * step_program.tokens_per_step
    num_tokens = step_program.num_steps * step_program.tokens_per_step
    counted = _count(compiled, topology, formula) if compiled.fits else _NOT_COUNTED
    return Plan(
        stage=config.name,
        topology=topology.name,
        num_slices=topology.num_slices,
        num_chips=topology.num_chips,
        mesh={axis: step_program.mesh.shape[axis] for axis in sharding.AXES},
        seq_len=config.seq_len,
        batch_size=config.batch_size,
        fits=compiled.fits,
        hbm_bytes_per_chip=sum(by_kind.values()),
        hbm_bytes_allowed=compiled.allowed_bytes or topology.chip.hbm_bytes,
        hbm_bytes_by_kind=by_kind,
        temporary_bytes=compiled.temporary_bytes,
        flops_per_step_formula=formula,
        tokens_per_stage=num_tokens,
        days_per_stage=num_tokens
        * step_program.flops_per_token
        / (topology.num_devices * topology.chip.peak_flops * mfu)
        / SECONDS_PER_DAY,
        mfu=mfu,
        compile_seconds=compiled.seconds,
        **counted._asdict(),
    )


def _bytes_by_kind(compiled: compiling.Compiled) -> dict[str, int]:
    """Bytes of a chip at the peak of a step. Gradients are float32 and sharded as the parameters, those that train."""
    step_program = compiled.program
    state = step_program.state_shapes()
    parameters = program.bytes_per_device(state.params)
    by_kind = {
        "parameters": parameters,
        "optimizer": program.bytes_per_device(state) - parameters,
        **{role: program.bytes_per_device(step_program.frozen_shapes.get(role, {})) for role in ("teacher", "base")},
        "batch": program.bytes_per_device(step_program.batch_shapes),
        "gradients": parameters,
    }
    all_but_program = compiled.peak_bytes if compiled.fits else compiled.needed_bytes - compiled.program_bytes
    by_kind["activations"] = max(0, all_but_program - sum(by_kind.values()))
    return by_kind | {"program": compiled.program_bytes}


class _Counted(NamedTuple):
    flops_per_step_hlo: float | None
    flops_ratio: float | None
    collective_bytes: tuple[dict, ...] | None
    ici_bytes_per_step: float | None
    dcn_bytes_per_step: float | None
    seconds_by_limit: dict[str, float] | None
    step_seconds_bound: float | None
    mfu_bound: float | None
    estimated_cycles: int | None
    compiler_cycles: int | None
    estimated_exposed_seconds: float | None
    estimated_step_seconds: float | None
    estimated_mfu: float | None
    runs_without_estimate: dict[str, int] | None
    notes: tuple[str, ...]
    profile: profile.Profile | None


_NOT_COUNTED = _Counted(*[None] * 14, (), None)


def _count(compiled: compiling.Compiled, topology: topologies.Topology, formula: float) -> _Counted:
    module = hlo.read(compiled.text)
    flops = costs.flops(module)
    traffic = costs.traffic(module, compiled.program.mesh, num_slices=topology.num_slices)
    kernel_flops = {call: kernels.flops(call) for call in flops.custom_calls if call.target == kernels.TARGET}
    totals = {call: one * call.num_times for call, one in kernel_flops.items() if one}
    per_chip = flops.matmul_flops + math.fsum(totals.values())
    busiest = math.fsum(kernels.flops(call, busiest=True) * call.num_times for call in totals)
    slowest_chip = flops.matmul_flops + busiest
    inside, crossing = (
        math.fsum(one.num_bytes for one in traffic.collectives if one.crosses_slices == crosses)
        for crosses in (False, True)
    )
    link, peak = topology.chip.link, topology.chip.peak_flops
    seconds = {
        "products": slowest_chip / peak,
        "links of a slice": inside / (2 * link.num_axes * link.bytes_per_second),
        "network between slices": crossing / link.between_slices,
    }
    bound = max(seconds.values())
    uncounted = {call.name for call, one in kernel_flops.items() if one is None}
    unknown = [loop.name for loop in flops.runs.loops if loop.num_trips is None]
    notes = [f"not counted: FLOPs of {name}" for name in sorted(uncounted)]
    notes += [f"loop {name} is counted as one trip: its trip count depends on data" for name in unknown]
    estimate = _profile(compiled, module, topology, formula)
    notes += [note] if estimate and (note := bundles.version_note()) else []
    return _Counted(
        flops_per_step_hlo=per_chip * topology.num_devices,
        flops_ratio=per_chip * topology.num_devices / formula,
        collective_bytes=tuple(one._asdict() for one in traffic.collectives),
        ici_bytes_per_step=inside,
        dcn_bytes_per_step=crossing,
        seconds_by_limit=seconds,
        step_seconds_bound=bound,
        mfu_bound=formula / (topology.num_devices * peak * bound),
        estimated_cycles=estimate and estimate.cycles,
        compiler_cycles=estimate and estimate.cycles_by("compiler"),
        estimated_exposed_seconds=estimate and estimate.exposed_seconds,
        estimated_step_seconds=estimate and estimate.seconds,
        estimated_mfu=estimate and estimate.mfu,
        runs_without_estimate=estimate and estimate.runs_without_estimate,
        notes=tuple(notes),
        profile=estimate,
    )


def _profile(
    compiled: compiling.Compiled, module: hlo.Module, topology: topologies.Topology, formula: float
) -> profile.Profile | None:
    """Returns the profile of the step; None if the compiler estimates nothing in it, as for a CPU."""
    chip = topology.chip
    instructions = profile.instruction_costs(compiled.text, module, chip)
    if not any(one.estimator == "compiler" for one in instructions):
        return None
    cycles = {one.name: one.cycles / one.num_times for one in instructions if one.cycles is not None}
    places = {one.name: str(one.place) for one in instructions}
    timeline = schedule.walk(
        module,
        compiled.program.mesh,
        schedule.bandwidths(topology),
        cycles_of=lambda instruction: cycles.get(instruction.name),
        clock_hz=chip.clock_hz,
        num_slices=topology.num_slices,
        place_of=lambda instruction: places.get(instruction.name, ""),
    )
    return profile.Profile(
        title=f"{topology.num_slices} x {topology.name}",
        chip=chip.name,
        clock_hz=chip.clock_hz,
        peak_flops=chip.peak_flops,
        formula_flops=formula / topology.num_devices,
        instructions=instructions,
        exposed=timeline.exposed,
        versions={name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    )


class Change(NamedTuple):
    """A change of the config that may make a stage fit."""

    flags: tuple[str, ...]  # as `train` takes them
    config: settings.Train


def changes(config: settings.Train, name: str, mesh: dict[str, int]) -> Iterator[Change]:
    """Yields changes, the cheapest first, each with all those before it."""
    prefix = f"--config.stages.{name}"
    flags: tuple[str, ...] = ()

    def change(text: str, **fields) -> Change:
        nonlocal config, flags
        config, flags = compiling.with_fields(config, name, **fields), (*flags, text)
        return Change(flags, config)

    if config.execution.remat != "full":
        yield change("--config.execution.remat=full", execution={"remat": "full"})
    rows_per_shard = config.stages[name].batch_size // (mesh["replica"] * mesh["data"])
    num_parts = config.stages[name].grad_accum_steps
    while num_parts * 2 <= rows_per_shard and rows_per_shard % (num_parts * 2) == 0:
        num_parts *= 2
        yield change(f"{prefix}.grad_accum_steps={num_parts}", grad_accum_steps=num_parts)
    data, seq, rows = mesh["data"], mesh["seq"], config.stages[name].batch_size
    while data % 2 == 0 and rows % (2 * num_parts) == 0 and config.stages[name].seq_len % (seq * 2 * 128) == 0:
        data, seq, rows = data // 2, seq * 2, rows // 2
        text = f"{prefix}.mesh.data={data} {prefix}.mesh.seq={seq} {prefix}.batch_size={rows}"
        yield change(text, mesh={"data": data, "seq": seq}, batch_size=rows)
    length = config.stages[name].seq_len
    while length // 2 >= 1024 and length % (2 * seq) == 0:
        length //= 2
        yield change(f"{prefix}.seq_len={length}", seq_len=length)


def search(config: settings.Train, name: str, mesh: dict[str, int], attempt: Callable[[Change], Plan]) -> Plan | None:
    """Returns the plan of the first change with which the stage fits; None if there is none."""
    for change in changes(config, name, mesh):
        plan = attempt(change)
        if plan.fits:
            return dataclasses.replace(plan, notes=(*plan.notes, f"with {' '.join(change.flags)}"))
    return None
