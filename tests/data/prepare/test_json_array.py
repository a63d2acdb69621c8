"""A JSON array is read one element at a time, however its bytes are cut; its faults are named with their places."""

import io
import json

import pytest

from gemma3_jax.data.prepare import json_array

ROWS = [
    {"text": 'a \\ "b" \u00e9\U0001f600'},
    {"n": [-12.5e3, True, None]},
    {},
    -7,
    "x]",
    [[], [1]],
    {"text": "z" * 300},
]


def elements(content: bytes) -> list:
    return list(json_array.elements(io.BytesIO(content).read))


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ensure_ascii", [False, True])
def test_the_elements_are_those_of_json_wherever_the_blocks_end(block, indent, ensure_ascii, monkeypatch):
    monkeypatch.setattr(json_array, "BLOCK", block)
    content = "\ufeff \n" + json.dumps(ROWS, indent=indent, ensure_ascii=ensure_ascii) + "\n\n"
    assert elements(content.encode()) == ROWS


class Watched(io.BytesIO):
    most = 0

    def read(self, size=-1):
        self.most = max(self.most, size)
        return super().read(size)


def test_memory_holds_a_block_and_not_the_file(monkeypatch):
    monkeypatch.setattr(json_array, "BLOCK", 1_000)
    file = Watched(json.dumps([{"text": "y" * 700}] * 1_000).encode())
    assert sum(len(row["text"]) for row in json_array.elements(file.read)) == 700_000
    assert file.most < 3_000


@pytest.mark.parametrize("block", [3, 1 << 20])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"text": "a"}', r"^line 1: '\{' where a JSON array begins with \[$"),
        ("\n\n", "^line 3: the end of the file where a JSON array begins"),
        (" [ ]", "^it is an empty JSON array$"),
        ('[{"a": 1},\n{"b" 2}]', r"^row 2, line 2: not JSON \(Expecting ':' delimiter\)$"),
        ('[{"a": 1}\n{"b": 2}]', r"^line 2: '\{' where a comma or \] follows row 1$"),
        ('[\n{"a": 1},\n', r"^row 2, line 3: not JSON \(Expecting value\)$"),
        ('[\n{"a": "x', r"^row 1, line 2: not JSON \(Unterminated string"),
        ('[{"a": 1}\n', r"^line 2: the end of the file where a comma or \] follows row 1$"),
        (
            '[{"a": 1}]\n[{"b": 1}]',
            r"^line 2: more text after the JSON array; a file with a row on each line has no \[",
        ),
        ("[1, " + "9" * 5_000 + "]", r"^row 2, line 1: not JSON that can be read \("),
    ],
)
def test_what_is_wrong_is_named_with_its_row_and_line(content, problem, block, monkeypatch):
    monkeypatch.setattr(json_array, "BLOCK", block)
    with pytest.raises(ValueError, match=problem):
        elements(content.encode())


def test_text_that_is_not_utf8_is_named():
    with pytest.raises(ValueError, match=r"^not UTF-8 \(invalid start byte\), after line 1$"):
        elements(b'["\xff"]')


def test_the_line_behind_which_text_is_not_utf8_is_that_of_the_file(monkeypatch):
    monkeypatch.setattr(json_array, "BLOCK", 64)
    lines = [b'{"a": %d}' % number for number in range(11)]
    with pytest.raises(ValueError, match=r"^not UTF-8 \(invalid start byte\), after line (8|9|10|11|12)$"):
        elements(b"[\n" + b",\n".join(lines) + b',\n"\xff"]')  # in line 13
