"""The records that a config draws are the same in every version: the text that is hashed for them is frozen."""

import pytest

from gemma3_jax.data import record_ids
from gemma3_jax.data.prepare import records, settings, sources
from tests import texts


def test_the_hash_key_of_a_record_is_this_text():
    assert record_ids.RecordId(0, 1, 3 << 40).hash_key() == "Place(source=0, file=1, position=3298534883328)"


def test_the_draws_of_records_are_these():
    """Golden: of version 0.1, where the text was that of a dataclass called Place."""
    keys = [record_ids.RecordId(0, 1, position).hash_key() for position in range(20)]
    draws = [records.uniform(0, "share", f"web/{key}") for key in keys]
    assert draws[:2] == [0.1571486078486651, 0.4455694249888923]
    assert [position for position, draw in enumerate(draws) if draw < 0.3] == [0, 2, 3, 6, 7, 8, 13, 16]
    assert records.uniform(7, "tokenizer", keys[2]) == pytest.approx(0.7752181185744927, abs=0)


def test_a_fraction_of_a_source_is_these_records(tmp_path):
    """Golden: of version 0.1, where the fraction was called share."""
    path = texts.write_lines(tmp_path / "in.jsonl", [f"row {number}" for number in range(20)])
    source = settings.SourceConfig(paths=(path,), fraction=0.3)
    drawn = [record.text for unit in sources.units({"web": source}) for record in sources.read(unit, source)]
    assert drawn == ["row 0", "row 1", "row 5", "row 9", "row 10"]


def test_records_are_ordered_by_source_file_and_position():
    ids = [record_ids.RecordId(0, 1, 5), record_ids.RecordId(0, 2, 0), record_ids.RecordId(1, 0, 3)]
    assert sorted(reversed(ids)) == ids
