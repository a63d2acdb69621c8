"""A GGUF model in several files, as llama-gguf-split writes them; and a directory of such files."""

import gguf
import numpy as np
import pytest

from gemma3_jax.checkpoint import export, gguf_file
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.cli import program
from tests import texts
from tests.checkpoint import gguf_files


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return gguf_files.write(tmp_path_factory.mktemp("gguf") / "toy.gguf").read_bytes()


def split(content, directory, bounds, keys=({}, {}, {}), *, tokenizer=False):
    """The file as three parts with the tensors between bounds, written by the package gguf."""
    (directory / "whole.gguf").write_bytes(content)
    reader = gguf.GGUFReader(directory / "whole.gguf")
    paths = [directory / f"toy-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    for number, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, "gemma3")
        prefixes = ("gemma3.", *(["tokenizer."] if tokenizer else [])) if number == 0 else ()
        for key, field in reader.fields.items():
            if key.startswith(prefixes):
                writer.add_key_value(key, field.contents(), *field.types[:2])
        numbers = {"split.no": number, "split.count": 3, "split.tensors.count": len(reader.tensors), **keys[number]}
        for key, value in numbers.items():
            writer.add_uint16(key, value)
        for tensor in reader.tensors[bounds[number] : bounds[number + 1]]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


@pytest.mark.parametrize("bounds", [(0, 40, 80, 106), (0, 0, 1, 106)])  # a first part without tensors, too
def test_parts_are_joined(bounds, content, tmp_path):
    first, _, last = split(content, tmp_path, bounds)
    source, whole = gguf_file.open_source(first), gguf_file.open_source(tmp_path / "whole.gguf")
    assert source.model == whole.model
    for (_, x), (_, y) in zip(source.tensors.items(), whole.tensors.items(), strict=True):
        np.testing.assert_array_equal(x.read(), y.read())
    fingerprint = checkpoint_open.open_checkpoint(first).fingerprint()
    last.write_bytes(last.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    assert checkpoint_open.open_checkpoint(first).fingerprint() != fingerprint


def test_parts_that_are_missing_or_others_are_named(content, tmp_path):
    bounds = (0, 40, 80, 106)
    first, second, third = split(content, tmp_path, bounds)
    with pytest.raises(
        ValueError, match=r"of-00003\.gguf is part 00002 of 00003 of a model; name the first: .*toy-00001-of"
    ):
        gguf_file.open_source(second)
    renamed = first.rename(tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=r"model\.gguf is one of 3 parts .* must end in -00001-of-00003\.gguf"):
        gguf_file.open_source(renamed)
    renamed.rename(first)
    content_of_third = third.read_bytes()
    third.write_bytes(second.read_bytes())
    with pytest.raises(
        ValueError, match=r"00003-of-00003\.gguf: split\.no and split\.count are \(1, 3\); by its name .* \(2, 3\)"
    ):
        gguf_file.open_source(first)
    third.write_bytes(content_of_third[:-1])
    with pytest.raises(
        ValueError, match=r"00003-of-00003\.gguf is damaged or cut short: it ends in the middle of tensor"
    ):
        gguf_file.open_source(first)
    third.unlink()
    with pytest.raises(ValueError, match=r"toy-00003-of-00003\.gguf does not exist; a model of 3 parts needs them all"):
        gguf_file.open_source(first)
    split(content, tmp_path, (0, 40, 80, 106), ({"split.tensors.count": 107}, {}, {}))
    with pytest.raises(ValueError, match=r"split\.tensors\.count is 107, but its parts have 106 tensors"):
        gguf_file.open_source(first)
    first = split(content, tmp_path, (0, 40, 80, 106), ({"split.count": 65_535}, {}, {}))[0]
    with pytest.raises(
        ValueError, match=r"one of 65535 parts of a model, so its name must end in -00001-of-65535\.gguf"
    ):
        gguf_file.open_source(first)


def test_a_tensor_in_two_parts_is_named(content, tmp_path):
    first, second, _ = split(content, tmp_path, (0, 40, 80, 106))
    (tmp_path / "again").mkdir()
    again = split(content, tmp_path / "again", (0, 41, 80, 106))[0]
    first.write_bytes(again.read_bytes())
    with pytest.raises(ValueError, match=r"00002-of-00003\.gguf: tensor .* is in another part of the model, too"):
        gguf_file.open_source(first)


def test_a_directory_of_files_names_the_first(content, tmp_path):
    split(content, tmp_path, (0, 40, 80, 106))
    with pytest.raises(ValueError, match=r"holds toy-00001-of-00003\.gguf; a GGUF file is named itself, not its"):
        checkpoint_open.open_checkpoint(tmp_path)


def test_a_split_model_of_another_writer_is_converted_with_its_tokenizer(content, tmp_path, capsys):
    tensors = {
        "blk.1.ffn_up.weight": gguf_files.blocks("Q5_0", (64, 32)),
        "v.patch_embedding.weight": (np.ones((4, 3, 2, 2), np.float16), gguf.GGMLQuantizationType.F16),
    }
    keys = {"gemma3.mm.tokens_per_image": 256}
    path = gguf_files.rewrite(tmp_path / "a.gguf", content, tmp_path, keys=keys, tensors=tensors, tokenizer=True)
    first = split(path.read_bytes(), tmp_path, (0, 40, 80, 107), tokenizer=True)[0]
    assert program.main(["convert", f"--source={first}", f"--target={tmp_path / 'hf'}", "--format=hf"]) == 0
    shown = capsys.readouterr().err
    for line in (
        f"{first}: text part only; 1 vision tensors left out",
        f"{first}: weights rounded to Q5_0 are read as float32, which holds them exactly",
        f"tokenizer {first}",
    ):
        assert line in shown
    checkpoint = checkpoint_open.open_checkpoint(tmp_path / "hf")
    assert checkpoint.model == gguf_files.MODEL
    tokenizer, _ = export.find_tokenizer(None, checkpoint)
    assert tokenizer.encode(texts.library()[40]) == texts.tokenizer().encode(texts.library()[40])
