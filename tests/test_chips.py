"""Chips by JAX's device_kind."""

import pytest

from gemma3_jax import chips


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [("TPU v4", 275), ("TPU v5 lite", 197), ("TPU v5", 459), ("TPU v5p", 459), ("TPU v6 lite", 918), ("TPU7x", 1153.5),
     ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H200", 989)],
)  # fmt: skip
def test_a_chip_is_found_by_its_device_kind(kind, teraflops):
    assert chips.find(kind).peak_flops == teraflops * 1e12


def test_a_cpu_is_not_in_the_table():
    assert chips.find("cpu") is None


def test_an_operation_may_use_more_vector_memory_than_by_default(monkeypatch):
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    assert chips.compiler_options("TPU v5 lite") == {"xla_tpu_scoped_vmem_limit_kib": "49152"}
    assert chips.compiler_options("TPU v4") == chips.compiler_options("cpu") == {}


def test_the_limit_of_the_user_counts(monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=20000")
    assert chips.compiler_options("TPU v5 lite") == {}
