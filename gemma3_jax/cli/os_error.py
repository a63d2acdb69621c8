"""An OSError in one line that names its file, and the flag that the file belongs to."""

import argparse
import errno
import os
import re

_OUTPUTS = ("output", "target", "workdir", "cache", "profile")
_INPUTS = ("checkpoint", "source", "input", "config", "tokenizer", "base", "tools", "schema", "compare", "include_path")
# Every flag with a path; of the last three, few values are paths.
PATHS = (*_OUTPUTS, *_INPUTS, "model", "teacher_model", "tool_command")
_OF_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
# What fsspec raises for a file of an object store has the file alone.
_OF_TYPE = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES, FileExistsError: errno.EEXIST}
_PARTIAL = re.compile(r"/\.([^/]+)\.partial-[^/]+")  # while a file is written: see durable/atomic.py


def describe(error: OSError, flags: argparse.Namespace) -> str:
    """The line. An error that a library raised with its own words keeps them."""
    if error.errno is None or error.strerror is None:
        number = _OF_TYPE.get(type(error)) if len(str(error).split()) == 1 else None
        return f"{_name(str(error), flags)}: {os.strerror(number)}" if number else str(error)
    files = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    if error.errno == errno.ENOENT and _is_working_directory_gone():
        return "the working directory does not exist any more; change to one that does"
    if files:
        names = dict.fromkeys(_name(_PARTIAL.sub(r"/\1", file), flags) for file in files)
        return f"{' -> '.join(names)}: {error.strerror}"
    names = _OUTPUTS if error.errno in _OF_WRITING else (*_OUTPUTS, *_INPUTS)
    paths = [f"--{name} {path}" for name in names for path in _texts(getattr(flags, name, None))]
    return f"{error.strerror}{' in ' if paths else ''}{', or in '.join(paths)}"


def _name(file: str, flags: argparse.Namespace) -> str:
    """A file, with the flag that has it or a directory that it is in."""
    if _is_working_directory_gone():
        return file
    absolute = os.path.abspath(file)
    best, flag = "", ""
    for name in PATHS:
        for path in map(os.path.abspath, _texts(getattr(flags, name, None))):
            if f"{absolute}/".startswith(f"{path.rstrip('/')}/") and len(path) > len(best):
                best, flag = path, name
    if not flag:
        return file
    return f"--{flag} {file}" if best == absolute else f"{file} (of --{flag})"


def _texts(value: object) -> list[str]:
    """The texts of a flag, which may be repeated."""
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str) and text]


def _is_working_directory_gone() -> bool:
    try:
        os.getcwd()
    except OSError:
        return True
    return False
