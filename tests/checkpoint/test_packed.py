"""packed.safetensors: the bits that training saw, in a layout that is held here byte by byte."""

import dataclasses
import json
import random
import resource

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from gemma3_jax import sharding
from gemma3_jax.checkpoint import encoding, export, hf, names, packed, tensor_source
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.quant import formats
from tests import disks, toys

MODEL = dataclasses.replace(toys.TOY, num_layers=7, embed_dim=32, mlp_dim=64, head_dim=16, vocab_padding=8)
UP, DOWN = "model.layers.2.mlp.up_proj.weight", "model.layers.2.mlp.down_proj.weight"
TABLE = "model.embed_tokens.weight"


def write(path, format, table="float16", model=MODEL):
    export.Export("hf", model, encoding.StoragePlan(format, table)).write(path, toys.source(model))
    return path


def same(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b).astype(a.dtype)), one, other)


def rounded(format, table):
    """Our parameters as training with these formats sees them."""
    params = jax.tree.map(np.array, toys.params(MODEL))
    for slot, x in zip(names.slots(MODEL), toys.hf_weights(MODEL).values(), strict=True):
        if x.ndim == 2:
            is_table = "V" in slot.spec.layout
            x = formats.rounded(table if is_table else format, x[: MODEL.vocab_size], (1,))
            x = names.relayout(x, slot.spec.hf_layout, slot.spec.layout, names.dim_sizes(MODEL))
            names.get(params, slot.path)[slot.index] = x
    return params


@pytest.mark.parametrize(
    ("format", "table"), [("int4", "float16"), ("q4_0", "q8_0"), ("sfp8", "bfloat16"), ("q8_0", "float32")]
)
def test_what_is_read_back_is_what_training_saw(format, table, tmp_path):
    source = checkpoint_open.open_checkpoint(write(tmp_path / "hf", format, table))
    assert source.kind == "hf" and source.model == MODEL
    assert source.notes == (
        f"{tmp_path}/hf/packed.safetensors is read, which is exact: matrices {format}, table {table}",
    )
    seen = rounded(format, table)
    same(source.load(sharding.make_mesh()), seen)
    # The dequantized weights beside it are the same ones, for programs that know nothing of it.
    (tmp_path / "hf" / packed.FILE).unlink()
    plain = checkpoint_open.open_checkpoint(tmp_path / "hf")
    assert plain.notes == () and plain.shapes["embedder"]["table"].dtype == np.float32
    same(plain.load(sharding.make_mesh()), seen)


def test_a_directory_in_fewer_bits_is_near(tmp_path):
    export.Export("hf", MODEL, encoding.StoragePlan("q4_0", "float16"), dtype="bfloat16").write(
        tmp_path / "hf", toys.source(MODEL)
    )
    content = json.loads((tmp_path / "hf" / "config.json").read_text())
    weights = safetensors.numpy.load_file(tmp_path / "hf" / "model.safetensors")
    assert content["dtype"] == "bfloat16" and {x.dtype.name for x in weights.values()} == {"bfloat16"}


@pytest.mark.parametrize("format", formats.MATRICES)
def test_the_layout_is_as_documented(format, tmp_path):
    path = write(tmp_path / "hf", format, "q8_0")
    tensors = safetensors.numpy.load_file(path / "packed.safetensors")
    with safetensors.safe_open(path / "packed.safetensors", "numpy") as file:
        assert file.metadata() == {
            "format": "gemma3_jax.packed",
            "version": "1",
            "quant": format,
            "embedding": "q8_0",
        }
    weights = toys.hf_weights(MODEL)
    x = weights[DOWN]
    bytes_per_row = {"int4": 32, "q4_0": 2 * 18, "sfp8": 64, "q8_0": 2 * 34}[format]
    assert tensors[DOWN].dtype == np.uint8 and tensors[DOWN].shape == (32, bytes_per_row)
    scales = {"int4": (32,), "sfp8": (1,)}.get(format)
    assert (f"{DOWN}.scale" in tensors) == (scales is not None)
    if scales:
        assert tensors[f"{DOWN}.scale"].shape == scales and tensors[f"{DOWN}.scale"].dtype == np.float32
    if format == "int4":
        low = (tensors[DOWN] & 15).astype(np.int8)
        low = np.where(low > 7, low - 16, low) * tensors[f"{DOWN}.scale"][:, None]
        np.testing.assert_array_equal(low, formats.rounded("int4", x, (1,))[:, ::2])
    norm = "model.layers.2.self_attn.q_norm.weight"
    np.testing.assert_array_equal(tensors[norm], weights[norm])
    assert tensors[TABLE].dtype == np.uint8 and tensors[TABLE].shape == (96, 34)  # no padding rows
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {"model.safetensors"}


