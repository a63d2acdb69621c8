"""Toy runs of `train`, in this process and in real ones."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from gemma3_jax.train import metrics
from tests import texts, xla_flags

NUM_STEPS = {"first": 20, "second": 20}
CONFIG = """
def get_config(data=""):
    stage = {"seq_len": 64, "batch_size": 8, "num_steps": 20,
             "optimizer": {"peak_lr": 1e-2, "warmup_steps": 4}}
    return {
        "model": {"num_layers": 2, "num_local_per_global": 1, "embed_dim": 16, "mlp_dim": 32, "num_heads": 2,
                  "num_kv_heads": 1, "head_dim": 8, "sliding_window": 16, "query_scale": 8**-0.5, "rope_scale": 1.0,
                  "vocab_size": 800},
        "execution": {"dtype": "float32"},
        "data": data,
        "stage_order": ("first", "second"),
        "stages": {"first": stage, "second": stage | {"rope_scale": 8.0}},
        "checkpoints": {"every_steps": 3},
    }
"""


def make_data(directory: pathlib.Path) -> pathlib.Path:
    """A toy data set; beside it the config that trains on it."""
    (directory / "toy_run.py").write_text(CONFIG)
    return texts.toy_dataset(directory).path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A toy data set for all runs of a file, which takes this fixture by `data = runs.data`."""
    return make_data(tmp_path_factory.mktemp("data"))


def command(data: pathlib.Path, workdir: pathlib.Path, *flags: str) -> list[str]:
    config = f"--config={data.parent / 'toy_run.py'}:{data}"
    # One cache for all runs of a test: the program is the same.
    return ["train", config, f"--workdir={workdir}", f"--cache={data.parent / 'cache'}", *flags]


def start(data: pathlib.Path, workdir: pathlib.Path, *flags: str, num_devices: int = 8, **environment):
    """`train` in a real process, with its own devices."""
    return start_program(command(data, workdir, *flags), num_devices=num_devices, **environment)


def start_program(arguments: list[str], *, num_devices: int = 8, **environment):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    env["XLA_FLAGS"] = xla_flags.for_devices(num_devices)
    line = [sys.executable, "-m", "gemma3_jax", *arguments]
    return subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_two(arguments: list[str]) -> list:
    """Two processes of four devices each, which find each other by JAX's variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    cluster = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [start_program(arguments, num_devices=4, **cluster, JAX_PROCESS_ID=str(number)) for number in range(2)]


def finish(process, status: int = 0, seconds: float = 300) -> str:
    """What it said on stderr, once it has ended as it should."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == status, err
    return err


def error(said: str) -> str:
    """The one line of it that says what was wrong."""
    [line] = [line for line in said.splitlines() if line.startswith("gemma3_jax: error: ")]
    return line


def num_rows(workdir: pathlib.Path) -> int:
    """How many steps have been written down; of a run that goes on, too."""
    file = workdir / metrics.FILE
    return file.read_bytes().count(b"\n") if file.exists() else 0


def rows(workdir: pathlib.Path) -> list[dict]:
    """The rows of a run without their timings."""
    lines = (workdir / metrics.FILE).read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in metrics.TIMINGS} for line in lines]


def arrays(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Everything that a checkpoint holds, as plain arrays."""
    import jax
    from orbax.checkpoint import v1 as ocp

    found = ocp.load_checkpointables((workdir / "checkpoints" / str(step)).absolute(), {"params": None, "state": None})
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_but_for_rounding(one: pathlib.Path, other: pathlib.Path) -> None:
    """The same rows in the same order; losses that differ by the order of float32 sums alone."""
    one, other = rows(one), rows(other)
    assert [row["batch_id"] for row in one] == [row["batch_id"] for row in other] and len(one) == 40
    assert one[0].keys() == other[0].keys()
    # 2e-7 was seen, between eight devices, four, and two processes of four.
    np.testing.assert_allclose([row["loss"] for row in one], [row["loss"] for row in other], rtol=1e-5)


def assert_same_end(one: pathlib.Path, other: pathlib.Path, step: int = 40) -> None:
    """Parameters, optimizer, rows: to the last bit."""
    assert rows(one) == rows(other)
    left, right = arrays(one, step), arrays(other, step)
    assert left.keys() == right.keys() and len(left) > 20
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name], err_msg=name)
