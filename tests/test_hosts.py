"""When several processes are joined. That they are is shown by tests/test_kill.py, with two real ones."""

import jax
import numpy as np
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


def test_one_process_agrees_with_itself():
    flags = [False, True]
    flags_of_any = hosts.any_host_async(lambda: tuple(flags))
    assert flags_of_any() == (False, True)
    flags[0] = True
    assert flags_of_any() == (True, True)  # it reads the flags when it is called


def test_several_processes_agree_on_a_flag_of_any_of_them(monkeypatch):
    """Eight devices of one process stand for eight processes, of which number 5 alone sets its flags."""
    whole = jax.make_array_from_callback

    def of_number_5(shape, place, votes):
        return whole(shape, place, lambda index: votes(index) * (index[0].start == 5))

    monkeypatch.setattr(jax, "process_count", lambda: 8)
    monkeypatch.setattr(jax, "make_array_from_callback", of_number_5)
    for flags in [(False, False), (True, False), (False, True), (True, True)]:
        flags_of_any = hosts.any_host_async(lambda flags=flags: flags)()
        assert flags_of_any == flags and all(type(flag) is bool for flag in flags_of_any)


def test_any_host_is_the_flag_of_the_only_host():
    assert hosts.any_host(True) is True and hosts.any_host(False) is False


def test_what_is_wrong_on_one_host_is_raised_on_all(monkeypatch):
    texts = {}
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", lambda text: np.stack([text, texts["other"]]))
    texts["other"] = np.zeros(hosts.MAX_ERROR_BYTES, np.uint8)
    with hosts.raise_on_all():
        pass
    with pytest.raises(OSError, match="^mine$"):
        with hosts.raise_on_all():
            raise OSError("mine")
    texts["other"][:4] = list(b"full")
    with pytest.raises(ValueError, match="^process 1: full$"):
        with hosts.raise_on_all():
            pass


def test_of_one_host_the_first_is_itself():
    array = np.arange(3)
    assert hosts.of_first_host(array) is array
    hosts.wait_for_all()
