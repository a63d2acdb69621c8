import pytest

from gemma3_jax.durable import json_file

FIELDS = {
    "format": int,
    "rate": float,
    "made_of": {"name": str, "base": str | None},
    "lengths": list[int],
    "rows": dict[str, int],
    "pairs": list[list],
    "is_done": bool,
}
GOOD = {
    "format": 1,
    "rate": 2,
    "made_of": {"name": "x", "base": None},
    "lengths": [512],
    "rows": {"512": 3},
    "pairs": [["a", 1]],
    "is_done": False,
    "more": object,
}


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"", r"line 1, column 1"),
        (b'{"a": 1', r"is not JSON \(line 1, column 8"),
        (b'{\n"a": "\xff"}', r"is not UTF-8 \(invalid start byte in line 2\)"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested too deeply"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "is not JSON that can be read"),
        (b'{"a": ' + b"[" * 500 + b"1" + b"]" * 500 + b"}", "is nested more than 100 deep"),
        (b"[1]", "is a list; it must be a JSON object"),
        (b'"text"', "is 'text'; it must be a JSON object"),
        (b"null", "is null; it must be a JSON object"),
        (b"1" * 100, "is 1{40}; it must be a JSON object"),
    ],
)
def test_what_is_not_a_json_object_is_one_error_that_names_the_file(content, problem, tmp_path):
    with pytest.raises(ValueError, match=f"^config.json .*{problem}"):
        json_file.read_object(content, "config.json")
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path} .*{problem}"):
        json_file.read_object(path)


def test_an_object_is_read_with_a_byte_order_mark_too():
    assert json_file.read_object(b'\xef\xbb\xbf{"a": [1.5, "\xc3\xa9"]}', "x") == {"a": [1.5, "\xe9"]}


def test_fields_of_the_right_kinds_pass_and_others_are_not_looked_at():
    json_file.check(GOOD, FIELDS, "x", optional={"absent": int})


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"format": "1"}, "x: format is '1'; it must be an integer"),
        ({"format": True}, "x: format is true; it must be an integer"),
        ({"format": 1.0}, "x: format is 1.0; it must be an integer"),
        ({"format": 10**400}, "x: format is 10{39}; it must be an integer"),
        ({"rate": float("inf")}, "x: rate is Infinity; it must be a number"),
        ({"rate": None}, "x: rate is null; it must be a number"),
        ({"made_of": []}, "x: made_of is a list; it must be an object"),
        ({"made_of": {"base": None}}, "x: made_of has no field name"),
        ({"made_of": {"name": "\ud800", "base": None}}, r"x: made_of.name is '\\ud800'; it must be text"),
        ({"made_of": {"name": "x", "base": 1}}, "x: made_of.base is 1; it must be text or null"),
        ({"lengths": {"a": 1}}, "x: lengths is an object; it must be a list"),
        ({"lengths": [512, "x" * 100]}, r"x: lengths\[1\] is 'x{39}; it must be an integer"),
        ({"rows": {"512": [[]]}}, "x: rows.512 is a list; it must be an integer"),
        ({"pairs": [1]}, r"x: pairs\[0\] is 1; it must be a list"),
        ({"is_done": 0}, "x: is_done is 0; it must be true or false"),
        ({"more": 3}, "x: more is 3; it must be text"),
    ],
)
def test_a_field_of_another_kind_is_named(change, problem):
    with pytest.raises(ValueError, match=f"^{problem}$"):
        json_file.check(GOOD | change, FIELDS, "x", optional={"more": str})


def test_an_absent_field_is_named():
    with pytest.raises(ValueError, match="^x has no field format$"):
        json_file.check({}, FIELDS, "x")
