"""Peak host memory of reading and writing, measured on real processes: not twice the model."""

import dataclasses
import json
import subprocess
import sys

import pytest
import safetensors.numpy

from gemma3_jax.checkpoint import hf_config
from tests import texts, toys

pytestmark = pytest.mark.slow

# 24 layers of 13 MiB and a table of 8 MiB: 330 MiB, of which one layer's largest tensor is 4 MiB.
MODEL = dataclasses.replace(
    toys.TOY, num_layers=24, embed_dim=512, mlp_dim=2048, num_heads=4, num_kv_heads=1, head_dim=64, vocab_size=4096
)

MEASURE = """
import pathlib, re, sys, json
import jax
from gemma3_jax import sharding
from gemma3_jax.checkpoint import encoding, export, hf, load_sharded
from gemma3_jax.tokenizer import vocabulary
kind, path, out = sys.argv[1], *map(pathlib.Path, sys.argv[2:])
status = lambda key: int(re.search(key + r":\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) << 10
hf.SHARD_BYTES = 16 << 20
source = hf.open_source(path)
plan = storing.Plan("q4_0", "float16") if kind == "gguf" else None
asked = export.Export(kind, source.model, plan, tokenizer=vocabulary.load(path) if plan else None)
mesh = sharding.make_mesh()
jax.block_until_ready(jax.jit(lambda: jax.numpy.zeros(8))())
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = status("VmRSS")
params = jax.block_until_ready(placing.load(source, mesh))
load = status("VmHWM") - before
asked.write(out, params)
placed = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(json.dumps({"placed": placed, "load": load, "load_and_write": status("VmHWM") - before}))
"""


@pytest.mark.parametrize("kind", ["hf", "gguf"])
def test_reading_and_writing_take_the_model_and_little_more(kind, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(hf_config.write(MODEL, "float32"))
    # Ones: pages that were never written to would not count.
    weights = {name: x + 1 for name, x in toys.zero_weights(MODEL).items()}
    safetensors.numpy.save_file(weights, tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "tokenizer.model").write_bytes(texts.tokenizer_model())
    command = [sys.executable, "-c", MEASURE, kind, str(tmp_path / "hf"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env={"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    print(measured)
    assert measured["load"] > 0.9 * measured["placed"], "the model was not there when its memory was measured"
    # Beside the model: a layer's tensor in three forms, compiled programs, one shard of 16 MiB when writing.
    assert measured["load"] < measured["placed"] + (96 << 20), measured
    assert measured["load_and_write"] < measured["placed"] + (160 << 20), measured
