"""The step that `train` would run, compiled for chips that are not there."""

import dataclasses
import math
import re
import time
from typing import NamedTuple

import jax
import numpy as np

from gemma3_jax import settings, sharding, stages
from gemma3_jax.data import stream
from gemma3_jax.distill import targets
from gemma3_jax.model import config
from gemma3_jax.planning import topologies
from gemma3_jax.train import stage


class Compiled(NamedTuple):
    """What the compiler made of a step; what only a program has is None where it found no room for it."""

    leg: stage.Leg
    seconds: float  # of tracing and compiling
    text: str | None  # the program
    peak_bytes: int | None  # on each chip, at the fullest moment of a step: what it is given, and what it makes
    temporary_bytes: int | None  # by XLA's memory analysis: what it makes, more than is there at any one moment
    program_bytes: int
    wanted_bytes: int | None  # on each chip, by the word of a compiler that found no room
    allowed_bytes: int | None

    @property
    def fits(self) -> bool:
        return self.text is not None


def make_leg(
    given: settings.Train, name: str, topology: topologies.Topology, teacher_model: config.Config | None
) -> stage.Leg:
    """The leg of a stage on this topology. `teacher_model`: of the one beside it; `start` brings its own.

    Raises: ValueError that names the field if mesh, topology and rows do not go together.
    """
    asked = given.stages[name]
    if asked.teacher == settings.START:
        teacher_model = stages.stage_model(given, name)
    if teacher_model and teacher_model.vocab_size != given.model.vocab_size:
        raise ValueError(
            f"--teacher_model has {teacher_model.vocab_size} ids, config.model.vocab_size is {given.model.vocab_size}; "
            "both must have one tokenizer"
        )
    try:
        sizes = stages.mesh_sizes(given, name)
        if sizes["data"] and math.prod(size or 1 for size in sizes.values()) != topology.num_chips:
            raise ValueError(_other_size({axis: size or 1 for axis, size in sizes.items()}, topology))
        mesh = stages.stage_mesh(given, name, topology.devices())
        num_bytes = np.zeros(given.model.vocab_size, np.int32)
        return stages.abstract_leg(given, name, mesh, num_bytes, teacher_model=teacher_model)
    except ValueError as error:
        raise ValueError(f"config.stages.{name}: {error}") from error


def _other_size(sizes: dict[str, int], topology: topologies.Topology) -> str:
    asked = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    others = math.prod(sizes.values()) // sizes["data"]
    legal = f"data {topology.num_chips // others}" if topology.num_chips % others == 0 else "other sizes"
    same = topologies.nearest(topology.chip.name, -(-math.prod(sizes.values()) // topology.num_slices))
    return (
        f"mesh is {asked} = {math.prod(sizes.values())} chips, and {topology.name} x {topology.num_slices} slices has "
        f"{topology.num_chips}; take {legal}, or a slice of {', '.join(same)}"
    )


def abstract_batch(given: settings.Train, name: str, leg: stage.Leg) -> stream.Rows | stream.DistillBatch:
    """The rows of a step without their numbers; with targets where those are not a teacher's beside the student."""
    asked = given.stages[name]
    shape = asked.batch_size, asked.seq_len

    def tokens(dtype, *more: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*shape, *more), dtype, sharding=leg.batch_shardings)

    ids = tokens(np.int32)
    rows = stream.Rows(ids, ids, tokens(np.bool_), ids, ids, ids)
    if asked.loss != "distill" or leg.frozen.shapes:
        return rows
    numbers, num_samples = tokens(np.float32), asked.samples.num_samples
    said = targets.Targets(
        tokens(np.int32, num_samples), tokens(np.float32, num_samples), numbers, numbers, numbers, ids
    )
    return stream.DistillBatch(rows, said)


def run(given: settings.Train, name: str, leg: stage.Leg) -> Compiled:
    """Traces and compiles the step, as `train` does: the same function, places and donation."""
    started = time.monotonic()
    frozen = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        leg.frozen.shapes,
        leg.frozen.places,
    )
    jitted, arguments = leg.jitted(), (leg.abstract(), frozen, abstract_batch(given, name, leg))
    with jax.set_mesh(leg.mesh):  # tracing alone: nothing can be computed on these devices
        lowered = jitted.lower(*arguments)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            wanted, allowed = _no_room(str(error), held(arguments))
            if wanted is None:
                raise
            return Compiled(leg, time.monotonic() - started, None, None, None, 0, wanted, allowed)
    found = compiled.memory_analysis()
    return Compiled(
        leg,
        time.monotonic() - started,
        compiled.as_text(),
        found.peak_memory_in_bytes,
        found.temp_size_in_bytes,
        found.generated_code_size_in_bytes,
        None,
        None,
    )


def held(tree) -> int:
    """Bytes that a chip holds of these arrays."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = r"([\d.]+)([KMGT]?)"
_USED = re.compile(rf"Used {_SIZE} of {_SIZE} hbm")
_TEMPORARIES = re.compile(rf"required for HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)")


def _no_room(message: str, given_bytes: int) -> tuple[int | None, int | None]:
    """How many bytes the program wants, and how many there are; None if the error is another one.

    One that fails by its temporaries alone does not count what it is given.
    """
    if "RESOURCE_EXHAUSTED" not in message:
        return None, None
    used, temporaries = _USED.search(message), _TEMPORARIES.search(message)
    if not (found := used or temporaries):
        return None, None
    wanted, allowed = (round(float(found[i]) * _UNITS[found[i + 1]]) for i in (1, 3))
    return (wanted if used else wanted + given_bytes), allowed


def with_fields(given: settings.Train, name: str, **fields) -> settings.Train:
    """The same recipe with other fields of one stage; `mesh` and `execution` as dicts of what changes."""
    asked = given.stages[name]
    execution = dataclasses.replace(given.execution, **fields.pop("execution", {}))
    if "mesh" in fields:
        fields["mesh"] = dataclasses.replace(asked.mesh, **fields["mesh"])
    changed = dataclasses.replace(asked, **fields)
    return dataclasses.replace(given, execution=execution, stages={**given.stages, name: changed})


def mesh_sizes(leg: stage.Leg) -> dict[str, int]:
    return {axis: leg.mesh.shape[axis] for axis in sharding.AXES}
