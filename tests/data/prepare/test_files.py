"""What is named is read once and whole, or refused with the reason."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from gemma3_jax.data.prepare import files, settings, sources
from tests import texts
from tests.data.prepare import test_sources


def lines(*rows: str) -> bytes:
    return b"".join(json.dumps({"text": row}).encode() + b"\n" for row in rows)


def archive(path, members: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members.items():
            out.writestr(name, content)
    return str(path)


def all_texts(*paths, kind="jsonl") -> list[str]:
    return test_sources.all_texts(settings.SourceConfig(kind=kind, paths=paths))


def test_every_member_of_a_zip_is_read_in_the_order_of_the_names(tmp_path):
    members = {
        "b.jsonl": lines("three"),
        "under/a.jsonl": lines("four"),
        "a.jsonl.gz": gzip.compress(lines("one", "two")),
    }
    members |= {"__MACOSX/._b.jsonl": b"\x00\x05", "under/.DS_Store": b"\x00", "empty/": b""}
    path = archive(tmp_path / "a.zip", members)
    assert all_texts(path) == ["one", "two", "three", "four"]
    assert all_texts(archive(tmp_path / "B.ZIP", {"x.txt": b"one text"}), kind="text") == ["one text"]


def test_rows_and_problems_of_a_member_are_named(tmp_path):
    path = archive(tmp_path / "a.zip", {"a.jsonl": lines("one") + b"{\n"})
    [problem] = test_sources.problems(settings.SourceConfig(paths=(path,)))
    assert problem.startswith(f"zip://a.jsonl::{path}, line 2: not JSON")


def test_a_zip_of_one_file_gives_the_same_records_as_the_file(tmp_path):
    plain = texts.write_lines(tmp_path / "a.jsonl", ["one", "two"])
    packed = archive(tmp_path / "a.zip", {"a.jsonl": (tmp_path / "a.jsonl").read_bytes()})
    one, other = (test_sources.read(settings.SourceConfig(paths=(path,)))[1] for path in (plain, packed))
    assert one == other


def test_zstd_is_read_to_the_last_frame(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    path.write_bytes(zstandard.compress(lines("one", "two")) + skipped + zstandard.compress(lines("three")))
    assert all_texts(str(path)) == ["one", "two", "three"]
    [problem] = test_sources.problems(settings.SourceConfig(paths=(str(path),), fields=("x",)))[2:]
    assert problem == f"{path}, line 3: field x is absent, not text"


@pytest.mark.parametrize(
    ("cut", "problem"), [(1, "it ends in the middle of a frame"), (-4, "Unknown frame descriptor")]
)
def test_zstd_that_is_cut_off_or_followed_by_something_else_is_damaged(tmp_path, cut, problem):
    """The library's own reader returns what is there and ends."""
    content = zstandard.compress(lines(*(str(number) for number in range(5_000))))
    (tmp_path / "a.jsonl.zst").write_bytes(content[:-cut] if cut > 0 else content + b"junk")
    with pytest.raises(ValueError, match=f"a.jsonl.zst cannot be read: .*{problem}"):
        all_texts(str(tmp_path / "a.jsonl.zst"))


def test_zstd_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "a.jsonl.zst").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.jsonl.zst cannot be read: it is compressed with zstd; pip install"):
        all_texts(str(tmp_path / "a.jsonl.zst"))


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_every_part_of_a_compressed_file_is_read_and_a_cut_one_is_damaged(tmp_path, ending, pack):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(pack(lines("one")) + pack(lines("two")))
    assert all_texts(str(path)) == ["one", "two"]
    path.write_bytes(pack(lines(*(str(number) for number in range(5_000))))[:-10])
    with pytest.raises(ValueError, match=f"a.jsonl{ending} cannot be read: .*ended before"):
        all_texts(str(path))


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.TGZ", "a.jsonl.tar.zst", "a.tar.xz"])
def test_a_tar_archive_is_refused_by_its_name(tmp_path, name):
    with tarfile.open(tmp_path / name, "w") as out:
        out.addfile(tarfile.TarInfo("a.jsonl"), io.BytesIO())
    with pytest.raises(
        ValueError, match=rf"{name} cannot be read: it is a tar archive, which is not read; unpack it, and "
    ):
        all_texts(f"{tmp_path}/*")


