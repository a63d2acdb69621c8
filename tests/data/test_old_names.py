"""What version 0.1 wrote still opens, though some of its names have changed."""

import json
import pathlib

import numpy as np
import pytest

from gemma3_jax.data import dataset, order, record_ids, shards
from gemma3_jax.data.targets import reader as targets_reader
from gemma3_jax.data.targets import writer as targets_writer
from tests.data.targets import synthetic

ORDER = order.Order("data", synthetic.T, 4, 7, {"a": 1_000}, {"a": 1.0})
# By hand, as 0.1 wrote it; a source, a reason and a language have names that are old names of fields.
MANIFEST = """{
 "format": 1, "version": "0.1.0",
 "digest": "ee376b26d50c295cb5af03024d5566d6688f01735010a8b4274729680364566f", "tokenizer": {"digest": "t1"},
 "sources": {"share": {"records": 3, "broken": 0, "changed": 0, "digest": "s1"}},
 "filter_inputs": "f1", "row_lengths": [64, 512],
 "parts": {"text/width": {"documents": 3, "tokens": 90, "characters": 400, "bytes": 400, "files": {
  "rows-00064": [{"path": "rows-00064/text/width/00000-of-00001.array_record", "records": 2, "bytes": 9,
                  "sha256": "x", "tokens": 90}],
  "rows-00512": [{"path": "rows-00512/text/width/00000-of-00001.array_record", "records": 1, "bytes": 8,
                  "sha256": "y", "tokens": 90}]}, "rows": {"64": 2, "512": 1}}},
 "dropped": {}, "mixture": {}, "settings": {"row_lengths": [64, 512]}
}"""
MADE_OF = """{
 "data": "data", "row_length": 40, "seed": 7, "mixture": "%s", "tokenizer": "tok", "vocab_size": 262144,
 "teacher": "wise", "num_rows": 3, "estimator": "top_k", "num_samples": 8, "temperature": 1.0
}"""


def made_of() -> dict:
    return json.loads(MADE_OF % ORDER.cursor(0)["mixture"])


def write_rows(path: pathlib.Path, numbers: range) -> None:
    content = [np.asarray(numbers, "<i8").tobytes(), *(synthetic.stored(n, synthetic.TOP_8) for n in numbers)]
    shards.write(f"{path}/part-00000/{numbers.start:012d}.array_record", content)


def test_a_data_set_opens(tmp_path):
    (tmp_path / "manifest.json").write_text(MANIFEST)
    data = dataset.open_dataset(tmp_path)
    assert data.manifest["seq_lens"] == [64, 512] and data.digest.startswith("ee376b26d50c")
    assert list(data.manifest["sources"]) == ["share"]  # a name of the user's, and none of ours
    rows = order.find(data, seq_len=64, batch_size=1, seed=0)
    assert rows.num_rows == {"text/width": 2} and rows.fractions == {"text/width": 1.0}
    with pytest.raises(
        ValueError, match=r"no sequences of 32 tokens \(it has: 64, 512\); prepare it with 32 in config.seq_"
    ):
        order.find(data, seq_len=32, batch_size=1, seed=0)


def test_documents_and_rows_are_read():
    """Records as 0.1 wrote them: msgpack maps with the keys place and learned."""
    document = bytes.fromhex(
        "87a5706c6163659300010aa66275636b6574a474657874a86c616e6775616765a2656ea6746f6b656e73c4080200000003000000"
        "a76c6561726e6564c40140aa6368617261637465727305a5627974657306"
    )
    read = shards.TokenizedDocument.from_bytes(document)
    assert read.record_id == record_ids.RecordId(0, 1, 10) and read.tokens.tolist() == [2, 3]
    assert read.loss_mask.tolist() == [False, True] and (read.num_characters, read.num_bytes) == (5, 6)
    assert read.to_bytes() == document
    row = bytes.fromhex(
        "84a6746f6b656e73c4080200000003000000a76c656e67746873c40402000000a76c6561726e6564c0a6706965636573919400010a07"
    )
    read = shards.PackedRow.from_bytes(row)
    assert read.spans == [(record_ids.RecordId(0, 1, 10), 7)] and read.loss_mask is None
    assert read.lengths.tolist() == [2] and read.to_bytes() == row


def test_targets_open(tmp_path):
    write_rows(tmp_path, range(3))
    manifest = {"format": 1, "made_of": made_of(), "files": [["part-00000/000000000000.array_record", 4]]}
    (tmp_path / "targets.json").write_text(json.dumps(manifest))
    stored = targets_reader.open_targets(tmp_path)
    assert stored.origin["seq_len"] == synthetic.T
    stored = stored.for_stage(ORDER, "tok", synthetic.TOP_8, vocab_size=synthetic.V, num_rows=3)
    assert stored.read(2, synthetic.row_of(2))["ids"].shape == (synthetic.T, 8)


def test_targets_that_were_begun_are_resumed(tmp_path):
    path = tmp_path / "out"
    write_rows(path, range(2))
    (path / ".teaching").mkdir()
    (path / ".teaching" / "begun-00000").write_text(json.dumps(made_of()))
    origin = targets_reader.made_of(
        ORDER, synthetic.TOP_8, tokenizer="tok", vocab_size=synthetic.V, teacher="wise", num_rows=3
    )
    with targets_writer.resume(path, origin) as writer:
        assert writer.missing.tolist() == [2]
        writer.write([2], [synthetic.stored(2, synthetic.TOP_8)])
        writer.complete()
    assert targets_reader.open_targets(path).origin == origin
    with pytest.raises(ValueError, match="out exists and is complete"), targets_writer.resume(path, origin):
        pass


def test_a_cursor_of_a_checkpoint_is_understood():
    old = {"next_step": 17, "data": "data", "row_length": 40, "rows_per_step": 4, "seed": 7}
    old["mixture"] = ORDER.cursor(0)["mixture"]
    assert ORDER.check_cursor(old) == []
    with pytest.raises(ValueError, match="trained on: seq_len was 80 and is 40; batch_size was 2 and is 4; restore it"):
        ORDER.check_cursor(old | {"row_length": 80, "rows_per_step": 2})
