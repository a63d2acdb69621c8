"""The files of a source: local or of any file system that fsspec knows, compressed, or members of a zip archive.

A member has the path "zip://MEMBER::ARCHIVE", as fsspec writes it.
"""

import contextlib
import functools
import importlib.util
import io
import lzma
import pathlib
import posixpath
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

import fsspec
import fsspec.compression
import fsspec.implementations.local
import fsspec.utils

from gemma3_jax.data.prepare import zstd

# Endings of files that hold others, or are compressed by what cannot be read here.
_TAR = (".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst")
UNREAD = {
    **dict.fromkeys(_TAR, "a tar archive"),
    ".7z": "a 7z archive",
    ".rar": "a rar archive",
    ".br": "compressed with brotli",
    ".lz4": "compressed with lz4",
    ".snappy": "compressed with snappy",
    ".sz": "compressed with snappy",
    ".Z": "compressed with compress",  # a file called x.z may be anything
}


def find(pattern: str) -> Iterator[tuple[str, int, str]]:
    """Yields (path, bytes, version) of every file that a path or a glob matches; of a zip archive, of every member.

    Raises: ValueError if there is no such file, if it is a directory, or if it cannot be unpacked.
    """
    if _is_member(pattern):
        with open_unpacked(pattern) as file:
            size = file.seek(0, io.SEEK_END)
        yield pattern, size, _version(*fsspec.core.url_to_fs(_split(pattern)[1]))
        return
    system, path = fsspec.core.url_to_fs(pattern)
    is_glob = any(mark in path for mark in "*?[") and not system.exists(path)
    for file in sorted(system.glob(path)) if is_glob else [path]:
        if not system.exists(file):
            raise ValueError("it does not exist")
        if not system.isdir(file):
            is_local = isinstance(system, fsspec.implementations.local.LocalFileSystem)
            name = posixpath.normpath(file) if is_local else system.unstrip_protocol(file)
            with naming(name):
                yield from _members(system, file, name)
        elif not is_glob:
            raise ValueError(f"it is a directory; name its files, as {pattern.rstrip('/')}/*.jsonl")


def _members(system: fsspec.AbstractFileSystem, file: str, name: str) -> Iterator[tuple[str, int, str]]:
    _check_can_be_unpacked(name)
    if not name.lower().endswith(".zip"):
        yield name, system.size(file) or 0, _version(system, file)
        return
    with system.open(file, "rb") as content, zipfile.ZipFile(content) as archive:
        members = [info for info in archive.infolist() if not info.is_dir() and not _is_junk(info.filename)]
    if not members:
        raise ValueError("it is an archive without a file")
    for info in sorted(members, key=lambda info: info.filename):
        _check_can_be_unpacked(info.filename)
        if info.filename.lower().endswith(".zip"):
            raise ValueError(f"it has another archive in it, {info.filename}; unpack it, and name its files")
        yield f"zip://{info.filename}::{name}", info.file_size, _version(system, file)


def _is_junk(member: str) -> bool:
    """Whether a system has put a member into an archive for itself."""
    return member.startswith("__MACOSX/") or member.rpartition("/")[2] in (".DS_Store", "Thumbs.db")


def _check_can_be_unpacked(name: str) -> None:
    last = pathlib.PurePosixPath(name).suffix
    suffixes = [suffix.lower() for suffix in pathlib.PurePosixPath(name).suffixes]
    what = UNREAD.get(last) or UNREAD.get(last.lower())
    if ".tar" in suffixes[-2:-1]:
        what = "a tar archive"
    elif fsspec.utils.infer_compression(name):
        what = None  # fsspec reads more with libraries that are installed
    if what:
        raise ValueError(f"it is {what}, which is not read; unpack it, and name its files")
    if suffixes[-1:] == [".zst"] and not importlib.util.find_spec("zstandard"):
        raise ValueError("it is compressed with zstd; pip install 'gemma3_jax[prepare]'")


def _version(system: fsspec.AbstractFileSystem, path: str) -> str:
    try:
        return system.modified(path).isoformat()
    except NotImplementedError:  # not every file system knows it; there, the size alone identifies a version
        return ""


def _is_member(path: str) -> bool:
    return path.startswith("zip://") and "::" in path


def _split(path: str) -> tuple[str, str]:
    """The member of an archive, which may have "::" in its name, and the archive; ("", path) if it is no member."""
    if not _is_member(path):
        return "", path
    member, _, archive = path.removeprefix("zip://").rpartition("::")
    while (cut := member.rpartition("::"))[1] and cut[2] in fsspec.available_protocols():  # as simplecache::s3://...
        member, archive = cut[0], f"{cut[2]}::{archive}"
    return member, archive


def is_packed(path: str) -> bool:
    """Whether a file cannot be read from the middle."""
    return _is_member(path) or compression(path) is not None


def kind_of(path: str) -> str:
    """Returns the kind of source that a file is by the ending of its name; "json" is one JSON value."""
    name = (_split(path)[0] or path).lower()
    if compression(path):
        name = name.rpartition(".")[0]
    kinds = {"json": "json", "jsonl": "jsonl", "ndjson": "jsonl", "parquet": "parquet"}
    return kinds.get(name.rpartition(".")[2], "text")


@contextlib.contextmanager
def open_unpacked(path: str) -> Iterator[IO[bytes]]:
    """Opens a file that `find` has yielded, decompressed by the ending of its name."""
    member, archive_path = _split(path)
    with contextlib.ExitStack() as stack:
        packed = stack.enter_context(fsspec.open(archive_path, "rb"))
        if member:
            packed = stack.enter_context(stack.enter_context(zipfile.ZipFile(packed)).open(member))
        name = compression(path)
        unpack = zstd.open_zstd if name == "zstd" else functools.partial(fsspec.compression.compr[name], mode="rb")
        yield stack.enter_context(unpack(packed))


def compression(path: str) -> str | None:
    """Returns how a file that `find` has yielded is compressed, by the ending of its name."""
    return fsspec.utils.infer_compression(_split(path)[0] or path)


@functools.cache
def _errors() -> tuple[type[Exception], ...]:
    """What the libraries that read files raise if one is damaged."""
    errors = [EOFError, ImportError, LookupError, OSError, RuntimeError, ValueError]
    errors += [lzma.LZMAError, struct.error, zipfile.BadZipFile, zlib.error]
    with contextlib.suppress(ImportError):
        import zstandard

        errors.append(zstandard.ZstdError)
    return tuple(errors)


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Adds the path to the errors of the library that reads it. Raises: ValueError."""
    try:
        yield
    except _errors() as error:
        if isinstance(error, ModuleNotFoundError):
            raise  # a library of an extra: the error names the extra
        if isinstance(error, _Named):
            raise
        raise _Named(f"{path} cannot be read: {error}") from error


class _Named(ValueError):
    """An error that has the path already."""
