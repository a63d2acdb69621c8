"""From a run to the file that other programs load: what is in it is what training saw, to the last bit."""

import pathlib

import gguf
import jax
import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.checkpoint import names
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.cli import program
from gemma3_jax.model import parameters
from gemma3_jax.quant import settings, view
from tests import runs

# Widths of whole blocks, heads that are none: a block of the output's goes over two.
MODEL = {"embed_dim": 32, "mlp_dim": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "query_scale": 0.2}
QAT = {
    "num_steps": 3,
    "optimizer.warmup_steps": 0,
    "optimizer.peak_lr": 0.03,
    "loss": "distill",
    "teacher": "start",
    "samples.estimator": "whole",
}

data = runs.data  # a fixture


SLOW_ONES = [pytest.param(format, marks=pytest.mark.slow) for format in ("int4", "sfp8")]


@pytest.fixture(scope="module", params=["q4_0", *SLOW_ONES])
def trained(request, data, tmp_path_factory):
    """A short run that rounds, on four devices, and its format."""
    workdir = tmp_path_factory.mktemp(request.param) / "run"
    flags = [f"--config.model.{name}={value}" for name, value in MODEL.items()]
    stage = QAT | {"quant.format": request.param}
    flags += [f"--config.stages.second.{name}={value}" for name, value in stage.items()]
    mesh = ["--config.mesh.data=2", "--config.mesh.seq=2"]
    assert program.main(runs.command(data, workdir, "--config.stage_order=('second',)", *mesh, *flags)) == 0
    return workdir, request.param


def seen(workdir, format) -> tuple[dict, dict]:
    """The trained parameters, and what the loss saw of them in the last program."""
    checkpoint = checkpoint_open.open_checkpoint(workdir)
    params = checkpoint.load(sharding.make_mesh())
    look = jax.jit(view.make(settings.Quant(format=format), parameters.dims(checkpoint.model)))
    return params, look(params)


def test_a_gguf_file_holds_what_training_saw(trained, tmp_path, capsys):
    workdir, format = trained
    file = tmp_path / "toy.gguf"
    assert (
        program.main(["convert", f"--source={workdir}", f"--target={file}", "--format=gguf", f"--quant={format}"]) == 0
    )
    assert "warning" not in capsys.readouterr().err and file.with_suffix(".Modelfile").exists()
    model = checkpoint_open.open_checkpoint(workdir).model
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    raw, rounded = seen(workdir, format)
    num_moved = 0
    for slot in names.slots(model):
        tensor = tensors.pop(names.gguf_name(slot))
        stored = gguf.dequantize(tensor.data, tensor.tensor_type)
        ours, before = (np.asarray(names.get(tree, slot.path)[slot.index]) for tree in (rounded, raw))
        num_moved += np.count_nonzero(ours != before)
        ours = names.relayout(ours, slot.spec.layout, slot.spec.hf_layout, names.dim_sizes(model))
        if slot.spec.path == "attention/query_norm/scale":
            ours = ((1 + ours.astype(np.float64)) * model.query_scale * model.head_dim**0.5).astype(np.float32)
        elif ours.ndim == 1:
            ours = np.float32(1) + ours
        np.testing.assert_array_equal(stored.view(np.uint32), ours.view(np.uint32), err_msg=tensor.name)
    assert not tensors and num_moved > 10_000


def test_a_hugging_face_directory_and_its_codes_hold_it_too(trained, tmp_path):
    workdir, format = trained
    target = tmp_path / "toy.hf"
    assert (
        program.main(["convert", f"--source={workdir}", f"--target={target}", "--format=hf", f"--quant={format}"]) == 0
    )
    _, rounded = seen(workdir, format)
    by_codes = checkpoint_open.open_checkpoint(target)
    assert any("packed.safetensors is read" in note for note in by_codes.notes)
    plain = tmp_path / "plain.hf"
    plain.mkdir()
    for file in target.iterdir():
        if file.name != "packed.safetensors":
            (plain / file.name).write_bytes(file.read_bytes())
    for found in (by_codes, checkpoint_open.open_checkpoint(pathlib.Path(plain))):
        params = found.load(sharding.make_mesh(), "float32")
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), params, rounded)


def test_another_format_than_it_was_trained_for_is_said(trained, tmp_path, capsys):
    workdir, format = trained
    flags = [f"--source={workdir}", f"--target={tmp_path / 'toy.gguf'}", "--format=gguf", "--quant=q8_0"]
    assert program.main(["convert", *flags]) == 0
    assert f"was trained for --quant={format} --embedding=float16" in capsys.readouterr().err
