"""Peak host memory, measured on real processes: loading takes the model, converting a few copies of an array of it."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from gemma3_jax.checkpoint import export, hf, hf_config
from tests import texts, toys

pytestmark = pytest.mark.slow

MIB = 1 << 20
# 24 layers of 13 MiB and a table of 8 MiB: 330 MiB, of which one layer's largest tensor is 4 MiB.
MODEL = dataclasses.replace(
    toys.TOY, num_layers=24, embed_dim=512, mlp_dim=2048, num_heads=4, num_kv_heads=1, head_dim=64, vocab_size=4096
)
LARGEST_TENSOR = 8 * MIB  # the table
LARGEST_STACK = 80 * MIB  # mlp/gate of the 20 local layers, which an Orbax checkpoint stores as one array
PROGRAMS = 64 * MIB  # what compiled programs and libraries take beside it
# glibc would keep freed blocks of up to 32 MiB; those of a real model are larger, and are returned. It would also keep
# a pool for each thread that met another one at it: the more, the busier the machine.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": str(MIB), "MALLOC_ARENA_MAX": "1"}

MEASURE = """
import json, pathlib, re, sys
import jax
from gemma3_jax import sharding
from gemma3_jax.checkpoint import export
from gemma3_jax.checkpoint import open as checkpoint_open

def status(key):
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(key + r":\\s+(\\d+) kB", text)[1]) << 10

do, path, out = sys.argv[1], *map(pathlib.Path, sys.argv[2:])
checkpoint = checkpoint_open.open_checkpoint(path)
mesh = sharding.make_mesh()
jax.block_until_ready(jax.jit(lambda: jax.numpy.zeros(8))())
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = status("VmRSS")
if do == "load":
    params = jax.block_until_ready(checkpoint.load(mesh))
else:
    options = export.resolve(checkpoint, do, quant="none" if do == "orbax" else "q4_0")
    options.write(out, checkpoint.source)
print(json.dumps({"parameters": checkpoint.num_bytes(), "peak": status("VmHWM") - before}))
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same model as a Hugging Face directory and as an Orbax checkpoint; noise, as other bytes compress."""
    directory = tmp_path_factory.mktemp("sources")
    (directory / "hf").mkdir()
    (directory / "hf" / "config.json").write_text(hf_config.write(MODEL, "float32"))
    draw = np.random.default_rng(0)
    weights = {name: draw.random(x.shape, np.float32) for name, x in toys.zero_weights(MODEL).items()}
    safetensors.numpy.save_file(weights, directory / "hf" / "model.safetensors")
    export.Export("orbax", MODEL).write(directory / "orbax", hf.open_source(directory / "hf"))
    for kind in ("hf", "orbax"):
        (directory / kind / "tokenizer.model").write_bytes(texts.tokenizer_model())
    return directory


def peak(do: str, source: pathlib.Path, out: pathlib.Path) -> int:
    """Bytes that loading a checkpoint, or writing it as another kind, adds to a process."""
    command = [sys.executable, "-c", MEASURE, do, str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    print(do, source.name, {name: f"{num_bytes / MIB:.0f} MiB" for name, num_bytes in measured.items()})
    return measured["peak"]


@pytest.mark.parametrize("kind", ["hf", "orbax"])
def test_loading_takes_the_model_and_little_more(kind, sources, tmp_path):
    measured = peak("load", sources / kind, tmp_path / "out")
    assert measured > 300 * MIB, "the model was not there when its memory was measured"
    # Beside the model: a tensor of a Hugging Face directory in three forms, or compressed bytes that Orbax reads ahead.
    assert measured < 330 * MIB + (0 if kind == "hf" else 330 * MIB) + PROGRAMS


@pytest.mark.parametrize("target", ["hf", "gguf"])
def test_converting_from_hugging_face_takes_a_few_copies_of_the_largest_tensor(target, sources, tmp_path):
    assert peak(target, sources / "hf", tmp_path / f"out.{target}") < 4 * LARGEST_TENSOR + PROGRAMS


@pytest.mark.parametrize("target", ["hf", "gguf"])
def test_converting_from_orbax_takes_the_largest_array_and_its_compressed_bytes(target, sources, tmp_path):
    assert peak(target, sources / "orbax", tmp_path / f"out.{target}") < 2 * LARGEST_STACK + PROGRAMS


def test_converting_from_gguf_takes_a_few_copies_of_the_largest_tensor(sources, tmp_path):
    peak("gguf", sources / "hf", tmp_path / "between.gguf")
    (tmp_path / "tokenizer.model").write_bytes(texts.tokenizer_model())
    assert peak("hf", tmp_path / "between.gguf", tmp_path / "out") < 4 * LARGEST_TENSOR + PROGRAMS
