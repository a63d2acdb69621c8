"""Every kind of source gives its records, in an order that nobody else decides; what cannot be read is named."""

import bz2
import gzip
import json
import lzma

import fsspec
import pyarrow
import pytest
from pyarrow import parquet

from gemma3_jax.data.prepare import settings, source_kinds, sources
from tests import texts


def read(source):
    """Records and broken ones of a source, by unit."""
    named = {"it": source}
    units = sources.units(named)
    return units, [list(sources.read(unit, source)) for unit in units]


def all_texts(source):
    return [record.text for part in read(source)[1] for record in part]


def problems(source):
    units, parts = read(source)
    return [
        f"{sources.describe({'it': source}, units, broken.record_id)}: {broken.problem}"
        for records in parts
        for broken in records
        if isinstance(broken, sources.BrokenRecord)
    ]


def test_lines_come_in_order_from_all_files_of_a_glob(tmp_path):
    for name, rows in (("b.jsonl", ["three"]), ("a.jsonl", ["one", "two \u00e9\u6f22"])):
        texts.write_lines(tmp_path / name, rows)
    assert all_texts(settings.SourceConfig(paths=(f"{tmp_path}/*.jsonl",))) == ["one", "two \u00e9\u6f22", "three"]


@pytest.mark.parametrize("size", [1, 7, 50, 1_000])
def test_a_file_cut_anywhere_gives_every_line_once(tmp_path, monkeypatch, size):
    rows = [f"line {number} " + "x" * (number * 7 % 40) for number in range(40)]
    source = settings.SourceConfig(paths=(texts.write_lines(tmp_path / "a.jsonl", rows),))
    _, [whole] = read(source)
    monkeypatch.setattr(source_kinds, "BYTES_PER_UNIT", size)
    units, cut = read(source)
    assert [record for part in cut for record in part] == whole
    assert len(units) > 1 or size == 1_000


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_compressed_lines_are_unpacked(tmp_path, ending, pack):
    plain = tmp_path / "a.jsonl"
    texts.write_lines(plain, ["one", "two"])
    packed = tmp_path / f"a.jsonl{ending}"
    packed.write_bytes(pack(plain.read_bytes()))
    assert all_texts(settings.SourceConfig(paths=(str(packed),))) == ["one", "two"]


def test_any_file_system_of_fsspec_is_read():
    files = fsspec.filesystem("memory")
    for number in range(2):
        files.pipe_file(f"/bucket/{number}.jsonl", json.dumps({"text": f"remote {number}"}).encode() + b"\n")
    assert all_texts(settings.SourceConfig(paths=("memory://bucket/*.jsonl",))) == ["remote 0", "remote 1"]


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo", encoding="utf-8")
    assert all_texts(settings.SourceConfig(kind="text", paths=(f"{tmp_path}/*.txt",))) == ["one\n\ntwo"]


def test_parquet_row_groups_are_units(tmp_path):
    table = pyarrow.table({"text": [f"row {number}" for number in range(10)], "lang": ["en"] * 5 + ["de"] * 5})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    source = settings.SourceConfig(kind="parquet", paths=(f"{tmp_path}/a.parquet",), language_field="lang")
    units, parts = read(source)
    records = [record for part in parts for record in part]
    assert [len(part) for part in parts] == [4, 4, 2]
    assert [(record.record_id.position, record.text) for record in records] == [(n, f"row {n}") for n in range(10)]
    assert {record.language for record in records} == {"en", "de"}


@pytest.mark.slow
def test_the_standard_library_is_always_there_as_code_and_documentation():
    units, parts = read(settings.SourceConfig(kind="python"))
    records = [record for part in parts for record in part]
    assert {record.language for record in records} == {"python", "en"}
    assert sum(len(record.text) for record in records) > 5_000_000
    assert any("Parse (absolute and relative) URLs." in r.text for r in records if r.language == "en")
    assert len({record.record_id for record in records}) == len(records)


def test_parallel_text_joins_two_fields_and_is_a_bucket(tmp_path):
    path = texts.write_lines(tmp_path / "a.jsonl", [{"en": "dog", "is": "hundur"}])
    source = settings.SourceConfig(paths=(path,), fields=("en", "is"), bucket="parallel", language="en-is")
    [[record]] = read(source)[1]
    assert (record.text, record.bucket, record.language) == ("dog\nhundur", "parallel", "en-is")


def test_turns_are_a_chat(tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "model", "content": "yes"}]
    path = texts.write_lines(tmp_path / "a.jsonl", [{"messages": turns}, {"messages": "no"}])
    source = settings.SourceConfig(paths=(path,), turns_field="messages")
    [[record, broken]] = read(source)[1]
    assert (record.texts, record.roles) == (("hi", "yes"), ("user", "model"))
    assert broken.problem == "field messages is a str, not a list of {role, content}"


def test_a_share_is_taken_by_place_and_not_by_chance(tmp_path):
    path = texts.write_lines(tmp_path / "a.jsonl", [f"row {number}" for number in range(1_000)])
    taken = all_texts(settings.SourceConfig(paths=(path,), fraction=0.3))
    assert taken == all_texts(settings.SourceConfig(paths=(path,), fraction=0.3)) and 250 < len(taken) < 350


