"""What a stage costs on a topology: memory, operations, communication, and the time they take at least."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gemma3_jax import settings
from gemma3_jax.model import config
from gemma3_jax.planning import compiling, costs, hlo, kernels, topologies

SECONDS_PER_DAY = 86_400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One stage on one topology. What only a program that fits can tell is None where it does not."""

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
    temporary_bytes: int | None  # by XLA's analysis, which others publish: more than is held at any one moment
    flops_per_step_formula: float  # of all chips, nothing twice
    flops_per_step_hlo: float | None
    flops_ratio: float | None  # what is computed twice, or on padding
    collective_bytes: tuple[dict, ...] | None  # received by a chip in a step, by kind and mesh axes
    ici_bytes_per_step: float | None
    dcn_bytes_per_step: float | None
    seconds_by_limit: dict[str, float] | None  # if only that took time
    step_seconds_bound: float | None  # if all of them overlap: no step is faster
    mfu_bound: float | None
    tokens_per_stage: int
    days_per_stage: float  # at `mfu`
    mfu: float
    compile_seconds: float
    notes: tuple[str, ...]


def make(
    given: settings.Train,
    name: str,
    topology: topologies.Topology,
    *,
    teacher_model: config.Config | None = None,
    mfu: float = 0.4,
) -> Plan:
    """Compiles the stage's step for the topology, and counts.

    Raises: ValueError if recipe and topology do not go together.
    """
    leg = compiling.make_leg(given, name, topology, teacher_model)
    made = compiling.run(given, name, leg)
    asked = given.stages[name]
    by_kind = _bytes_by_kind(given, name, made)
    formula = leg.flops_per_token * leg.tokens_per_step
    num_tokens = asked.num_steps * leg.tokens_per_step
    counted = _count(made, topology, formula) if made.fits else _NOT_COUNTED
    return Plan(
        stage=name,
        topology=topology.name,
        num_slices=topology.num_slices,
        num_chips=topology.num_chips,
        mesh=compiling.mesh_sizes(leg),
        seq_len=asked.seq_len,
        batch_size=asked.batch_size,
        fits=made.fits,
        hbm_bytes_per_chip=sum(by_kind.values()),
        hbm_bytes_allowed=made.allowed_bytes or topology.chip.hbm_bytes,
        hbm_bytes_by_kind=by_kind,
        temporary_bytes=made.temporary_bytes,
        flops_per_step_formula=formula,
        tokens_per_stage=num_tokens,
        days_per_stage=num_tokens
        * leg.flops_per_token
        / (topology.num_chips * topology.chip.peak_flops * mfu)
        / SECONDS_PER_DAY,
        mfu=mfu,
        compile_seconds=made.seconds,
        **counted._asdict(),
    )


def _bytes_by_kind(given: settings.Train, name: str, made: compiling.Compiled) -> dict[str, int]:
    """What a chip holds at the fullest moment of a step; gradients are float32 and rest as their parameters do."""
    leg = made.leg
    state = leg.abstract()
    parameters, of_state = compiling.held(state.params), compiling.held(state)
    by_kind = {
        "parameters": parameters,
        "optimizer": of_state - parameters,
        "teacher": leg.frozen.bytes_per_device(),
        "batch": compiling.held(compiling.abstract_batch(given, name, leg)),
        "gradients": parameters,
    }
    all_but_program = made.peak_bytes if made.fits else made.wanted_bytes - made.program_bytes
    by_kind["activations"] = max(0, all_but_program - sum(by_kind.values()))
    return by_kind | {"program": made.program_bytes}


class _Counted(NamedTuple):
    flops_per_step_hlo: float | None
    flops_ratio: float | None
    collective_bytes: tuple[dict, ...] | None
    ici_bytes_per_step: float | None
    dcn_bytes_per_step: float | None
    seconds_by_limit: dict[str, float] | None
    step_seconds_bound: float | None
    mfu_bound: float | None
    notes: tuple[str, ...]


_NOT_COUNTED = _Counted(None, None, None, None, None, None, None, None, ())


