"""Makes checkpoint_jax_VERSION.tar.xz: a small checkpoint as the installed JAX, Flax and Orbax write it.

    python -m tests.golden.make_checkpoint_of_stack

Run once in an environment of each Python of launch/constraints.txt. The arrays are those of tests/checkpoint/saved.py,
drawn by numpy from the number of the step, so that a reader can draw them again.
"""

import io
import os
import pathlib
import tarfile
import tempfile

from tests import xla_flags

os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags.for_devices(8)}

import jax  # noqa: E402

from gemma3_jax import sharding  # noqa: E402
from tests.checkpoint import saved  # noqa: E402

STEP = 5
LEFT_OUT = "commit_success.txt"  # names the directory; read on file systems without renaming alone


def main() -> None:
    output = pathlib.Path(__file__).with_name(f"checkpoint_jax_{jax.__version__}.tar.xz")
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        saved.save(saved.in_directory(directory, print), STEP, sharding.make_mesh(data=4, model=2))
        with tarfile.open(output, "w:xz", preset=9) as tar:  # without times and owners
            for file in sorted(path for path in directory.rglob("*") if path.is_file() and path.name != LEFT_OUT):
                member = tarfile.TarInfo(file.relative_to(directory).as_posix())
                member.size = file.stat().st_size
                tar.addfile(member, io.BytesIO(file.read_bytes()))
    print(f"wrote {output.name}: {output.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
