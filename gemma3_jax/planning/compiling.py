"""Compiles the step that `train` would run for a TPU topology, without a TPU."""

import dataclasses
import math
import re
import time
from typing import NamedTuple

import jax
import numpy as np

from gemma3_jax import settings, sharding
from gemma3_jax.model import config as model_config
from gemma3_jax.planning import topologies
from gemma3_jax.stages import mesh as stage_mesh
from gemma3_jax.stages import step as stage_step
from gemma3_jax.train import program


class Compiled(NamedTuple):
    """A compiled step. If it does not fit into memory, `text` and the other fields of a program are None."""

    program: program.Program
    seconds: float  # of tracing and compiling
    text: str | None  # of the compiled program
    peak_bytes: int | None  # of a chip at the peak of a step: arguments and temporaries
    temporary_bytes: int | None  # by XLA's memory analysis: more than exist at one time
    program_bytes: int
    needed_bytes: int | None  # of a chip, by the compiler's error if the program does not fit
    allowed_bytes: int | None

    @property
    def fits(self) -> bool:
        return self.text is not None


def make_program(
    config: settings.StageConfig, topology: topologies.Topology, teacher_model: model_config.Config | None
) -> program.Program:
    """Returns the program of a stage on this topology. With teacher `start` the teacher has the model of the stage.

    Raises: ValueError that names the field if mesh, topology and batch do not match.
    """
    if config.teacher == settings.START:
        teacher_model = config.model
    if teacher_model and teacher_model.vocab_size != config.model.vocab_size:
        raise ValueError(
            f"--teacher_model has {teacher_model.vocab_size} ids, config.model.vocab_size is "
            f"{config.model.vocab_size}; both must have the same tokenizer"
        )
    try:
        sizes = {axis: getattr(config.mesh, axis) for axis in sharding.AXES}
        if sizes["data"] and math.prod(size or 1 for size in sizes.values()) != topology.num_devices:
            raise ValueError(_wrong_size({axis: size or 1 for axis, size in sizes.items()}, topology))
        mesh = stage_mesh.make(config, topology.devices())
        num_bytes = np.zeros(config.model.vocab_size, np.int32)
        return stage_step.make(config, mesh, num_bytes, teacher_model=teacher_model)
    except ValueError as error:
        raise ValueError(f"config.stages.{config.name}: {error}") from error


def _wrong_size(sizes: dict[str, int], topology: topologies.Topology) -> str:
    """Returns the error of a mesh that has another number of devices than the topology."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    others = math.prod(sizes.values()) // sizes["data"]
    legal = f"data {topology.num_devices // others}" if topology.num_devices % others == 0 else "other sizes"
    num_devices = math.prod(sizes.values())
    same = topologies.nearest(topology.chip.name, -(-num_devices // (topology.num_slices * topology.chip.num_devices)))
    unit = "chips" if topology.chip.num_devices == 1 else f"devices, {topology.chip.num_devices} a chip"
    return (
        f"mesh is {mesh} = {num_devices} {unit}, and {topology.name} x {topology.num_slices} slices has "
        f"{topology.num_devices}; set {legal}, or choose a slice of {', '.join(same)}"
    )


def run(step_program: program.Program) -> Compiled:
    """Traces and compiles the step with the shardings and donation of `train`."""
    started = time.monotonic()
    lowered = step_program.lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed, allowed = _out_of_memory(str(error))
        if needed is None:
            raise
        return Compiled(step_program, time.monotonic() - started, None, None, None, 0, needed, allowed)
    analysis = compiled.memory_analysis()
    return Compiled(
        step_program,
        time.monotonic() - started,
        compiled.as_text(),
        analysis.peak_memory_in_bytes,
        analysis.temp_size_in_bytes,
        analysis.generated_code_size_in_bytes,
        None,
        None,
    )


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = r"([\d.]+)([KMGT]?)"
_OUT_OF_MEMORY = re.compile(
    rf"Used {_SIZE} of {_SIZE} hbm|required for HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)"
)


def _out_of_memory(message: str) -> tuple[int | None, int | None]:
    """Returns the bytes that the program needs and those that a chip has; None and None for another error.

    Either message counts arguments and results, in spite of the words of the second one
    (findings/libtpu_out_of_memory_counts_arguments.sh).
    """
    sizes = _OUT_OF_MEMORY.search(message)
    if "RESOURCE_EXHAUSTED" not in message or not sizes:
        return None, None
    numbers = [part for part in sizes.groups() if part is not None]
    needed, allowed = (round(float(numbers[i]) * _UNITS[numbers[i + 1]]) for i in (0, 2))
    return needed, allowed


def with_fields(config: settings.Train, name: str, **fields) -> settings.Train:
    """Returns the recipe with other fields of one stage; `mesh` and `execution` as dicts of what changes."""
    entry = config.stages[name]
    execution = dataclasses.replace(config.execution, **fields.pop("execution", {}))
    if "mesh" in fields:
        fields["mesh"] = dataclasses.replace(entry.mesh, **fields["mesh"])
    changed = dataclasses.replace(entry, **fields)
    return dataclasses.replace(config, execution=execution, stages={**config.stages, name: changed})
