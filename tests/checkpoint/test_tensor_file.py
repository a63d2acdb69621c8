"""Files whose tensors come in any order, byte for byte as other writers make them in one go."""

import random

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from gemma3_jax.checkpoint import tensor_file
from tests import disks, toys

WEIGHTS = {
    "b.weight": toys.noise("b", (3, 5)),
    "a.weight": toys.noise("a", (7,)).astype(ml_dtypes.bfloat16),
    "c.norm": toys.noise("c", (2, 3)).astype(np.float16),
    "a.codes": np.arange(9, dtype=np.uint8).reshape(3, 3),
    "a.norm": toys.noise("n", (4,)),
}
NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "uint8": "U8"}
FORMS = {name: (NAMES[x.dtype.name], x.shape) for name, x in WEIGHTS.items()}


@pytest.mark.parametrize("seed", range(3))
def test_in_any_order_it_has_the_bytes_that_safetensors_writes(seed, tmp_path):
    safetensors.numpy.save_file(WEIGHTS, tmp_path / "whole", metadata={"format": "pt"})
    file = tensor_file.create_safetensors(
        tmp_path / "pieces", tensor_file.library_order(FORMS), metadata={"format": "pt"}
    )
    for name in random.Random(seed).sample(list(WEIGHTS), len(WEIGHTS)):
        assert file.write(name, WEIGHTS[name]) == WEIGHTS[name].nbytes
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()


def test_tensors_are_aligned_and_the_gaps_are_zeros(tmp_path):
    (tmp_path / "file").write_bytes(b"head")
    file = tensor_file.after_header(tmp_path / "file", {"a": 3, "b": 9, "c": 8}, alignment=8)
    assert file.offsets == {"a": 8, "b": 16, "c": 32}
    for name, size in (("c", 8), ("a", 3), ("b", 9)):
        file.write(name, np.full(size, ord(name), np.uint8))
    assert (tmp_path / "file").read_bytes() == b"head\0\0\0\0aaa\0\0\0\0\0bbbbbbbbb\0\0\0\0\0\0\0cccccccc"


def test_an_array_that_is_not_contiguous_is_written_in_its_order(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    x = np.arange(6, dtype=np.uint8).reshape(2, 3).T
    tensor_file.after_header(tmp_path / "file", {"x": 6}).write("x", x)
    assert (tmp_path / "file").read_bytes() == bytes([0, 3, 1, 4, 2, 5])


def test_a_full_disk_names_the_file(tmp_path):
    with disks.small(tmp_path / "disk", kib=64) as disk:
        file = tensor_file.create_safetensors(disk / "x", {"x": ("F32", (1 << 16,))}, {})
        with pytest.raises(OSError, match=r"disk/x cannot be written: No space left on device"):
            file.write("x", np.ones(1 << 16, np.float32))
