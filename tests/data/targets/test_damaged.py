"""Targets that are not what they should be are named before a student learns from them."""

import json
import shutil
import struct

import numpy as np
import pytest

from gemma3_jax.data import order, shards
from gemma3_jax.data.targets import codec
from gemma3_jax.data.targets import reader as targets_reader
from gemma3_jax.data.targets import writer as targets_writer
from gemma3_jax.distill import settings
from tests.data.targets import synthetic

ORDER = order.Order("data", synthetic.T, 4, 7, {"a": 1_000}, {"a": 1.0})
COUNTED = settings.Samples(estimator="sampled_counts", num_samples=8)
FILE = "part-00000/000000000000.array_record"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("targets") / "out"
    origin = targets_reader.made_of(
        ORDER, synthetic.TOP_8, tokenizer="tok", vocab_size=synthetic.V, teacher="wise", num_rows=2
    )
    with targets_writer.resume(path, origin) as writer:
        writer.write(range(2), [synthetic.stored(number, synthetic.TOP_8) for number in range(2)])
        writer.complete()
    return path


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written, tmp_path / "out")


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON that can be read .it is nested too deeply"),
        (b"[]", "is a list; it must be a JSON object"),
        (b"{}", "has no field format"),
        (b'{"format": 1}', "has no field made_of"),
        (b'{"format": 1, "made_of": [], "files": []}', "made_of is a list; it must be an object"),
        (b'{"format": 1, "made_of": {"a": "\xff"}, "files": []}', "is not UTF-8"),
    ],
)
def test_a_manifest_that_is_none_is_named(tmp_path, content, problem):
    (tmp_path / "targets.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path} is damaged: targets.json:? {problem}.*; copy the targets or"):
        targets_reader.open_targets(tmp_path)