def _count(made: compiling.Compiled, topology: topologies.Topology, formula: float) -> _Counted:
    module = hlo.read(made.text)
    multiplied, moved = costs.flops(module), costs.traffic(module, made.leg.mesh, num_slices=topology.num_slices)
    of_kernels = {call: kernels.flops(call) for call in multiplied.custom_calls if call.target == kernels.TARGET}
    totals = {call: one * call.num_times for call, one in of_kernels.items() if one}
    per_chip = multiplied.matmul_flops + math.fsum(totals.values())
    # On global layers the last part of a row of one document has 2 - 1/n times the mean of n parts to do.
    of_global = math.fsum(total for call, total in totals.items() if kernels.is_global(call))
    slowest_chip = per_chip + of_global * (1 - 1 / made.leg.mesh.shape["seq"])
    inside, crossing = (
        math.fsum(one.received_bytes for one in moved.transfers if one.crosses_slices == crosses)
        for crosses in (False, True)
    )
    link, peak = topology.chip.link, topology.chip.peak_flops
    seconds = {
        "products": slowest_chip / peak,
        "links of a slice": inside / (2 * link.num_axes * link.bytes_per_second),
        "network between slices": crossing / link.between_slices,
    }
    bound = max(seconds.values())
    uncounted = {call.name for call, one in of_kernels.items() if one is None}
    unknown = [loop.name for loop in multiplied.runs.loops if loop.num_trips is None]
    notes = [f"not counted: operations of {name}" for name in sorted(uncounted)]
    notes += [f"loop {name} is counted once, as its end depends on data" for name in unknown]
    return _Counted(
        flops_per_step_hlo=per_chip * topology.num_chips,
        flops_ratio=per_chip * topology.num_chips / formula,
        collective_bytes=tuple(one._asdict() for one in moved.transfers),
        ici_bytes_per_step=inside,
        dcn_bytes_per_step=crossing,
        seconds_by_limit=seconds,
        step_seconds_bound=bound,
        mfu_bound=formula / (topology.num_chips * peak * bound),
        notes=tuple(notes),
    )


class Change(NamedTuple):
    """Something to change when a stage does not fit."""

    flags: tuple[str, ...]  # as `train` takes them
    given: settings.Train


def changes(given: settings.Train, name: str, mesh: dict[str, int]) -> Iterator[Change]:
    """One after the other, each on top of those before: what costs least comes first."""
    prefix = f"--config.stages.{name}"
    flags: tuple[str, ...] = ()

    def change(text: str, **fields) -> Change:
        nonlocal given, flags
        given, flags = compiling.with_fields(given, name, **fields), (*flags, text)
        return Change(flags, given)

    if given.execution.remat != "full":
        yield change("--config.execution.remat=full", execution={"remat": "full"})
    rows_per_shard = given.stages[name].batch_size // (mesh["replica"] * mesh["data"])
    num_parts = given.stages[name].grad_accum_steps
    while num_parts * 2 <= rows_per_shard and rows_per_shard % (num_parts * 2) == 0:
        num_parts *= 2
        yield change(f"{prefix}.grad_accum_steps={num_parts}", grad_accum_steps=num_parts)
    data, seq, rows = mesh["data"], mesh["seq"], given.stages[name].batch_size
    while data % 2 == 0 and rows % (2 * num_parts) == 0 and given.stages[name].seq_len % (seq * 2 * 128) == 0:
        data, seq, rows = data // 2, seq * 2, rows // 2
        text = f"{prefix}.mesh.data={data} {prefix}.mesh.seq={seq} {prefix}.batch_size={rows}"
        yield change(text, mesh={"data": data, "seq": seq}, batch_size=rows)
    length = given.stages[name].seq_len
    while length // 2 >= 1024 and length % (2 * seq) == 0:
        length //= 2
        yield change(f"{prefix}.seq_len={length}", seq_len=length)


def search(given: settings.Train, name: str, mesh: dict[str, int], attempt: Callable[[Change], Plan]) -> Plan | None:
    """The first change with which it fits, and its plan; None if none does."""
    for change in changes(given, name, mesh):
        found = attempt(change)
        if found.fits:
            return dataclasses.replace(found, notes=(*found.notes, f"with {' '.join(change.flags)}"))
    return None
