"""Which line of Python an instruction comes from: the call stacks in the text of a compiled program.

The text begins with four tables: file names, function names, locations and frames. A frame names its location and the
frame that called it, plus one (0 and 1 are both none); an instruction names its frame in `stack_frame_id`.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from gemma3_jax.planning import hlo


class Frame(NamedTuple):
    """A line of Python that was running when JAX traced an operation."""

    file: str  # gemma3_jax/model/layers.py, optax/_src/update.py: from the directory of the top package
    function: str  # its qualified name
    line: int


CallStacks = Mapping[int, tuple[Frame, ...]]  # by the frame's id; the innermost call first

_FRAME_ID = re.compile(r"stack_frame_id=(\d+)")
_ROW = re.compile(r"(\d+) (.*)")


def read(text: str) -> CallStacks:
    """Parses the tables. Returns an empty mapping for a program that has none."""
    files, functions, locations, frames = (
        _table(text, title) for title in ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
    )
    stacks: dict[int, tuple[Frame, ...]] = {}
    for number, row in frames.items():  # callers come first
        location, parent = _int(row, "file_location_id"), _int(row, "parent_frame_id") - 1
        place = locations[location]
        frame = Frame(
            file=_from_package(files[_int(place, "file_name_id")].strip('"')),
            function=functions[_int(place, "function_name_id")].strip('"'),
            line=_int(place, "line"),
        )
        stacks[number] = (frame, *stacks.get(parent, ()))
    return stacks


def of(instruction: hlo.Instruction, stacks: CallStacks) -> tuple[Frame, ...]:
    """Returns the call stack of an instruction, the innermost call first; empty if it has none."""
    match = _FRAME_ID.search(instruction.attributes)
    return stacks.get(int(match[1]), ()) if match else ()


def _table(text: str, title: str) -> dict[int, str]:
    """Returns the rows of a table by their number."""
    _, start, rest = text.partition(f"\n{title}\n")
    rows = rest.partition("\n\n")[0].splitlines() if start else []
    return {int(match[1]): match[2] for row in rows if (match := _ROW.match(row))}


def _int(row: str, field: str) -> int:
    match = re.search(rf"\b{field}=(\d+)", row)
    return int(match[1]) if match else 0


def _from_package(path: str) -> str:
    """Shortens an absolute path, so that a profile is the same from any checkout and environment."""
    for root in ("/site-packages/", "/dist-packages/"):
        if root in path:
            return path.rpartition(root)[2]
    start = path.rfind("/gemma3_jax/")
    return path[start + 1 :] if start >= 0 else path.rpartition("/")[2]
