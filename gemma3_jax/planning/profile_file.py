"""Profiles as JSON files."""

import dataclasses
import json
import math
import pathlib

from gemma3_jax.planning import kinds, places, profile, schedule

FORMAT = 1
_DERIVED = (
    "cycles",
    "exposed_seconds",
    "seconds",
    "mfu",
)  # in the file for its readers; computed again when it is loaded


def dump(of_step: profile.Profile) -> bytes:
    """Returns the JSON of a profile: a line for each instruction."""
    head = {field.name: getattr(of_step, field.name) for field in dataclasses.fields(of_step)}
    head = {"format": FORMAT, **head, **{name: getattr(of_step, name) for name in _DERIVED}}
    head["versions"] = dict(of_step.versions)
    head["exposed"] = None if of_step.exposed is None else [one._asdict() for one in of_step.exposed]
    head["by_place_and_kind"] = [
        {"part": place.part, "phase": place.phase, "kind": kind, "cycles": cycles}
        for (place, kind), cycles in of_step.by_place_and_kind().items()
    ]
    del head["instructions"]
    lines = ",\n".join(json.dumps(one._asdict()) for one in of_step.instructions)
    return f'{json.dumps(head)[:-1]},\n"instructions": [\n{lines}\n]}}\n'.encode()


def load(path: pathlib.Path) -> profile.Profile:
    """Reads a profile. Raises: ValueError that names the file if it is none; OSError if it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, and this version reads {FORMAT}; write it again")
        fields = {field.name: content[field.name] for field in dataclasses.fields(profile.Profile)}
        _check(content["instructions"])
        for name in ("clock_hz", "peak_flops", "formula_flops"):
            if not (isinstance(content[name], int | float) and 0 < content[name] < math.inf):
                raise ValueError(f"{name} is {content[name]}, and must be a number above 0")
        if not any(one["cycles"] for one in content["instructions"]):
            raise ValueError("none of its instructions has cycles")
        instructions = tuple(profile.InstructionCost(**one) for one in content["instructions"])
        exposed = content["exposed"] and tuple(_exposed(**one) for one in content["exposed"])
        return profile.Profile(**fields | {"instructions": instructions, "exposed": exposed})
    except (KeyError, TypeError, ValueError) as error:  # ValueError: JSON and UTF-8 too
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is not a profile that `plan --profile` wrote: {what}") from error


def _exposed(*, kind: str, axes: list[str], place: str, seconds: float) -> schedule.Exposed:
    return schedule.Exposed(kind, tuple(axes), place, seconds)


def _check(instructions: list[dict]) -> None:
    """Raises: ValueError or KeyError if instructions have other values than this version writes."""
    for name, known in (("part", places.PARTS), ("phase", places.PHASES), ("kind", kinds.KINDS)):
        if unknown := {str(one[name]) for one in instructions} - {*known}:
            raise ValueError(f"its instructions have an unknown {name}: {', '.join(sorted(unknown))}")
    for name in ("num_times", "num_elements", "cycles"):
        if not all(isinstance(one[name], int) or (name, one[name]) == ("cycles", None) for one in instructions):
            raise ValueError(f"{name} of its instructions is not an integer everywhere")
