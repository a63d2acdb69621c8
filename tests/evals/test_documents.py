"""Evaluation documents: what is read from which files, and the errors for files without documents."""

import bz2
import gzip
import json
import lzma
import zipfile

import pyarrow
import pytest
from pyarrow import parquet

from gemma3_jax.data.prepare import files
from gemma3_jax.evals import documents
from gemma3_jax.evals.documents import EvalChat, EvalDocument
from tests import texts


def test_rows_of_a_jsonl_file_are_documents_of_their_own_source_or_of_the_file(tmp_path):
    rows = ["one", {"text": "two\u2028 lines", "source": "news"}, {"text": "drei ü 日", "more": [1]}]
    path = tmp_path / "held.out.jsonl"
    texts.write_lines(path, rows)
    expected = [
        EvalDocument("held.out", "one"),
        EvalDocument("news", "two\u2028 lines"),
        EvalDocument("held.out", "drei ü 日"),
    ]
    assert documents.read(path) == expected
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in [{"text": "one"}, *rows[1:]]))
    assert documents.read(path) == expected  # without escapes, with a mark at the start, without an end


ROWS = b'{"text": "one"}\n{"text": "two", "source": "news"}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", ROWS),
        ("a.JSONL", ROWS),
        ("a.ndjson", ROWS),
        ("a.jsonl.gz", gzip.compress(ROWS, mtime=0)),
        ("a.NDJSON.GZ", gzip.compress(ROWS[:16], mtime=0) + gzip.compress(ROWS[16:], mtime=0)),
        ("a.jsonl.bz2", bz2.compress(ROWS)),
        ("a.jsonl.xz", lzma.compress(ROWS)),
        ("a.json", ROWS),
        ("a.jsonl", b'[{"text": "one"},\n {"text": "two", "source": "news"}]'),
        ("a.json", b'[{"text": "one"},\n {"text": "two", "source": "news"}]'),
        ("a.json.gz", gzip.compress(b'\xef\xbb\xbf[{"text": "one"}, {"text": "two", "source": "news"}]', mtime=0)),
    ],
)
def test_rows_are_read_as_rows_whatever_the_file_is_called(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert documents.read(tmp_path / name) == [EvalDocument("a", "one"), EvalDocument("news", "two")]
    assert documents.read(tmp_path) == documents.read(tmp_path / name)


def test_a_json_object_is_one_row_and_a_compressed_text_one_document(tmp_path):
    (tmp_path / "a.json").write_text('{"text": "one"}')
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"two {}", mtime=0))
    assert documents.read(tmp_path) == [EvalDocument("a", "one"), EvalDocument("b", "two {}")]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (
            "a.json",
            b"{",
            "is one JSON value over several lines, and no array of records; a record has its",
        ),
        ("a.json", b"[" * 100_000, r"not JSON that can be read \("),
        ("a.json", b'{"model_type": "gemma3"}', "line 1 has 'model_type'; a record has its text in 'text', or"),
        ("a.json", b'[{"text": "x"}, 3]', "row 2: a JSON int, not an object"),
        ("a.jsonl.gz", b"not packed", "cannot be read: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(ROWS * 99, mtime=0)[:-9], "cannot be read: Compressed file ended before"),
        ("a.jsonl.gz", gzip.compress(b"\xff", mtime=0), "line 1: not UTF-8"),
        ("a.jsonl.bz2", bz2.compress(ROWS)[:-5], "cannot be read: "),
        ("a.jsonl.xz", b"x", "cannot be read: "),
        ("a.jsonl.zst", b"x", "cannot be read: "),
        ("a.tar.gz", b"x", "cannot be read: it is a tar archive, which is not read; unpack it, and name its files"),
        ("a.ZIP", b"PK", "cannot be read: File is not a zip file"),
        ("a.parquet", b"PAR1", "cannot be read: "),
        ("a.pdf", b"%PDF\0", "is neither text nor Parquet"),
        ("a.txt", ROWS, "has JSON in its first line, and the name of a text; call it .jsonl"),
    ],
)
def test_what_is_neither_rows_nor_text_is_named(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"documents {tmp_path}/{name}.*{problem}"):
        documents.read(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        '{"compilerOptions": {"strict": true}}',
        '{// a comment\n"files": []}',
        '[1, {"text": "x"}]',
        "[]",
        '"text"',
        "[" * 100_000,
        "not JSON",
    ],
)
def test_json_without_rows_is_a_text_among_others(tmp_path, content):
    (tmp_path / "tsconfig.json").write_text(content)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(content.encode(), mtime=0))
    texts.write_lines(tmp_path / "b.jsonl", ["one"])
    assert documents.read(tmp_path) == [
        EvalDocument("a", content),
        EvalDocument("b", "one"),
        EvalDocument("tsconfig", content),
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[{"text": "x"}, 3]', "row 2: a JSON int, not an object"),
        ('{"text": 3}', "line 1 has 'text'; a record has its text in"),
        ('[{"messages": []}]', "row 1 has 'messages'; a record has its text in"),
        ('[{"source": "a {b}", "text": "x"}, {}]', "row 2: no text"),
        ('[{"text": "x"}, {"te', "not JSON"),
    ],
)
def test_json_with_a_row_in_it_is_rows_among_others_too(tmp_path, content, problem):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=rf"documents {tmp_path}/a.json.*{problem}"):
        documents.read(tmp_path)