@pytest.mark.parametrize(
    ("name", "what"),
    [("a.7z", "a 7z archive"), ("a.rar", "a rar archive"), ("a.jsonl.lz4", "with lz4"), ("a.jsonl.br", "with brotli")],
)
def test_what_cannot_be_unpacked_is_refused_by_its_name(tmp_path, name, what):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"{name} cannot be read: it is .*{what}, which is not read; unpack it"):
        all_texts(str(tmp_path / name))


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({}, "it is an archive without a file"),
        ({"a.zip": b"PK"}, "it has another archive in it, a.zip; unpack it, and name its files"),
        ({"a.tar.gz": b""}, "it is a tar archive, which is not read"),
    ],
)
def test_a_zip_with_nothing_to_read_is_refused(tmp_path, members, problem):
    with pytest.raises(ValueError, match=rf"a.zip cannot be read: {problem}.*\(config.sources.it\)"):
        all_texts(archive(tmp_path / "a.zip", members))


def test_a_damaged_zip_is_named(tmp_path):
    archive(tmp_path / "a.zip", {"a.jsonl": lines(*(str(number) for number in range(2_000)))})
    whole = (tmp_path / "a.zip").read_bytes()
    flipped = bytearray(whole)
    flipped[60:70] = bytes(10)
    locked = bytearray(whole)
    locked[6] |= 1  # it says that it is encrypted
    locked[whole.index(b"PK\x01\x02") + 8] |= 1
    for content in (b"", b"PK\x03\x04", whole[:-30], bytes(flipped), bytes(locked)):
        (tmp_path / "a.zip").write_bytes(content)
        with pytest.raises(ValueError, match=r"a.zip cannot be read: "):
            all_texts(str(tmp_path / "a.zip"))


