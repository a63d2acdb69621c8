"""`plan` with the real TPU compiler, as a user runs it; the demo is small enough to be compiled in a minute."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("libtpu")

pytestmark = pytest.mark.interop
ROOT = pathlib.Path(__file__).parents[2]


def test_the_demo_is_planned_for_four_chips():
    flags = ["--config=experiments/demo.py", "--topology=v5e:2x2", "--config.mesh.data=4", "--json"]
    command = [sys.executable, "-m", "gemma3_jax", "plan", *flags]
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=1200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"] and found["num_chips"] == 4 and 0 < found["hbm_bytes_per_chip"] < 1 << 30
    assert 1 < found["flops_ratio"] < 1.5  # the demo computes nothing twice, but pads
    gathered = [one for one in found["collective_bytes"] if one["kind"] == "all-gather"]
    assert [one["axes"] for one in gathered] == [["data"]] and gathered[0]["received_bytes"] > 0
