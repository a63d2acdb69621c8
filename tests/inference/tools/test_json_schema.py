"""JSON is read strictly; schemas are checked before use, and keep their meaning where they are moved."""

import json
import os
import pathlib

import jsonschema
import pytest

from gemma3_jax.inference.tools import json_schema


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1,}', "at character [78]"),  # Python 3.13 names the comma, those before it what follows
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "an object has 'c' twice"),
        ('{"a": NaN}', "NaN is not a number in JSON"),
        ("[-Infinity]", "-Infinity is not a number in JSON"),
        ("1e999", "too large for a float of 64 bits"),
        (str(2**64), "too large for 64 bits"),
        ("9" * 5_000, "limit"),
        (r'"\ud800"', "half of a surrogate pair"),
        (r'{"\udfff": 1}', "half of a surrogate pair"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_other_programs_would_not_read_back_is_refused(text, problem):
    with pytest.raises(ValueError, match=problem):
        json_schema.read(text)


def test_the_rest_is_read_as_it_is():
    value = {"a": [1, -2.5, True, None, {"é": "😀\n"}], "b": -(2**63), "c": 2**64 - 1}
    assert json_schema.read(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "does not exist; it must be a JSON file"),
        (b"{", "is not JSON: Expecting property name"),
        (b'"\xff"', "is not JSON: 'utf-8' codec"),
        (b"3", "has 3; it must have an object or a list"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content, problem):
    if content is not None:
        (tmp_path / "schema.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"schema\.json {problem}"):
        json_schema.load(tmp_path / "schema.json")


def test_a_file_is_read(tmp_path):
    (tmp_path / "schema.json").write_text('{"title": "é"}', encoding="utf-8")
    assert json_schema.load(tmp_path / "schema.json") == {"title": "é"}


GOOD = [
    True,
    {},
    {"$defs": {"a": {"type": "integer"}}, "properties": {"b": {"$ref": "#/$defs/a"}, "propertys": False}},
    {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "null"}], "definitions": {"nil": {}}},
    {"title": "t", "default": 3, "examples": [3], "x-own": {"typ": 1}, "enum": [{"$ref": "#/nowhere"}]},
    {"$anchor": "top", "properties": {"a": {"$ref": "#top"}, "b": {"$ref": "#"}}},
    # Each refers to itself, and ends.
    {"type": "object", "properties": {"next": {"$ref": "#"}, "value": {"type": "integer"}}, "required": ["value"]},
    {"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["a"]},
    {"type": "array", "items": {"$ref": "#"}},
    {"type": ["array", "null"], "items": {"$ref": "#"}, "minItems": 1},
    {"type": "array", "prefixItems": [{"type": "string"}], "items": {"$ref": "#"}, "minItems": 1},
    {"type": "array", "prefixItems": [{"type": "string"}], "items": {"$ref": "#"}, "minItems": 1.0},
    {"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "string"}, "minItems": 2.0},
]


@pytest.mark.parametrize("schema", GOOD, ids=str)
def test_schemas_are_let_through(schema):
    json_schema.check(schema)


ENDLESS = "requires a value of itself inside each of its values, so that none can end; make"


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        (3, "mine is 3; a JSON Schema is an object, true or false"),
        ([], r"mine is \[\]; a JSON Schema is an object"),
        ({"properties": {"a": {"minimum": "x"}}}, r"properties\.a\.minimum: 'x' is not of type 'number'"),
        (
            {"typ": "object"},
            "mine has a keyword 'typ', which JSON Schema does not have; did you mean type",
        ),
        ({"own": 1}, "mine has a keyword 'own', which JSON Schema does not have; custom keywords begin with x-"),
        ({"properties": {"a": {"minimun": 1}}}, "mine has a keyword 'minimun', .*; did you mean minimum"),
        (
            {"anyOf": [{"items": {"type": "string", "nullable": True}}]},
            r"mine has a keyword 'nullable', .*; it is of OpenAPI: write \"type\": \[\"string\", \"null\"\]",
        ),
        (
            {"oneOf": [True], "discriminator": {"propertyName": "kind"}},
            "mine has a keyword 'discriminator', .*; it is of OpenAPI: leave it out, and give each schema of oneOf a",
        ),
        ({"properties": {"a": {"example": 3}}}, r"'example', .*; it is of OpenAPI: write \"examples\": \[...\]"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, f"mine {ENDLESS}"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, f"mine {ENDLESS}"),
        ({"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1.0}, f"mine {ENDLESS}"),
        ({"allOf": [{"$ref": "#"}]}, f"mine {ENDLESS}"),
        ({"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"oneOf": [{"$ref": "#"}]}}}, f"mine {ENDLESS}"),
        (
            {
                "properties": {"a": {"$ref": "#/$defs/a"}},
                "$defs": {"a": {"type": "array", "prefixItems": [{"$ref": "#/$defs/a"}], "minItems": 2}},
            },
            f"mine {ENDLESS}",
        ),
        ({"$ref": "#/$defs/a"}, r"mine refers to '#/\$defs/a', which is not in it; put it under \$defs"),
        ({"items": {"$ref": "https://example.com/a"}}, "mine refers to 'https://example.com/a'"),
        ({"pattern": "("}, r"mine is not a JSON Schema: pattern: '\(' is not a 'regex'"),
        ({"patternProperties": {"(": True}}, r"patternProperties: '\(' is not a 'regex'"),
        ({"const": float("nan")}, "mine is not a JSON Schema: a number is too large"),
    ],
)
def test_what_is_no_schema_is_refused_with_where_it_is_wrong(schema, problem):
    with pytest.raises(ValueError, match=problem):
        json_schema.check(schema, "mine")


def test_a_schema_means_the_same_where_it_is_moved_to():
    schema = {
        "$id": "https://example.com/list",
        "$defs": {"a/b": {"type": "integer"}},
        "type": "object",
        "properties": {"of": {"$ref": "#/$defs/a~1b"}, "next": {"$ref": "#"}},
        "required": ["of"],
    }
    outer = {"anyOf": [{"const": 1}, json_schema.rebased(schema, "/anyOf/1")]}
    json_schema.check(outer)
    assert "anyOf" not in json.dumps(schema)  # it was a copy
    for value in ({"of": 1, "next": {"of": 2}}, {"of": "x"}, {"of": 1, "next": {}}, {"of": 1, "next": {"of": "x"}}):
        is_good = json_schema.violation(schema, value) is None
        assert (json_schema.violation(outer, value) is None) == is_good
        assert jsonschema.Draft202012Validator(outer).is_valid(value) == is_good


def test_a_violation_says_where_and_what():
    schema = {"properties": {"a": {"items": {"properties": {"b": {"type": "string"}}}}}, "required": ["a"]}
    assert json_schema.violation(schema, {"a": [{"b": "x"}, {}]}) is None
    assert json_schema.violation(schema, {"a": [{}, {"b": 3}]}) == ("a[1].b", "3 is not of type 'string'")
    assert json_schema.violation(schema, {}) == ("", "'a' is a required property")
    assert json_schema.violation({"$ref": "#"}, 3) == ("", "it is nested too deeply")


def test_a_file_may_be_a_pipe_and_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "schema.json").write_bytes(b'\xef\xbb\xbf{"title": "a"}')
    assert json_schema.load(tmp_path / "schema.json") == {"title": "a"}
    read_end, write_end = os.pipe()
    os.write(write_end, b'{"title": "a"}')
    os.close(write_end)
    assert json_schema.load(pathlib.Path(f"/dev/fd/{read_end}")) == {"title": "a"}
    os.close(read_end)
    with pytest.raises(ValueError, match="is a directory; it must be a JSON file"):
        json_schema.load(tmp_path)
