"""Whether what lies on a disk is, to the last byte, what was written: every file is read once."""

import hashlib
import pathlib
from collections.abc import Iterable

from gemma3_jax import console
from gemma3_jax.data import dataset, shards
from gemma3_jax.data.targets import codec
from gemma3_jax.data.targets import reader as targets_reader

CHUNK = 1 << 22  # bytes


def data_set(path: pathlib.Path, bar: console.Bar = console.silent_bar) -> int:
    """Compares the tokenizer and every file of a data set with the digests in its manifest; returns their bytes.

    Raises: ValueError that names the first file that differs, and says how many do.
    """
    data = dataset.open_dataset(path)
    data.tokenizer()
    files = list(data.files())
    problems = []
    with bar(f"verify {path}", sum(file["bytes"] for file in files)) as progress:
        for file in files:
            if problem := _problem(path / file["path"], file, progress):
                problems.append(problem)
    _raise(problems, "copy or prepare the data again")
    return sum(file["bytes"] for file in files)


def targets(path: pathlib.Path, bar: console.Bar = console.silent_bar) -> int:
    """Reads every record of the teacher targets in a directory; returns their number.

    Their manifest has no digests: ArrayRecord has checksums of its own, and every record must decode.
    Raises: ValueError that names the first file that is damaged, and says how many are.
    """
    stored = targets_reader.open_targets(path)
    problems, num_rows = [], 0
    with bar(f"verify {path}", sum(count - 1 for _, count in stored.manifest["files"]), unit="sequences") as progress:
        for name, count in stored.manifest["files"]:
            reader = shards.Reader(path / name, count)
            try:
                for record in range(1, count):
                    _check_record(reader[record], record, path / name, stored)
            except ValueError as error:
                problems.append(str(error))
            reader.close()
            num_rows += count - 1
            progress.update(count - 1)
    _raise(problems, "copy the targets again, or teach again")
    return num_rows


def _problem(path: pathlib.Path, file: dict, progress) -> str:
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != file["bytes"]:
        return f"{path} has {path.stat().st_size} bytes, not {file['bytes']}"
    content = hashlib.sha256()
    with path.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            content.update(chunk)
            progress.update(len(chunk))
    return "" if content.hexdigest() == file["sha256"] else f"{path} is not what the manifest has the digest of"


def _check_record(content: bytes, record: int, path: pathlib.Path, stored: targets_reader.StoredTargets) -> None:
    """Compares a record with its own header, which says how many tokens it has, and not with its row.

    Raises: ValueError that names the file and the record.
    """
    try:
        decoded = codec.decode(content)
        codec.check(decoded, len(decoded["ids"]), stored.origin["num_samples"], stored.origin["vocab_size"])
    except ValueError as error:
        raise ValueError(f"{path} is damaged at record {record}: {error}") from error


def _raise(problems: Iterable[str], remedy: str) -> None:
    first, *others = [*problems] or [""]
    if first:
        raise ValueError(f"{first}{f', and {len(others)} more files are damaged' if others else ''}; {remedy}")