def test_a_file_that_two_globs_match_is_read_once(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        texts.write_lines(tmp_path / name, [name])
    paths = (f"{tmp_path}/b*", f"{tmp_path}/*.jsonl", f"{tmp_path}/a.jsonl", f"{tmp_path}/./a.jsonl")
    assert all_texts(*paths) == ["b.jsonl", "a.jsonl"]


@pytest.mark.parametrize("prefix", ["file://", "local://", "file:"])
def test_a_local_file_is_one_however_it_is_written(tmp_path, monkeypatch, prefix):
    path = texts.write_lines(tmp_path / "a.jsonl", ["a"])
    packed = archive(tmp_path / "b.zip", {"x.jsonl": lines("b")})
    monkeypatch.chdir(tmp_path)
    assert all_texts(path, f"{prefix}{path}", f"{prefix}{tmp_path}/*.jsonl", f"{tmp_path}//a.jsonl") == ["a"]
    assert all_texts(packed, f"{prefix}{packed}", f"zip://x.jsonl::{packed}") == ["b"]
    assert [name for name, _, _ in files.find(f"{prefix}{path}")] == [path]


def test_a_member_may_have_two_colons_in_its_name(tmp_path):
    path = archive(
        tmp_path / "a.zip", {"std::string.jsonl": lines("one"), "b::c::d.txt.jsonl.gz": gzip.compress(lines("two"))}
    )
    assert all_texts(path) == ["two", "one"]
    for prefix in ("", "file://", "simplecache::file://"):
        assert all_texts(f"zip://std::string.jsonl::{prefix}{path}") == ["one"]


def test_what_a_library_can_unpack_is_read(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl.lz4").write_bytes(lines("one")[::-1])
    assert "lz4" not in files.fsspec.compression.compr
    with pytest.raises(ValueError, match="it is compressed with lz4, which is not read"):
        all_texts(f"{tmp_path}/a.jsonl.lz4")
    monkeypatch.setitem(files.fsspec.compression.compr, "lz4", lambda file, mode: io.BytesIO(file.read()[::-1]))
    monkeypatch.setitem(files.fsspec.utils.compressions, "lz4", "lz4")
    assert all_texts(f"{tmp_path}/a.jsonl.lz4") == ["one"]


def test_of_z_the_case_says_whether_it_is_compressed(tmp_path):
    (tmp_path / "a.z").write_bytes(b"a text")
    assert all_texts(f"{tmp_path}/a.z", kind="text") == ["a text"]
    (tmp_path / "a.jsonl.Z").write_bytes(b"\x1f\x9d")
    with pytest.raises(ValueError, match="a.jsonl.Z cannot be read: it is compressed with compress, which is not read"):
        all_texts(f"{tmp_path}/a.jsonl.Z")


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    assert all_texts(str(tmp_path / "a.txt"), kind="text") == ["one"]


@pytest.mark.parametrize(
    ("rows", "changes", "problem"),
    [
        ([b"{", b"[1]"], {}, "the first of 2 records, at .*a.jsonl, line 1: not JSON"),
        ([{"body": "x"}] * 3, {}, "the first of 3 records, at .*a.jsonl, line 1: field text is absent, not text"),
        (
            [{"conversations": [{"from": "human", "value": "hi"}]}],
            {"turns_field": "conversations"},
            "turn 0 of field conversations has no role; a turn is {role, content}, both text",
        ),
        (
            [{"messages": [{"role": "model", "content": "hi"}]}],
            {"turns_field": "messages"},
            "turn 0 is of role 'model' where 'user' is due",
        ),
        ([b"\xff\xfe", b"\xff"], {}, "line 1: not UTF-8"),
        (["x"], {"language_field": "lang"}, "field lang is None, not the name of a language"),
    ],
)
def test_a_source_of_which_nothing_can_be_read_is_an_error(tmp_path, rows, changes, problem):
    good = settings.SourceConfig(paths=(texts.write_lines(tmp_path / "good.jsonl", ["a text"]),))
    bad = settings.SourceConfig(paths=(texts.write_lines(tmp_path / "a.jsonl", rows),), **changes)
    with pytest.raises(
        ValueError, match=rf"source web has nothing that can be read; .*{problem}.*\(config.sources.web\)"
    ):
        texts.run(texts.config(tmp_path, {"good": good, "web": bad}), tmp_path / "out")


def test_of_a_binary_file_the_name_and_the_problem_are_shown(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4\n\xe2\xe3")
    source = settings.SourceConfig(kind="text", paths=(f"{tmp_path}/a.pdf",))
    with pytest.raises(ValueError, match=r"source web has nothing that can be read; .*a.pdf: line 2 is not UTF-8"):
        texts.run(texts.config(tmp_path, {"web": source}), tmp_path / "out")


def test_evaluation_sets_are_what_their_names_say(tmp_path):
    row = json.dumps({"question": "why"}).encode() + b"\n"
    for name in ("a.jsonl", "a.JSONL", "a.ndjson"):
        (tmp_path / name).write_bytes(row)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(row))
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfwhy")
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf[{"question": "why"},\n {"question": "why", "id": 3}]')
    (tmp_path / "a.json.bz2").write_bytes(bz2.compress(b'[{"question": "why"}]'))
    parquet.write_table(pyarrow.table({"question": ["why"]}), tmp_path / "a.parquet")
    archive(tmp_path / "a.zip", {"x.jsonl": row, "y.txt": b"why"})
    found = [text for _, text in sources.read_texts(f"{tmp_path}/a.*", ())]
    assert found == ["why"] * 11
    [_, (where, text)] = sources.read_texts(f"{tmp_path}/a.json", ("id", "question"))
    assert where == f"{tmp_path}/a.json, row 2" and text == "why"
    with pytest.raises(ValueError, match=r"none cannot be read: it does not exist \(config.decontamination.paths\)"):
        list(sources.read_texts(f"{tmp_path}/none", ()))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[]", "b.json cannot be read: it is an empty JSON array"),
        (b'{"data": [{"question": "why"}]}', "b.json cannot be read: line 1: '{' where a JSON array begins"),
        (b"", "b.json cannot be read: line 1: the end of the file where a JSON array begins"),
        (b'[{"question": "why"}, "why"]', "b.json, row 2: a JSON str, not an object"),
        (b'[{"question": "why"', "b.json cannot be read: row 1, line 1: not JSON"),
        (b"[" * 100_000, "b.json cannot be read: row 1, line 1: not JSON that can be read"),
        (b'["\xff"]', "b.json cannot be read: not UTF-8"),
    ],
)
def test_an_evaluation_set_in_one_json_value_is_a_list_of_rows(tmp_path, content, problem):
    (tmp_path / "b.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{problem}.*\(config.decontamination.paths\)"):
        list(sources.read_texts(f"{tmp_path}/b.json", ()))


def test_a_member_is_a_file_that_can_be_named(tmp_path):
    path = archive(tmp_path / "a.zip", {"a.jsonl": lines("one"), "b.jsonl": lines("two")})
    assert all_texts(f"zip://b.jsonl::{path}") == ["two"]
    assert [name for name, _, _ in files.find(path)] == [f"zip://{member}.jsonl::{path}" for member in "ab"]
