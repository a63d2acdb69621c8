"""A record that is no row of its data set is named before anything is trained on it."""

import json
import shutil

import msgpack
import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.data import dataset, order, shards, stream
from gemma3_jax.data.prepare import settings
from tests import texts


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    path = texts.write_lines(directory / "a.jsonl", [text[:2_000] for text in texts.library()[:8]])
    texts.run(texts.config(directory, {"a": settings.SourceConfig(paths=(path,))}), directory / "out")
    return directory / "out"


@pytest.fixture
def copy(data, tmp_path):
    return shutil.copytree(data, tmp_path / "data")


def write(path, contents):
    """Replaces the records of the only shard, and what the manifest says of them."""
    manifest = json.loads((path / "manifest.json").read_text())
    part = manifest["parts"]["text/en"]
    [file] = part["files"]["rows-00064"]
    file |= shards.write(str(path / file["path"]), contents)
    part["files"]["rows-00064"], part["rows"]["64"] = [file], len(contents)
    manifest["digest"] = dataset.digest([manifest["tokenizer"]["digest"], manifest["parts"]])
    (path / "manifest.json").write_text(json.dumps(manifest))


def row(**changes) -> bytes:
    fields = {
        "tokens": np.array([2, 5, 6, 1], "<i4").tobytes(),
        "lengths": np.array([4], "<i4").tobytes(),
        "learned": None,
        "pieces": [[0, 0, 0, 0]],
    }
    return msgpack.packb({name: value for name, value in (fields | changes).items() if value is not ...})


def read_step(path, num_workers: int = 0):
    mesh = sharding.make_mesh(data=8)
    found = dataset.open_dataset(path)
    rows = order.find(found, seq_len=64, batch_size=8, seed=0)
    with stream.Stream(found, rows, mesh, num_workers=num_workers) as batches:
        return next(batches).rows


def ids(*numbers) -> bytes:
    return np.array(numbers, "<i4").tobytes()


@pytest.mark.parametrize(
    "record, problem",
    [
        (b"", r"it is not msgpack \(Unpack failed: incomplete input\)"),
        (b"\xc1", r"it is not msgpack \(FormatError\)"),
        (b"\x91" * 100_000, r"it is not msgpack \("),
        (b"\x81\x90\x01", r"it is not msgpack \("),
        (row() + b"x", r"it is not msgpack \("),
        (msgpack.packb([1]), "it is a msgpack list, not a map"),
        (row(tokens=...), "it has no field tokens"),
        (row(pieces=...), "it has no field pieces"),
        (row(tokens="text"), "its field tokens is of type str"),
        (row(lengths=None), "its field lengths is of type NoneType"),
        (row(tokens=b"abcde"), "its field tokens has 5 bytes; it must be 4 a number"),
        (row(learned=b""), "its field learned has 0 bytes for 4 tokens"),
        (row(pieces=[[0, 0, 0]]), "its field pieces is not made of 4 integers each"),
        (row(pieces=[["0", 0, 0, 0]]), "its field pieces is not made of 4 integers each"),
        (row(lengths=ids(5)), "its spans do not add up to its 4 tokens"),
        (row(lengths=ids(5, -1)), "its spans do not add up to its 4 tokens"),
        (row(lengths=ids(4, 0)), "its spans do not add up to its 4 tokens"),
        (row(tokens=ids(*range(65)), lengths=ids(65)), "it has 65 tokens; a row has at most 64"),
        (row(tokens=ids(2, 800, 3, 1)), "it has token id 800, and the vocabulary has 800"),
        (row(tokens=ids(2, 3, -1, 1)), "it has token id -1, and the vocabulary has 800"),
        (row(tokens=ids(2, 3, 2**31 - 1, 1)), "it has token id 2147483647, and the vocabulary has 800"),
    ],
)
def test_shard_record_and_problem_are_named(copy, record, problem):
    write(copy, [record] * 8)
    where = r"rows-00064/text/en/00000-of-00001.array_record is damaged at record \d"
    with pytest.raises(ValueError, match=f"{where}: {problem}.*; prepare the data again"):
        read_step(copy)


def test_a_row_that_was_made_by_hand_is_read(copy):
    write(copy, [row(tokens=ids(2, 0, 799, 1))] * 8)
    assert np.asarray(read_step(copy).tokens)[0, :4].tolist() == [2, 0, 799, 1]


@pytest.mark.slow
def test_worker_processes_name_the_record_too(copy):
    write(copy, [row(tokens=ids(2, 800, 3, 1))] * 8)
    with pytest.raises(ValueError, match=r"damaged at record \d: it has token id 800, and the vocabulary has 800"):
        read_step(copy, num_workers=1)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"place": [0, 0]}, "its field place is not made of 3 integers each"),
        ({"bucket": 3}, "its field bucket is of type int"),
        ({"characters": True}, "its field characters is of type bool"),
        ({"learned": b"12"}, "its field learned has 2 bytes for 1 tokens"),
    ],
)
def test_a_document_that_is_none_says_why(change, problem):
    fields = {"place": [0, 0, 0], "bucket": "text", "language": "en", "tokens": ids(1), "learned": None}
    fields |= {"characters": 1, "bytes": 1}
    assert shards.TokenizedDocument.from_bytes(msgpack.packb(fields)).bucket == "text"
    with pytest.raises(ValueError, match=problem):
        shards.TokenizedDocument.from_bytes(msgpack.packb(fields | change))
