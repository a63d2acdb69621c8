"""Repeats cases: python -m tests.fuzz FAMILY NUMBER ..."""

import pathlib
import sys
import tempfile

from tests import conftest  # noqa: F401 (sets up JAX before anything imports it)
from tests.fuzz import cases

name, *numbers = sys.argv[1:]
with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    with cases.opened(name, root) as family:
        for number in map(int, numbers):
            print(number, cases.run(family, name, number, root))