@pytest.mark.parametrize("ending", files.UNREAD)
def test_what_data_cannot_be_prepared_from_is_refused_here_too(tmp_path, ending):
    (tmp_path / f"a{ending}").write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"a{ending} cannot be read: it is .*, which is not read"):
        documents.read(tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a", "a.json.txt"])
def test_any_other_file_is_one_document(tmp_path, name):
    (tmp_path / name).write_bytes(b"  first\r\n\n second \n")
    assert documents.read(tmp_path / name) == [
        EvalDocument(name.removesuffix(".txt").removesuffix(".md"), "  first\r\n\n second \n")
    ]


def test_a_directory_is_read_in_the_order_of_its_names_without_hidden_files(tmp_path):
    for name in ("b.txt", "a.jsonl", "under/c.txt", ".hidden", ".git/config", "under/.d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}\n{"text": "y", "source": "own"}' if "jsonl" in name else name)
    result = documents.read(tmp_path)
    assert result == [
        EvalDocument("a", "x"),
        EvalDocument("own", "y"),
        EvalDocument("b", "b.txt"),
        EvalDocument("under/c", "under/c.txt"),
    ]


def test_files_are_in_the_order_of_their_names_and_not_of_the_disk(tmp_path):
    names = [f"{number * 37 % 101:03}" for number in range(101)]
    for name in names:
        (tmp_path / f"{name}.txt").write_text(name)
    assert [document.source for document in documents.read(tmp_path)] == sorted(names)


def test_a_directory_whose_own_name_is_hidden_is_read(tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "a.txt").write_text("text")
    assert documents.read(tmp_path / ".cache") == [EvalDocument("a", "text")]


def test_documents_of_white_space_alone_are_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    texts.write_lines(path, ["", " \n\t", "x"])
    assert documents.read(path) == [EvalDocument("a", "x")]
    (tmp_path / "b.txt").write_text("\n\n")
    assert documents.read(tmp_path) == [EvalDocument("a", "x")]


@pytest.mark.parametrize(
    "make",
    [
        lambda d: (d / "a.txt").write_bytes(b""),
        lambda d: (d / "a.jsonl").write_bytes(b"\n"),
        lambda d: texts.write_lines(d / "a.jsonl", ["", "  "]),
        lambda d: None,
    ],
)
def test_nothing_to_read_is_an_error(tmp_path, make):
    make(tmp_path)
    for path in (tmp_path, *tmp_path.iterdir()):
        problem = r"is empty|has no text in it; name a \.jsonl file of rows"
        with pytest.raises(ValueError, match=rf"documents {tmp_path}.* ({problem})"):
            documents.read(path)


def test_a_path_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"documents .*none\.txt cannot be read: it does not exist; name a \.jsonl"):
        documents.read(tmp_path / "none.txt")


@pytest.mark.parametrize(
    "line, text",
    [
        (b'{"text": "a"', r"not JSON \(column 13: Expecting ',' delimiter\)"),
        (b"[" * 9**5, r"not JSON that can be read \("),
        (b'{"text": ' + b"9" * 9**4 + b"}", r"not JSON that can be read \("),
        (b'{"txt": "a"}', r'no text; a row is {"text": "\.\.\.", "source": "\.\.\."}'),
        (b'{"text": 3}', r"no text; "),
        (b'["a"]', r"a JSON list, not an object"),
        (b'{"text": "a", "source": 3}', r"source is 3; it must be a name, or absent"),
        (b'{"text": "a", "source": ""}', r"source is ''; it must be a name, or absent"),
        (b'{"text": "a\\ud800"}', r"text has half of a surrogate pair"),
        (b'{"text": "a", "source": "\\ud800"}', r"source is '\\ud800'; it must be a name, or absent"),
        (b'{"text": "\xff"}', r"not UTF-8 \(invalid start byte at byte 10 of the line\)"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "a text .* a chat; a file holds one of them: split it"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, line, text):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n' + line + b'\n{"text": "b"}\n')
    with pytest.raises(ValueError, match=rf"documents {path}, line (3: |1 is ){text}"):
        documents.read(tmp_path)


def test_a_text_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo \xe9\n")
    with pytest.raises(ValueError, match=r"documents .*a\.txt: line 2 is not UTF-8 \(invalid continuation byte\)"):
        documents.read(tmp_path)


def test_archives_globs_and_parquet_are_read_as_prepare_reads_them(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("in/a.jsonl", ROWS)
        archive.writestr("b.txt", "three")
    parquet.write_table(pyarrow.table({"text": ["four", "five"], "source": [None, "news"]}), tmp_path / "c.parquet")
    expected = [EvalDocument("b", "three"), EvalDocument("in/a", "one"), EvalDocument("news", "two")]
    assert documents.read(tmp_path / "all.zip") == expected
    expected += [EvalDocument("c", "four"), EvalDocument("news", "five")]
    assert documents.read(tmp_path) == documents.read(tmp_path / "*") == expected


TURNS = [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet"])
def test_chats_are_read_with_their_turns(tmp_path, form):
    rows = [{"messages": TURNS}, {"messages": [{"role": "system", "content": "Add."}, *TURNS], "source": "math"}]
    rows[0]["source"] = None
    path = tmp_path / f"a.{form}"
    if form == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows)))
    first, second = documents.read(path)
    assert first == EvalChat("a", tuple(TURNS)) and first.text == "5"
    assert (second.source, len(second.turns)) == ("math", 3)
    assert documents.read(tmp_path) == [first, second]
    for name in ("context", "memorization"):
        with pytest.raises(ValueError, match=rf"documents .*a\.{form} has chats \(a\), and {name} reads texts; perpl"):
            documents.read_texts(path, name)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "one"}, "field messages is absent, not a list of {role, content}"),
        (
            {"messages": [{"role": "bot", "content": "x"}]},
            "turn 0 is of role 'bot', which is not known; roles are user",
        ),
        ({"messages": [{"role": "user"}]}, "turn 0 of field messages has no content; a turn is"),
        ({"messages": TURNS[:1]}, "the last turn is of role 'user'; a chat to train on ends with a model turn"),
        ({"messages": TURNS, "tools": [{}]}, "the row has tools beside messages, which would be dropped"),
    ],
)
def test_a_chat_that_cannot_be_scored_is_named(tmp_path, row, problem):
    rows = [{"messages": TURNS}] * 20 + [row]  # of the first 20, the format is recognized
    path = texts.write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=f"documents {path}, line 21: {problem}"):
        documents.read(tmp_path)


def test_the_digest_changes_with_every_text_source_and_order():
    first, second = EvalDocument("a", "bc"), EvalDocument("ab", "c")
    lists = [
        [first],
        [second],
        [EvalDocument("b", "bc")],
        [EvalDocument("a", "b")],
        [first, second],
        [second, first],
        [first, first],
        [EvalChat("a", tuple(TURNS))],
        [EvalChat("a", tuple(TURNS * 2))],
        [],
    ]
    assert len({documents.digest(each) for each in lists}) == len(lists)
    assert documents.digest([first]) == documents.digest([EvalDocument("a", "bc")])