@pytest.mark.parametrize(
    "edit, problem",
    [
        (lambda m: m.update(files={}), "files is an object; it must be a list"),
        (lambda m: m.update(files=["x"]), r"files\[0\] is 'x'; it must be a list"),
        (lambda m: m.update(files=[[FILE]]), r"files\[0\] has 1 entries; it must be a path and the number"),
        (lambda m: m.update(files=[[FILE, "3"]]), r"files\[0\]: records is '3'; it must be an integer"),
        (lambda m: m.update(files=[[FILE, 0]]), r"files\[0\] has 0 records; it must have at least 1"),
        (lambda m: m.update(files=[[3, 3]]), r"files\[0\]: path is 3; it must be text"),
        (lambda m: m.update(files=[["../x", 3]]), r"files\[0\] is '../x'; it must be a path below the directory of"),
        (lambda m: m.update(files=[["/etc/passwd", 3]]), r"files\[0\] is '/etc/passwd'; it must be a path below"),
        (lambda m: m["made_of"].update(num_rows="2"), "made_of: num_rows is '2'; it must be an integer"),
        (lambda m: m["made_of"].update(num_rows=0), "made_of.num_rows is 0; it must be at least 1"),
        (lambda m: m["made_of"].update(num_rows=10**12), "made_of.num_rows is 10{12}, and its files have 2 rows"),
        (lambda m: m["made_of"].update(num_samples=None), "made_of: num_samples is null; it must be an integer"),
        (lambda m: m["made_of"].update(temperature=[]), "made_of: temperature is a list; it must be a number"),
        (lambda m: m["made_of"].pop("teacher"), "made_of has no field teacher"),
    ],
)
def test_a_field_that_is_absent_or_of_another_kind_is_named(copy, edit, problem):
    manifest = json.loads((copy / "targets.json").read_text())
    edit(manifest)
    (copy / "targets.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"out is damaged: targets.json:? {problem}"):
        targets_reader.open_targets(copy)


@pytest.mark.parametrize("estimator", ["nobody", "top_k "])
def test_an_unknown_estimator_is_refused(copy, estimator):
    text = (copy / "targets.json").read_text()
    (copy / "targets.json").write_text(text.replace('"top_k"', f'"{estimator}"'))
    with pytest.raises(ValueError, match=f"out is damaged: estimator is '{estimator}'; it must be one of"):
        targets_reader.open_targets(copy)


def rewrite(path, record: bytes, ids=(0, 1)):
    shards.write(str(path / FILE), [np.array(ids, "<i8").tobytes(), record, record])


@pytest.mark.parametrize(("ids", "stated"), [((0,), 1), ((), 0), ((0, 1, 1), 3)])
def test_a_file_with_ids_of_other_rows_than_it_has_is_damaged(copy, ids, stated):
    rewrite(copy, synthetic.stored(0, synthetic.TOP_8), ids=ids)
    with pytest.raises(ValueError, match=rf"{FILE} is damaged: it has 2 rows, and ids of {stated}; copy the targets"):
        targets_reader.open_targets(copy)


def header_of(record: bytes, **changes) -> bytes:
    names = ("digest", "num_tokens", "num_slots", "num_weighted")
    fields = dict(zip(names, codec.HEADER.unpack_from(record), strict=True))
    return codec.HEADER.pack(*(fields | changes).values()) + record[codec.HEADER.size :]


GOOD = synthetic.stored(0, synthetic.TOP_8)
NUM_LEARNED = int(synthetic.row_of(0)["loss_mask"].sum())


def with_best_id(token: int) -> bytes:
    targets = synthetic.targets_of(0, synthetic.TOP_8)
    targets["best_id"] = np.full_like(targets["best_id"], token)
    return codec.encode(synthetic.row_of(0), targets, synthetic.TOP_8)


def with_id(token: int) -> bytes:
    targets = synthetic.targets_of(0, synthetic.TOP_8)
    targets["ids"][:, 3] = token
    return codec.encode(synthetic.row_of(0), targets, synthetic.TOP_8)


@pytest.mark.parametrize(
    "record, problem",
    [
        (b"", "it has 0 bytes, of which the header alone takes 28"),
        (GOOD[:20], "it has 20 bytes, of which the header alone takes 28"),
        (GOOD[:-1], f"it ends at byte {len(GOOD) - 1}, before all that its header promises"),
        (GOOD + b"abc", "it has 3 bytes more than its header promises"),
        (header_of(GOOD, num_tokens=2**32 - 1), "before all that its header promises"),
        (header_of(GOOD, num_slots=2**32 - 1), "before all that its header promises"),
        (header_of(GOOD, num_slots=7), "its header"),
        (header_of(GOOD, num_weighted=7), "its header"),
        (header_of(GOOD, num_tokens=NUM_LEARNED - 1), "its header promises"),
        (
            synthetic.stored(0, settings.Samples(estimator="top_k", num_samples=9)),
            r"it has 9 samples of \d+ tokens, not 8 of",
        ),
        (with_best_id(synthetic.V), f"it has token id {synthetic.V}, and the vocabulary has {synthetic.V}"),
        (with_id(synthetic.V + 5), f"it has token id {synthetic.V + 5}, and the vocabulary has"),
    ],
)
def test_a_record_that_is_none_is_named(copy, record, problem):
    rewrite(copy, record)
    stored = targets_reader.open_targets(copy)
    with pytest.raises(ValueError, match=f"{FILE} is damaged at record 1: .*{problem}.*; copy the targets again"):
        stored.read(0, synthetic.row_of(0))


def test_counts_that_do_not_add_up_are_refused():
    """They would be repeated as often as they say: a damaged count asks for any amount of memory."""
    record = synthetic.stored(0, COUNTED)
    assert len(codec.decode(record)["ids"]) == NUM_LEARNED
    damaged = record[:-1] + struct.pack("B", record[-1] + 200)
    with pytest.raises(ValueError, match=r"its counts are of \d+ samples, its header of \d+"):
        codec.decode(damaged)
