"""Joins the processes of a run, where the environment says that there are several."""

import importlib.util
import os
import pathlib
from collections.abc import Mapping

import jax

# JAX's own variables, for any cluster: its address, how many processes, and which one this is.
ADDRESS, NUM_PROCESSES, PROCESS_ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join() -> None:
    """Initialises jax.distributed if the environment calls for it; must come before anything asks for devices.

    That is: JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID; a TPU slice of several hosts, or several
    slices; Slurm or Open MPI with several tasks.
    Raises: ValueError if a variable is missing or no number.
    """
    if ADDRESS in os.environ:
        numbers = {}
        for name in (NUM_PROCESSES, PROCESS_ID):
            value = os.environ.get(name, "")
            if not value.isdecimal():
                raise ValueError(f"{ADDRESS} is set and {name} is {value!r}; it must be a number")
            numbers[name] = int(value)
        # Over the network of hosts: collectives of CPU devices in several processes need one.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(os.environ[ADDRESS], numbers[NUM_PROCESSES], numbers[PROCESS_ID])
    elif is_cluster(os.environ) or is_tpu_host(os.environ):
        jax.distributed.initialize()  # JAX knows where to look


def leave() -> None:
    """Parts from the other processes, once all have come to an end: whoever goes first would end them."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()


def is_tpu_host(environment: Mapping[str, str]) -> bool:
    """Whether this host has TPUs, and may use them: whether others do too, its metadata server knows."""
    if environment.get("JAX_PLATFORMS", "tpu") not in ("", "tpu") or importlib.util.find_spec("libtpu") is None:
        return False
    devices = pathlib.Path("/dev")
    return any(devices.glob("accel[0-9]*")) or any(devices.glob("vfio/[0-9]*"))


def is_cluster(environment: Mapping[str, str]) -> bool:
    """Whether variables of a scheduler that JAX knows say that there are several processes."""
    return (
        "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        or "MEGASCALE_COORDINATOR_ADDRESS" in environment
        or int(environment.get("SLURM_NTASKS", "1")) > 1
        or int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    )
