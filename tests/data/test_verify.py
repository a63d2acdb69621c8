"""Every byte that is read is what was written; --verify says which file is not."""

import argparse
import json
import shutil
import types

import jax
import pytest

from gemma3_jax.cli import program, verification
from gemma3_jax.data import verify
from gemma3_jax.data.prepare import settings
from tests import runs, texts
from tests.data.targets import test_damaged

written = test_damaged.written  # fixtures
copy = test_damaged.copy


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    path = texts.write_lines(directory / "a.jsonl", [text[:3_000] for text in texts.library()[:4]])
    config = texts.config(
        directory, {"a": settings.SourceConfig(paths=(path,))}, documents=True, tokens_per_shard=2_000
    )
    texts.run(config, directory / "out")
    return directory / "out"


@pytest.fixture
def data(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "data")


def shard(data, kind):
    return sorted((data / kind).rglob("*.array_record"))[0]


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_data_that_is_whole_is_verified(data):
    manifest = json.loads((data / "manifest.json").read_text())
    files = [file for kind in manifest["parts"]["text/en"]["files"].values() for file in kind]
    assert len(files) > 3 and verify.data_set(data) == sum(file["bytes"] for file in files)


@pytest.mark.parametrize("kind", ["rows-00064", "documents"])
def test_a_bit_that_was_flipped_is_found_in_any_file(data, kind):
    flip(shard(data, kind), 200)
    with pytest.raises(ValueError, match=rf"{kind}/text/en/0.*d is not what the manifest has the digest of; copy"):
        verify.data_set(data)


def test_files_that_are_missing_or_of_another_length_are_named_and_counted(data):
    shard(data, "documents").unlink()
    with shard(data, "rows-00064").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"documents/.* is missing, and 1 more files are damaged; copy or prepare"):
        verify.data_set(data)
    (data / "documents").rename(data / "elsewhere")
    with pytest.raises(ValueError, match=r"is missing, and \d+ more files are damaged"):
        verify.data_set(data)


def test_targets_are_read_to_the_last_record(copy):
    assert verify.targets(copy) == 2
    test_damaged.rewrite(copy, test_damaged.with_id(1 << 18))
    with pytest.raises(ValueError, match=r"array_record is damaged at record 1: it has token id 262144, .*; copy"):
        verify.targets(copy)
    flip(copy / test_damaged.FILE, 150)
    with pytest.raises(ValueError, match="array_record is damaged"):
        verify.targets(copy)


@pytest.mark.parametrize("host", [0, 1])
def test_only_the_first_host_says_what_was_verified(data, copy, monkeypatch, capsys, host):
    monkeypatch.setattr(jax, "process_index", lambda: host)
    stage = types.SimpleNamespace(data=str(data), targets=str(copy))
    verification.run(argparse.Namespace(verify=True), [stage, stage])
    err = capsys.readouterr().err
    assert err.count("verified ") == (0 if host else 2)
    flip(shard(data, "documents"), 200)
    with pytest.raises(ValueError, match="is not what the manifest has the digest of"):
        verification.run(argparse.Namespace(verify=True), [stage])


toys = runs.data


def test_train_and_teach_verify_before_they_start(toys, tmp_path, capsys):
    data = shutil.copytree(toys, tmp_path / "data")
    flip(shard(data, "rows-00064"), 200)
    line = runs.command(toys, tmp_path / "run", "--config.mesh.data=2", f"--config.data={data}", "--verify")
    assert program.main(line) == 1 and not (tmp_path / "run" / "config.json").exists()
    assert "00000-of-00001.array_record is not what the manifest has the digest of; copy or" in capsys.readouterr().err
    teach = ["teach", *line[1:2], "--config.stages.first.loss=distill", "--stage=first", f"--output={tmp_path / 'x'}"]
    assert program.main([*teach, "--checkpoint=none", f"--config.data={data}", "--verify"]) == 1
    assert "is not what the manifest has the digest of" in capsys.readouterr().err
    assert program.main([*teach, "--checkpoint=none", "--verify"]) == 1
    err = capsys.readouterr().err
    assert f"verified {toys}: " in err and "none" in err  # the teacher that does not exist comes after
