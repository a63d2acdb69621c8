"""When several processes are joined. That they are is shown by tests/test_kill.py, with two real ones."""

import os
import socket
import subprocess
import sys

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
    ],
)
def test_a_cluster_is_known_by_its_variables(environment, expected):
    assert hosts.is_cluster(environment) == expected


STEP = {"SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "localhost"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ""),
        ({"SLURM_NTASKS": "1"}, ""),
        ({"SLURM_NTASKS": ""}, ""),
        ({"SLURM_NTASKS": "2", **STEP}, "SLURM_NTASKS=2, SLURM_PROCID=1"),
        (
            {"SLURM_NTASKS": "2", **STEP, "SLURM_STEP_NODELIST": "127.0.0.[1-4,7],other"},
            "SLURM_NTASKS=2, SLURM_PROCID=1",
        ),
        (
            {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "0", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"},
            "OMPI_COMM_WORLD_SIZE=8, OMPI_COMM_WORLD_RANK=0",
        ),
    ],
)
def test_a_task_of_a_scheduler_is_known_by_its_variables(environment, expected):
    assert hosts.scheduler_of(environment) == expected


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"SLURM_NTASKS": "many"}, "SLURM_NTASKS is 'many'; it must be a number"),
        ({"SLURM_NTASKS": "4"}, "SLURM_NTASKS is 4, but SLURM_STEP_NODELIST is not set, so srun has not started"),
        (
            {"OMPI_COMM_WORLD_SIZE": "4"},
            "OMPI_COMM_WORLD_SIZE is 4, but OMPI_MCA_orte_hnp_uri is not set, so mpirun has",
        ),
        (
            {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "node[001-004].invalid"},
            "SLURM_STEP_NODELIST names 'node001', which is not a host that this one knows; if the variable is left",
        ),
    ],
)
def test_variables_that_a_scheduler_left_over_are_refused_at_once(environment, problem):
    with pytest.raises(ValueError, match=problem):
        hosts.scheduler_of(environment)


@pytest.mark.parametrize(
    ("address", "number", "problem"),
    [
        ("127.0.0.1", "0", "JAX_COORDINATOR_ADDRESS is '127.0.0.1'; it must be HOST:PORT"),
        ("127.0.0.1:99999", "0", "JAX_COORDINATOR_ADDRESS is '127.0.0.1:99999'; it must be HOST:PORT"),
        ("127.0.0.1:80", "2", "JAX_PROCESS_ID is 2 and JAX_NUM_PROCESSES 2; the first counts from 0 to below"),
        ("127.0.0.1:80", "-1", "JAX_PROCESS_ID is '-1'; it must be a number"),
    ],
)
def test_an_address_or_a_number_that_cannot_be_is_refused(monkeypatch, address, number, problem):
    for name, value in zip((hosts.ADDRESS, hosts.NUM_PROCESSES, hosts.PROCESS_ID), (address, "2", number), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=problem):
        hosts.join(print, status_if_late=124)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", ["slurm", "jax"])
def test_processes_that_do_not_come_are_one_line(kind, number):
    """JAX would wait for five silent minutes and abort."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        "slurm": {
            "SLURM_NTASKS": "2", "SLURM_PROCID": str(number), "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_JOB_ID": str(port), "SLURM_LOCALID": "0",
        },
        "jax": {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(number),
        },
    }[kind]  # fmt: skip
    code = "from gemma3_jax import hosts\nhosts.JOIN_SECONDS = 5\nhosts.join(print, status_if_late=124)\n"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True, timeout=60
    )
    waiting, *problem = [line for line in done.stdout.splitlines() if line]
    assert waiting.startswith("waiting up to 5 seconds for the other processes")
    assert done.returncode == {"slurm": 1, "jax": 124}[kind], done.stderr
    assert "error: the other processes did not come within 5 seconds" in problem[0] and "Traceback" not in done.stderr


@pytest.mark.parametrize("missing", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID"])
def test_a_variable_that_is_missing_is_named(monkeypatch, missing):
    for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv(missing)
    with pytest.raises(ValueError, match=f"JAX_COORDINATOR_ADDRESS is set and {missing} is ''; it must be a number"):
        hosts.join(print, status_if_late=124)


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
