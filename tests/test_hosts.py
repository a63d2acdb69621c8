"""When several processes are joined. That they are is shown by tests/test_kill.py, with two real ones."""

import pytest

from gemma3_jax import hosts


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"TPU_WORKER_HOSTNAMES": "one"}, False),
        ({"TPU_WORKER_HOSTNAMES": "one,two"}, True),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "one:80"}, True),
        ({"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "8"}, True),
    ],
)
def test_a_cluster_is_known_by_its_variables(environment, expected):
    assert hosts.is_cluster(environment) == expected


@pytest.mark.parametrize("missing", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID"])
def test_a_variable_that_is_missing_is_named(monkeypatch, missing):
    for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv(missing)
    with pytest.raises(ValueError, match=f"JAX_COORDINATOR_ADDRESS is set and {missing} is ''; it must be a number"):
        hosts.join()
