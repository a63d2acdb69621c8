"""The processes of a run: joining them, and what they agree on."""

import contextlib
import functools
import importlib.util
import os
import pathlib
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# JAX's own variables, for any cluster: the coordinator's address, the number of processes, and the id of this one.
ADDRESS, NUM_PROCESSES, PROCESS_ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# (number of tasks, number of this one, host of the first one) -> what starts the tasks
SCHEDULERS = {
    ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST"): "srun",
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_MCA_orte_hnp_uri"): "mpirun",
}
JOIN_SECONDS = 300
MAX_ERROR_BYTES = 400  # of an error text sent to the other processes


def join(say: Callable[[str], None], *, status_if_late: int) -> None:
    """Initializes jax.distributed if the environment asks for it; must be called before JAX looks for devices.

    That is: JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID; a TPU slice of several hosts, or several
    slices; Slurm or Open MPI with several tasks. If the others do not come, the process exits with `status_if_late`;
    under a scheduler, whose variables may be left over from another job, with 1.
    Raises: ValueError if a variable is missing or wrong.
    """
    environment = os.environ
    if ADDRESS in environment:
        address = environment[ADDRESS]
        total, number = (_number(environment, name, f"{ADDRESS} is set and ") for name in (NUM_PROCESSES, PROCESS_ID))
        if not re.fullmatch(r".+:\d{1,5}", address) or int(address.rpartition(":")[2]) >= 1 << 16:
            raise ValueError(f"{ADDRESS} is {address!r}; it must be HOST:PORT")
        if number >= total:
            raise ValueError(
                f"{PROCESS_ID} is {number} and {NUM_PROCESSES} {total}; the first counts from 0 to below it"
            )
        # CPU devices in several processes need an implementation of collectives over the network.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        with _deadline(f"{ADDRESS}={address}, process {number} of {total}", status_if_late, say):
            jax.distributed.initialize(address, total, number, initialization_timeout=JOIN_SECONDS)
    elif scheduler := scheduler_of(environment):
        with _deadline(scheduler, 1, say):
            jax.distributed.initialize(initialization_timeout=JOIN_SECONDS)  # JAX reads the scheduler's variables
    elif is_cluster(environment) or is_tpu_host(environment):
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
    """Whether the variables of a TPU cluster describe several processes."""
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment


def scheduler_of(environment: Mapping[str, str]) -> str:
    """Returns which of a scheduler's several tasks this process is, in words; empty if there is one task.

    Raises: ValueError if the scheduler's variables do not say where the first task runs.
    """
    for (total, number, first_host), start in SCHEDULERS.items():
        if not environment.get(total) or (num_tasks := _number(environment, total)) <= 1:
            continue
        if first_host not in environment:
            raise ValueError(
                f"{total} is {num_tasks}, but {first_host} is not set, so {start} has not started this process; "
                f"use {start}, or unset {total}"
            )
        if total == "SLURM_NTASKS":  # node001, node[001-015] or node[001,007]
            _resolve("".join(re.match(r"([^,\[]*)\[?([^-,\]]*)", environment[first_host]).groups()), first_host)
        return f"{total}={num_tasks}, {number}={environment.get(number)}"
    return ""


def _number(environment: Mapping[str, str], name: str, because: str = "") -> int:
    value = environment.get(name, "")
    if not value.isdecimal():
        raise ValueError(f"{because}{name} is {value!r}; it must be a number")
    return int(value)


def _resolve(host: str, variable: str) -> None:
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        raise ValueError(
            f"{variable} names {host!r}, which is not a host that this one knows; if the variable is left over from "
            "another job, unset it"
        ) from None


@contextlib.contextmanager
def _deadline(who: str, status: int, say: Callable[[str], None]) -> Iterator[None]:
    """Ends the process with one line if the block takes too long: JAX would abort it with a stack of C++."""

    def end() -> None:
        say(
            f"gemma3_jax: error: the other processes did not come within {JOIN_SECONDS} seconds ({who}); start all of "
            "them, or unset these variables if this process is the only one"
        )
        os._exit(status)

    say(f"waiting up to {JOIN_SECONDS} seconds for the other processes ({who})")
    timer = threading.Timer(JOIN_SECONDS - 1, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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
