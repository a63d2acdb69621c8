"""A short name for the contents of a checkpoint, of any kind and size, made without loading it."""

import hashlib
import pathlib

BLOCK_BYTES, MOST_BLOCKS = 1 << 20, 64  # of one file: up to 64 MiB all of it, else 64 blocks spread evenly


def of(path: pathlib.Path) -> str:
    """A digest of the files' names, sizes and contents, of large files in part: the same wherever a copy lies.

    Of a single file its name does not count.

    Training changes nearly every weight, so parts of the files tell two checkpoints apart.
    Raises: OSError.
    """
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not file.is_file():
            continue
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()} {size}\n".encode())
        num_blocks = -(-size // BLOCK_BYTES)
        step = max(1, -(-num_blocks // MOST_BLOCKS))
        with file.open("rb") as content:
            for block in sorted({*range(0, num_blocks, step), num_blocks - 1}) if num_blocks else ():
                content.seek(block * BLOCK_BYTES)
                digest.update(content.read(BLOCK_BYTES))
    return digest.hexdigest()[:16]
