"""`plan` with the real TPU compiler, as a user runs it; the demo is small enough to be compiled in a minute."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("libtpu")

pytestmark = pytest.mark.interop
ROOT = pathlib.Path(__file__).parents[2]


COMMAND = [sys.executable, "-m", "gemma3_jax", "plan", "--config=experiments/demo.py", "--topology=v5e:2x2"]
COMMAND += ["--config.mesh.data=4", "--json"]


def environment():
    return {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}


def test_the_demo_is_planned_and_profiled_for_four_chips(tmp_path):
    command = [*COMMAND, f"--profile={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=1200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"] and found["num_chips"] == 4 and 0 < found["hbm_bytes_per_chip"] < 1 << 30
    num_tokens, num_ids, num_samples = 4 * 512, 2048, 256
    of_samples = 2 * 2 * num_tokens * num_ids * num_samples  # their weights, in two parts: losses/sparse_kernel.py
    others = found["flops_per_step_hlo"] - of_samples
    assert 1 < others / found["flops_per_step_formula"] < 1.6  # nothing twice, but blocks of attention pass its window
    assert found["hbm_bytes_by_kind"]["activations"] > 0
    gathered = [one for one in found["collective_bytes"] if one["kind"] == "all-gather"]
    assert [one["axes"] for one in gathered] == [["data"]] and gathered[0]["num_bytes"] > 0
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert profile["cycles"] == found["estimated_cycles"] > 0 and b"</html>" in (tmp_path / "profile.html").read_bytes()
    assert profile["seconds"] > found["seconds_by_limit"]["products"]  # which are not all that is estimated
    places = {one["part"] for one in profile["by_place_and_kind"] if one["kind"] == "product"}
    assert {"local layers", "global layers", "loss"} <= places


DEVICES = """
from gemma3_jax import chips
from gemma3_jax.planning import topologies

for chip in chips.CHIPS:
    if chip.link:
        for size in (1, 8):
            name = f"{chip.name}:{topologies.nearest(chip.name, size)[0]}"
            kinds = {device.device_kind for device in topologies.find(name).devices()}  # which counts them
            assert [chips.find(kind) for kind in kinds] == [chip], (name, kinds)
        print(chip.name)
"""


def test_libtpu_has_the_devices_of_every_chip():
    variables = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    variables = environment() | variables | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    done = subprocess.run([sys.executable, "-c", DEVICES], capture_output=True, text=True, cwd=ROOT, env=variables)
    assert done.returncode == 0 and done.stdout.split() == ["v4", "v5e", "v5p", "v6e", "tpu7x"], done.stderr


def test_both_gradients_of_the_mlps_gate_are_made_inside_a_product(tmp_path):
    """A layer of 1B, whose backward pass has no other pass over [tokens, F]."""
    command = [word for word in COMMAND if "demo" not in word] + [f"--profile={tmp_path}"]
    command += ["--config=experiments/starter.py:1b", "--config.stages.continued.batch_size=4"]
    command += ["--config.model.num_layers=1", "--config.model.vocab_size=2048"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=1200)
    assert done.returncode == 0, done.stderr
    instructions = json.loads((tmp_path / "profile.json").read_text())["instructions"]
    passes = [one for one in instructions if one["cycles"] and one["num_elements"] >= 8192 * 6912]
    kinds = [one["kind"] for one in passes if (one["part"], one["phase"]) == ("local layers", "backward")]
    assert kinds == ["product"] * 6


def test_ctrl_c_ends_it_while_the_compiler_works():
    process = subprocess.Popen(COMMAND, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment())
    while "usually one to five minutes" not in (line := process.stderr.readline()):
        assert line
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    assert process.wait(timeout=600) == 130 and time.monotonic() - started < 10
