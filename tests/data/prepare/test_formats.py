"""The format of a file is recognized once, from its name and first records, and named; or refused with the place."""

import gzip
import io
import json
import zipfile

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from gemma3_jax.data.prepare import formats, settings
from tests import texts
from tests.data.prepare import test_sources

TURNS = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
TURNS += [{"role": "assistant", "content": "yes"}]
TEXTS = [{"text": "one", "id": 1}, {"text": "two", "id": 2}]
CHATS = [{"messages": TURNS, "id": 1}, {"messages": TURNS[1:], "prompt": "hi"}]


def lines(rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def table(rows) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return out.getvalue()


@pytest.mark.parametrize(("rows", "is_chat"), [(TEXTS, False), (CHATS, True)], ids=["texts", "chats"])
@pytest.mark.parametrize(
    ("name", "kind", "pack"),
    [
        ("a.jsonl", "jsonl", lines),
        ("a.NDJSON", "jsonl", lines),
        ("a.json", "jsonl", lines),
        ("a.jsonl.gz", "jsonl", lambda rows: gzip.compress(lines(rows))),
        ("a.jsonl.zst", "jsonl", lambda rows: zstandard.compress(lines(rows))),
        ("a.zip", "jsonl", lambda rows: zipped(x_jsonl=lines(rows[:1]), y_jsonl=lines(rows[1:]))),
        ("a.json", "json", lambda rows: json.dumps(rows, indent=2).encode()),
        ("a.jsonl", "json", lambda rows: b"\xef\xbb\xbf" + json.dumps(rows).encode()),
        ("a.json.gz", "json", lambda rows: gzip.compress(json.dumps(rows).encode())),
        ("a.parquet", "parquet", table),
        ("part-0", "parquet", table),
    ],
)
def test_records_are_read_alike_from_every_format(tmp_path, name, kind, pack, rows, is_chat):
    (tmp_path / name).write_bytes(pack(rows))
    [(source_name, fields)] = formats.sources_of([str(tmp_path / name)]).items()
    assert source_name == f"{kind}_{'messages' if is_chat else 'text'}" and fields["kind"] == kind
    units, parts = test_sources.read(settings.SourceConfig(**fields))
    found = [record for part in parts for record in part]
    if is_chat:
        assert [record.texts for record in found] == [("be brief", "hi", "yes"), ("hi", "yes")]
        assert found[0].roles == ("system", "user", "assistant") and found[0].bucket == "chat"
    else:
        assert [(record.text, record.roles, record.bucket) for record in found] == [
            ("one", (), "text"),
            ("two", (), "text"),
        ]
    assert all(unit.version for unit in units), "a changed archive is another source"


def test_a_text_is_a_document(tmp_path):
    for name in ("a.txt", "b.md", "c"):
        (tmp_path / name).write_text(f"{{ this is {name}\n\nall of it")
    sources = formats.sources_of([f"{tmp_path}/*"])
    assert list(sources) == ["text"] and len(sources["text"]["paths"]) == 3
    assert test_sources.all_texts(settings.SourceConfig(**sources["text"]))[1] == "{ this is b.md\n\nall of it"


def test_files_of_several_formats_are_a_source_for_each_format(tmp_path):
    texts.write_lines(tmp_path / "a.jsonl", TEXTS)
    texts.write_lines(tmp_path / "b.jsonl", TEXTS)
    texts.write_lines(tmp_path / "c.jsonl", CHATS)
    (tmp_path / "d.txt").write_text("a text")
    sources = formats.sources_of([f"{tmp_path}/*.jsonl", f"{tmp_path}/d.txt"])
    assert {name: [path[-7:] for path in fields["paths"]] for name, fields in sources.items()} == {
        "jsonl_text": ["a.jsonl", "b.jsonl"],
        "jsonl_messages": ["c.jsonl"],
        "text": [f"{tmp_path}/d.txt"[-7:]],
    }
    described = [formats.describe(settings.SourceConfig(**fields)) for fields in sources.values()]
    assert described == ["JSON lines, texts in text", "JSON lines, chats in messages", "a text in each file"]


def test_a_record_that_cannot_be_read_does_not_decide_the_format(tmp_path):
    path = texts.write_lines(tmp_path / "a.jsonl", [b"{", {"other": 1}, {"messages": []}, {"text": "one"}])
    assert formats.recognize(path) == formats.Format("jsonl")
    source = settings.SourceConfig(**formats.sources_of([path])["jsonl_text"])
    assert len(test_sources.problems(source)) == 3


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", lines([{"text": "x"}, {"messages": TURNS}]), r"line 1 is a text and .*line 2 a chat; a file"),
        ("a.json", json.dumps([CHATS[0], TEXTS[0]]).encode(), "row 2 is a text and .*row 1 a chat; a file holds"),
        ("a.jsonl", lines([{"prompt": "p", "completion": "c"}]), "line 1 has 'prompt', 'completion'; a record has"),
        ("a.jsonl", lines([{"messages": "hi"}]), r"has 'messages'; a record .* \{role, content\} in 'messages'"),
        ("a.jsonl", b"{\n" * 30, r"a.jsonl, line 1: not JSON \("),
        ("a.jsonl", b'[{"text": "a"},\n{"text" 2}]', r"a.jsonl cannot be read: row 2, line 2: not JSON"),
        ("a.jsonl", b'["a", "b"]\n["c", "d"]', r"cannot be read: line 2: more text after the JSON array"),
        ("a.json", b'{\n "data": [{"text": "a"}]\n}', "a.json is one JSON value over several lines, and no array"),
        ("a.json", b'{"data": [{"text": "a"}]}', "a.json, line 1 has 'data'; a record has its text in 'text'"),
        ("a.txt", lines(TEXTS), "a.txt has JSON in its first line, and the name of a text; call it .jsonl"),
        ("a.jsonl", b"\n \n", "a.jsonl is empty"),
        ("a.doc", b"\xd0\xcf\x11\x00\x00", "a.doc is neither text nor Parquet: it has bytes of zero"),
        ("a.parquet", b"PAR0", "a.parquet cannot be read: "),
        ("a.parquet", table([{"body": "x"}]), "a.parquet, row 0 has 'body'; a record has its text in 'text'"),
        ("a.tar.gz", b"", "a.tar.gz cannot be read: it is a tar archive"),
    ],
)  # fmt: skip
def test_what_has_no_format_is_refused_with_its_place(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        formats.sources_of([str(tmp_path / name)])


def test_an_input_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none.jsonl cannot be read: it does not exist"):
        formats.sources_of([str(tmp_path / "none.jsonl")])
    with pytest.raises(ValueError, match=r"there is nothing in .*\*.jsonl"):
        formats.sources_of([f"{tmp_path}/*.jsonl"])
    with pytest.raises(ValueError, match="it is a directory; name its files, as"):
        formats.sources_of([str(tmp_path)])
