"""A GGUF model in one file, or in several as llama-gguf-split writes them: NAME-00001-of-00003.gguf and so on.

The first part has the metadata of the model; every part lists its own tensors.
Source: ggml-org/llama.cpp tools/gguf-split/gguf-split.cpp.
"""

import pathlib
import re
from typing import Any

from gemma3_jax.checkpoint import gguf_header

_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
NUMBER, COUNT, NUM_TENSORS = "split.no", "split.count", "split.tensors.count"  # keys; parts count from 0


def paths(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of a model, by the name of the one that is passed."""
    if not (match := _NAME.fullmatch(path.name)):
        return [path]
    return [_path(path, match, number) for number in range(int(match[3]))]


def _path(path: pathlib.Path, match: re.Match, number: int) -> pathlib.Path:
    return path.with_name(f"{match[1]}-{number + 1:05d}-of-{match[3]}.gguf")


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, gguf_header.TensorInfo]]:
    """Returns the metadata of a model by key, and the tensors of all its files by name.

    Raises: ValueError naming a file that is damaged, missing, or not the part that its name says. OSError.
    """
    metadata, infos = gguf_header.read(path)
    if (count := metadata.get(COUNT, 1)) in (0, 1):
        return metadata, infos
    match = _NAME.fullmatch(path.name)
    if not match or count != int(match[3]):
        raise ValueError(
            f"{path} is one of {count!r:.20} parts of a model, so its name must end in "
            f"-00001-of-{count!r:0>5.20}.gguf, and the other parts must be beside it"
        )
    _check_part(path, metadata, int(match[2]) - 1, count)
    if int(match[2]) != 1:
        raise ValueError(f"{path} is part {match[2]} of {match[3]} of a model; name the first: {_path(path, match, 0)}")
    for part in range(1, count):
        _add_part(_path(path, match, part), part, count, infos)
    if (num_tensors := metadata.get(NUM_TENSORS, len(infos))) != len(infos):
        raise ValueError(f"{path}: {NUM_TENSORS} is {num_tensors!r:.20}, but its parts have {len(infos)} tensors")
    return metadata, infos


def _add_part(path: pathlib.Path, part: int, count: int, infos: dict[str, gguf_header.TensorInfo]) -> None:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; a model of {count} parts needs them all in one directory")
    metadata, more = gguf_header.read(path)
    _check_part(path, metadata, part, count)
    if repeated := more.keys() & infos.keys():
        raise ValueError(f"{path}: tensor {min(repeated)} is in another part of the model, too")
    infos.update(more)


def _check_part(path: pathlib.Path, metadata: dict[str, Any], part: int, count: int) -> None:
    if (stored := (metadata.get(NUMBER), metadata.get(COUNT))) != (part, count):
        raise ValueError(f"{path}: {NUMBER} and {COUNT} are {stored!r:.60}; by its name they must be {(part, count)}")