def test_equal_weights_give_equal_bytes_of_the_size_foretold(tmp_path):
    one, other = (write(tmp_path / name, "int4") / packed.FILE for name in ("a", "b"))
    assert one.read_bytes() == other.read_bytes()
    size = packed.num_bytes(MODEL, encoding.StoragePlan("int4", "float16"))
    assert one.stat().st_size == size + 8 + int.from_bytes(one.read_bytes()[:8], "little")


def damaged(path, **changes):
    """Metadata changed, tensors replaced or (None) left out."""
    with safetensors.safe_open(path / packed.FILE, "numpy") as file:
        meta = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    meta |= {key: value for key, value in changes.items() if key in meta}
    tensors |= {key: value for key, value in changes.items() if key not in meta}
    safetensors.numpy.save_file(
        {name: x for name, x in tensors.items() if x is not None}, path / packed.FILE, metadata=meta
    )
    return path


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"version": "2"}, r"has format and version \('gemma3_jax\.packed', '2'\); this program reads"),
        ({"format": "other"}, r"has format and version \('other', '1'\); this program reads"),
        ({"quant": "int3"}, r"quant is 'int3'; it must be one of int4, q4_0, sfp8, q8_0"),
        ({"embedding": "int4"}, r"embedding is 'int4'; it must be one of float32"),
        ({"quant": "q4_0"}, r"has an unknown tensor .*\.scale"),
        ({UP: None}, rf"packed\.safetensors lacks tensor {UP}"),
        ({f"{UP}.scale": None}, rf"packed\.safetensors lacks tensor {UP}\.scale"),
        ({"model.x": np.zeros(1)}, r"packed\.safetensors has an unknown tensor model\.x"),
        (
            {UP: np.zeros((64, 15), np.uint8)},
            rf"tensor {UP} is U8 \(64, 15\); config\.json asks for \('U8', \(64, 16\)\)",
        ),
        ({UP: np.zeros((64, 16), np.int8)}, rf"tensor {UP} is I8 \(64, 16\); config\.json asks for"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(changes, problem, tmp_path):
    with pytest.raises(ValueError, match=problem):
        checkpoint_open.open_checkpoint(damaged(write(tmp_path / "hf", "int4"), **changes))


def test_a_file_that_is_cut_short_or_beside_another_config_is_refused(tmp_path):
    path = write(tmp_path / "hf", "sfp8")
    content = (path / packed.FILE).read_bytes()
    (path / packed.FILE).write_bytes(content[:-9])
    with pytest.raises(ValueError, match=r"packed\.safetensors is cut short, or not a safetensors file"):
        checkpoint_open.open_checkpoint(path)
    (path / packed.FILE).write_bytes(content)
    changed = json.loads((path / hf.CONFIG).read_text()) | {"intermediate_size": 96}
    (path / hf.CONFIG).write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"is U8 \(64, 32\); config\.json asks for \('U8', \(96, 32\)\)"):
        checkpoint_open.open_checkpoint(path)
    (path / hf.CONFIG).unlink()
    with pytest.raises(ValueError, match=r"config\.json does not exist"):
        checkpoint_open.open_checkpoint(path)