def test_what_cannot_be_read_is_named_with_its_line(tmp_path):
    rows = ["good", b'{"text": "cut', b'\xff{"text": "a"}', b"[1]", b'{"body": "a"}', b'{"text": 5}']
    rows += [b'{"text": "\\ud800"}', {"text": "x", "lang": 7}, b"", b"[" * 100_000, "good too"]
    path = texts.write_lines(tmp_path / "a.jsonl", rows)
    *others, nested = problems(settings.SourceConfig(paths=(path,)))
    assert nested.startswith(f"{path}, line 10: not JSON that can be read (maximum recursion depth exceeded")
    assert others == [
        f"{path}, line 2: not JSON (column 10: Unterminated string starting at)",
        f"{path}, line 3: not UTF-8 (invalid start byte at byte 0 of the line)",
        f"{path}, line 4: a JSON list, not an object",
        f"{path}, line 5: field text is absent, not text",
        f"{path}, line 6: field text is 5, not text",
        f"{path}, line 7: field text holds half a surrogate pair, which is no text",
    ]
    endless = settings.SourceConfig(
        paths=(
            texts.write_lines(
                tmp_path / "b.jsonl", [{"text": "x", "lang": "\u00e9" * 51}, {"text": "x", "lang": "en/../x"}]
            ),
        ),
        language_field="lang",
    )
    assert [line.rpartition(": ")[2][:16] for line in problems(endless)] == [
        "field lang is '\u00e9",
        "field lang is 'e",
    ]
    by_language = problems(settings.SourceConfig(paths=(path,), language_field="lang"))
    assert f"{path}, line 8: field lang is 7, not the name of a language" in by_language


def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo \xff\n")
    assert problems(settings.SourceConfig(kind="text", paths=(f"{tmp_path}/a.txt",))) == [
        f"{tmp_path}/a.txt: line 2 is not UTF-8 (invalid start byte)"
    ]


def test_a_damaged_file_is_named(tmp_path):
    whole = gzip.compress(b'{"text": "a"}\n' * 10_000)
    for name, content in (
        ("cut.jsonl.gz", whole[: len(whole) // 2]),
        ("no.jsonl.gz", b"not packed"),
        ("flipped.jsonl.xz", b"\xfd7zXZ\x00" + bytes(40)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read: "):
            read(settings.SourceConfig(paths=(str(tmp_path / name),)))
    (tmp_path / "a.parquet").write_bytes(b"PAR0")
    with pytest.raises(ValueError, match="a.parquet cannot be read: "):
        read(settings.SourceConfig(kind="parquet", paths=(str(tmp_path / "a.parquet"),)))
    with pytest.raises(ValueError, match="cannot be read: it is a directory; name its files"):
        read(settings.SourceConfig(paths=(str(tmp_path),)))
    with pytest.raises(ValueError, match="nosuch://a cannot be read: Protocol not known"):
        read(settings.SourceConfig(paths=("nosuch://a",)))


def test_a_byte_order_mark_and_a_huge_number_do_no_harm(tmp_path):
    path = texts.write_lines(
        tmp_path / "a.jsonl", [b'\xef\xbb\xbf{"text": "marked"}', b'{"text": "x", "n": ' + b"9" * 5_000 + b"}"]
    )
    assert problems(settings.SourceConfig(paths=(path,)))[0].startswith(f"{path}, line 2: not JSON that can be read")
    assert read(settings.SourceConfig(paths=(path,)))[1][0][0].text == "marked"


def test_a_parquet_cell_that_is_not_utf8_is_one_broken_record(tmp_path):
    cells = pyarrow.array([b"good", b"\xff", b"fine"], pyarrow.binary())
    table = pyarrow.table({"text": cells.view(pyarrow.string())})
    parquet.write_table(table, tmp_path / "a.parquet")
    source = settings.SourceConfig(kind="parquet", paths=(f"{tmp_path}/a.parquet",))
    assert problems(source) == [f"{tmp_path}/a.parquet, row 1: not UTF-8 (invalid start byte)"]
    assert len(read(source)[1][0]) == 3


def test_sources_without_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"source it is empty: there is nothing in .*none\* \(config\.sources\.it\)"):
        read(settings.SourceConfig(paths=(f"{tmp_path}/none*",)))
    with pytest.raises(ValueError, match=r"none.jsonl cannot be read: it does not exist \(config\.sources\.it\)"):
        read(settings.SourceConfig(paths=(f"{tmp_path}/none.jsonl",)))


def test_evaluation_sets_are_read_by_line_and_by_file(tmp_path):
    path = texts.write_lines(tmp_path / "quiz.jsonl", [{"question": "why", "answer": "because", "id": 3}])
    assert list(sources.read_texts(path, ())) == [(f"{path}, line 1", "why because")]
    assert list(sources.read_texts(path, ("question",))) == [(f"{path}, line 1", "why")]
    (tmp_path / "essay.txt").write_text("an essay")
    assert list(sources.read_texts(f"{tmp_path}/essay.txt", ())) == [(f"{tmp_path}/essay.txt", "an essay")]
    with pytest.raises(ValueError, match=r"line 1: not JSON .*decontamination\.paths"):
        list(sources.read_texts(texts.write_lines(tmp_path / "b.jsonl", [b"{"]), ()))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 1_000)[:20])
    with pytest.raises(ValueError, match="cut.jsonl.gz cannot be read: "):
        list(sources.read_texts(str(tmp_path / "cut.jsonl.gz"), ()))
    with pytest.raises(ValueError, match=r"there is nothing in .*none \(config\.decontamination\.paths\)"):
        list(sources.read_texts(f"{tmp_path}/*.none", ()))
