"""Records of documents and rows, and the files they stand in."""

import dataclasses

import fsspec
import numpy as np
import pytest

from gemma3_jax.data import record_ids, shards
from tests import texts


def test_documents_and_rows_come_back_as_they_were():
    record_id = record_ids.RecordId(1, 2, 3 << 40)
    for mask in (None, np.array([False, True, True, False, True, True, True, True, False])):
        document = shards.TokenizedDocument(record_id, "text", "en", np.arange(9, dtype=np.int32), mask, 8, 9)
        back = shards.TokenizedDocument.from_bytes(document.to_bytes())
        row = shards.PackedRow(
            np.arange(9, dtype=np.int32), np.array([4, 5], np.int32), mask, [(record_id, 0), (record_id, 7)]
        )
        row_back = shards.PackedRow.from_bytes(row.to_bytes())
        for one, other in ((document, back), (row, row_back)):
            np.testing.assert_array_equal(one.tokens, other.tokens)
            np.testing.assert_array_equal(one.loss_mask, other.loss_mask)
        rest = {field.name for field in dataclasses.fields(document)} - {"tokens", "loss_mask"}
        assert [getattr(back, name) for name in rest] == [getattr(document, name) for name in rest]
        assert row_back.spans == row.spans and row_back.lengths.tolist() == [4, 5]


def test_the_same_records_are_the_same_bytes_and_can_be_read_at_random(tmp_path):
    contents = [bytes([number % 251]) * (number % 700) for number in range(500)]
    written = [shards.write(str(tmp_path / name), iter(contents)) for name in ("a", "b")]
    assert written[0] == written[1] and written[0]["records"] == 500
    reader = shards.Reader(tmp_path / "a", 500)
    for index in (499, 0, 250):
        assert reader[index] == contents[index]
    assert texts.read_all(tmp_path / "a", 500) == contents
    assert [path.name for path in tmp_path.iterdir()] in (["a", "b"], ["b", "a"])  # nothing else is left


def test_an_empty_file_can_be_written_and_read(tmp_path):
    assert shards.write(str(tmp_path / "a"), [])["records"] == 0
    assert texts.read_all(tmp_path / "a", 0) == []


def test_a_file_that_fails_half_way_is_not_there(tmp_path):
    def contents():
        yield b"one"
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        shards.write(str(tmp_path / "a"), contents())
    assert list(tmp_path.iterdir()) == []


def test_another_file_system_gets_the_same_bytes(tmp_path):
    local = shards.write(str(tmp_path / "a"), [b"one", b"two"])
    assert shards.write("memory://shards/a", [b"one", b"two"]) == local
    assert fsspec.filesystem("memory").cat_file("/shards/a") == (tmp_path / "a").read_bytes()


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "a"
    shards.write(str(path), [np.random.default_rng(number).bytes(1_000) for number in range(200)])
    content = path.read_bytes()
    with pytest.raises(ValueError, match="none is missing, though the manifest lists it"):
        shards.Reader(tmp_path / "none", 200)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="a is damaged: 0 of 200 records can be read"):
        shards.Reader(path, 200)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a is damaged: 200 of 199 records"):
        shards.Reader(path, 199)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match="a is damaged at record "):
        texts.read_all(path, 200)