def test_a_model_that_its_format_does_not_hold_names_the_file(tmp_path):
    path = write(tmp_path / "hf", "q4_0")
    changed = json.loads((path / hf.CONFIG).read_text()) | {"intermediate_size": 40}
    (path / hf.CONFIG).write_text(json.dumps(changed))
    with pytest.raises(
        ValueError, match=r"hf/packed\.safetensors: .*down_proj\.weight \(32, 40\) sums over 40 weights"
    ):
        checkpoint_open.open_checkpoint(path)


def test_layers_without_number_are_refused_before_they_are_listed(tmp_path):
    path = write(tmp_path / "hf", "int4")
    changed = json.loads((path / hf.CONFIG).read_text())
    changed |= {"num_hidden_layers": 9_999, "layer_types": None, "sliding_window_pattern": 6}
    (path / hf.CONFIG).write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"num_hidden_layers is 9999, but packed\.safetensors has 142 tensors"):
        checkpoint_open.open_checkpoint(path)


def test_a_damaged_header_is_read_or_refused_in_one_line(tmp_path):
    """Of both files of tensors: a directory is read from the one or from the other."""
    path, draw = write(tmp_path / "hf", "int4"), random.Random(18)
    contents = {name: (path / name).read_bytes() for name in (packed.FILE, hf.WEIGHTS)}
    num_refused = 0
    for number in range(40):
        name = list(contents)[number % 2]
        content = bytearray(contents[name])
        length = int.from_bytes(content[:8], "little")
        place = draw.randrange(8, 8 + length)
        if number % 8 < 2:  # the length of the header, or a number in it
            content[:8] = draw.choice([0, 1, length + 1, 99 << 20, 2**40, 2**63, 2**64 - 1]).to_bytes(8, "little")
        elif number % 8 < 4:
            digits = [i for i in range(8, 8 + length) if content[i] in b"0123456789"]
            content[draw.choice(digits)] = draw.choice(b"0123456789")
        elif number % 8 < 6:
            content[place : place + 8] = draw.choice([b"\xff" * 8, b"[" * 8, b"\n\x1b[2J\x00\x00\x00", bytes(8)])
        else:
            del content[place : place + draw.randrange(1, 9)]
        (path / packed.FILE).unlink(missing_ok=True)
        (path / name).write_bytes(content)
        try:
            source = checkpoint_open.open_checkpoint(path).source
            for tensor in source.tensors.values():
                tensor.read()
        except ValueError as error:
            assert str(path / name) in str(error) and "\n" not in str(error), error
            num_refused += 1
        (path / hf.WEIGHTS).write_bytes(contents[hf.WEIGHTS])
    assert 30 < num_refused <= 40


def test_a_length_of_gibibytes_takes_no_memory(tmp_path):
    path = write(tmp_path / "hf", "int4")
    with (path / packed.FILE).open("wb") as file:  # a file that takes no space
        file.write((2 << 30).to_bytes(8, "little") + b'{"a":')
        file.truncate(3 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"packed\.safetensors is cut short, or not a safetensors file: .*too large"):
        checkpoint_open.open_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10  # KiB


def test_a_full_disk_names_the_file(tmp_path):
    size = packed.num_bytes(MODEL, encoding.StoragePlan("int4", "float16"))
    with disks.small(tmp_path / "disk", kib=size // 2048) as disk:
        with pytest.raises(OSError, match=r"disk/packed\.safetensors cannot be written: No space left on device"):
            write_tensor = packed.create(disk, MODEL, encoding.StoragePlan("int4", "float16"))
            tensor_source.copy(toys.source(MODEL), [write_tensor])


def test_what_is_not_whole_blocks_is_refused_before_it_is_read():
    model = dataclasses.replace(MODEL, mlp_dim=40)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.down_proj\.weight \(32, 40\) sums over 40 weights; q4_0"):
        export.Export("hf", model, encoding.StoragePlan("q4_0", "float16")).check()
    assert names.hf_name(next(names.slots(model))) == TABLE
