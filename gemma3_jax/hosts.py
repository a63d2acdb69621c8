"""The processes of a run: joining them, and what they agree on."""

import contextlib
import functools
import importlib.util
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# JAX's own variables, for any cluster: the coordinator's address, the number of processes, and the id of this one.
ADDRESS, NUM_PROCESSES, PROCESS_ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
MAX_ERROR_BYTES = 400  # of an error text sent to the other processes


def join() -> None:
    """Initializes jax.distributed if the environment asks for it; must be called before JAX looks for devices.

    That is: JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID; a TPU slice of several hosts, or several
    slices; Slurm or Open MPI with several tasks.
    Raises: ValueError if a variable is missing or not a number.
    """
    if ADDRESS in os.environ:
        numbers = {}
        for name in (NUM_PROCESSES, PROCESS_ID):
            value = os.environ.get(name, "")
            if not value.isdecimal():
                raise ValueError(f"{ADDRESS} is set and {name} is {value!r}; it must be a number")
            numbers[name] = int(value)
        # CPU devices in several processes need an implementation of collectives over the network.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(os.environ[ADDRESS], numbers[NUM_PROCESSES], numbers[PROCESS_ID])
    elif is_cluster(os.environ) or is_tpu_host(os.environ):
        jax.distributed.initialize()  # JAX reads the cluster's own environment


def leave() -> None:
    """Waits for all processes and disconnects: the first one to leave alone would end the others."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()


def is_tpu_host(environment: Mapping[str, str]) -> bool:
    """Whether this host has TPUs and may use them; whether it is one of several, its metadata server knows."""
    if environment.get("JAX_PLATFORMS", "tpu") not in ("", "tpu") or importlib.util.find_spec("libtpu") is None:
        return False
    devices = pathlib.Path("/dev")
    return any(devices.glob("accel[0-9]*")) or any(devices.glob("vfio/[0-9]*"))


def is_cluster(environment: Mapping[str, str]) -> bool:
    """Whether the variables of a scheduler that JAX knows describe several processes."""
    return (
        "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        or "MEGASCALE_COORDINATOR_ADDRESS" in environment
        or int(environment.get("SLURM_NTASKS", "1")) > 1
        or int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    )


# --- what processes agree on: all of them must call these in the same order ---


def any_host(flag: bool) -> bool:
    """Whether the flag is set in any process: the same answer in all of them."""
    return any_host_async(lambda: (flag,))()[0]


def any_host_async(read_flags: Callable[[], tuple[bool, ...]]) -> Callable[[], tuple[bool, ...]]:
    """Returns a function that returns, for each flag, whether it is set in any process.

    A single process reads its flags when that function is called. Several read them now, and sum them over their
    devices while the program continues.
    """
    if jax.process_count() == 1:
        return read_flags
    sharding, count = _counter()
    flags = np.asarray([read_flags()], np.int32)
    votes = jax.make_array_from_callback((sharding.mesh.size, flags.shape[1]), sharding, lambda index: flags)
    counts = count(votes)
    return lambda: tuple(bool(number) for number in jax.device_get(counts))


@functools.cache  # one program for all steps
def _counter() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    """The sharding of votes, one on each device, and the function that sums them."""
    mesh = Mesh(np.asarray(jax.devices()), ("device",))
    replicated = NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec("device")), jax.jit(lambda votes: votes.sum(0), out_shardings=replicated)


def of_first_host(array: np.ndarray) -> np.ndarray:
    """Returns the first process's array, in all of them."""
    return array if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(array)


def wait_for_all() -> None:
    """Returns once every process has called it."""
    any_host(False)


@contextlib.contextmanager
def raise_on_all() -> Iterator[None]:
    """Makes a ValueError or OSError of one process end the block in all of them, so that none waits for ever.

    Raises: the process's own error, or a ValueError with the text of another's.
    """
    problem: Exception | None = None
    try:
        yield
    except (ValueError, OSError) as error:
        problem = error
    if jax.process_count() > 1:
        text = str(problem or "").encode()[:MAX_ERROR_BYTES].ljust(MAX_ERROR_BYTES, b"\0")
        texts = multihost_utils.process_allgather(np.frombuffer(text, np.uint8))
        for process, text in enumerate(texts):
            if problem is None and text.any():
                problem = ValueError(f"process {process}: {text.tobytes().rstrip(bytes(1)).decode(errors='ignore')}")
    if problem:
        raise problem
