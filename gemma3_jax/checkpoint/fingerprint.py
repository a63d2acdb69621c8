"""A short name for the contents of a checkpoint of any kind and size, computed without loading it."""

import hashlib
import pathlib

from gemma3_jax.checkpoint import gguf_parts

BLOCK_BYTES, MAX_BLOCKS = 1 << 20, 64  # of one file: all of it up to 64 MiB, else 64 evenly spaced blocks


def digest_of(path: pathlib.Path) -> str:
    """Returns a digest of the files' names, sizes and contents; a copy elsewhere has the same one.

    The name of a single file does not count, nor do those of the parts of a GGUF model. Of large files a part is read:
    training changes nearly every weight.
    Raises: OSError.
    """
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else gguf_parts.paths(path):
        if not file.is_file():
            continue
        size = file.stat().st_size
        name = file.relative_to(path).as_posix() if path.is_dir() else "."
        digest.update(f"{name} {size}\n".encode())
        num_blocks = -(-size // BLOCK_BYTES)
        step = max(1, -(-num_blocks // MAX_BLOCKS))
        with file.open("rb") as content:
            for block in sorted({*range(0, num_blocks, step), num_blocks - 1}) if num_blocks else ():
                content.seek(block * BLOCK_BYTES)
                digest.update(content.read(BLOCK_BYTES))
    return digest.hexdigest()[:16]
