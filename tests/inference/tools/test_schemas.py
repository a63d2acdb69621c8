"""Tools are read from either usual form, take the arguments that they say, and make one schema of a call."""

import json

import numpy as np
import pytest

from gemma3_jax.inference.tools import calls, constrained, json_schema, schemas
from tests import texts

WEATHER = {
    "name": "weather",
    "description": "The weather of a city, naïve ▁.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 12},
            "days": {"type": "integer", "minimum": 1, "maximum": 12},
            "units": {"enum": ["C", "F"]},
            "at": {"type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/hour"}},
        },
        "required": ["city"],
        "$defs": {"hour": {"type": "object", "properties": {"hour": {"type": "integer", "maximum": 23, "minimum": 0}}}},
    },
}
WEATHER["parameters"]["$defs"]["hour"]["additionalProperties"] = False
NOW = {"name": "now"}
BOTH = schemas.read([WEATHER, NOW])


def test_both_usual_forms_are_read_alike(tmp_path):
    (tmp_path / "plain.json").write_text(json.dumps([WEATHER, NOW]))
    (tmp_path / "wrapped.json").write_text(
        json.dumps([{"type": "function", "function": item | {"strict": True}} for item in (WEATHER, NOW)])
    )
    assert schemas.load(tmp_path / "plain.json") == schemas.load(tmp_path / "wrapped.json") == BOTH
    assert BOTH[0].description == WEATHER["description"] and BOTH[0].parameters == WEATHER["parameters"]
    assert BOTH[1] == schemas.Tool(name="now", description="", parameters={"type": "object", "properties": {}})


@pytest.mark.parametrize(
    "item",
    [
        {"inputSchema": WEATHER["parameters"], "title": "Weather", "annotations": {"readOnlyHint": True}},  # MCP
        {"inputSchema": {"$schema": "http://json-schema.org/draft-07/schema#", **WEATHER["parameters"]}},
        {"input_schema": WEATHER["parameters"], "type": "custom", "cache_control": {"type": "ephemeral"}},  # Anthropic
        {"parameters": WEATHER["parameters"], "type": "function", "strict": True},  # OpenAI's responses
        {"parameters": WEATHER["parameters"], "inputSchema": None},
    ],
)
def test_tools_for_other_programs_keep_their_arguments(item):
    (tool,) = schemas.read([{"name": "weather", "description": WEATHER["description"]} | item])
    assert tool.parameters["properties"] == WEATHER["parameters"]["properties"]
    constrained.Grammars(texts.tokenizer(), texts.TOKENIZER_SIZE).schema(schemas.call_schema([tool]))
    with pytest.raises(ValueError, match="tool 'weather' lacks argument 'city'"):
        tool.check({})


@pytest.mark.parametrize(
    ("listed", "problem"),
    [
        ({"name": "a"}, "they must be a list of one or more objects"),
        ([], r"tools are \[\]; they must be a list"),
        ([3], "tool 0 is 3; it must be an object with a name"),
        ([NOW, {"description": "a"}], "tool 1 is .*; it must be an object with a name"),
        ([{"type": "function", "function": {}}], "tool 0 is .*; it must be an object with a name"),
        ([{"name": " "}], "a tool has no name"),
        ([{"name": "a", "description": 3}], "tool 'a' must have a description that is a string"),
        ([{"name": "a", "parameters": []}], r"tool 'a' has parameters \[\]; they must be a JSON Schema"),
        ([{"name": "a", "inputSchema": "x"}], "tool 'a' has inputSchema 'x'; they must be a JSON Schema"),
        ([{"name": "a", "input_schema": {"type": 3}}], "'parameters' of tool 'a' is not a JSON Schema: type: "),
        ([{"name": "a", "parametres": {}}], "tool 'a' has a key 'parametres', .*; did you mean 'parameters'"),
        ([{"name": "a", "inputschema": {}}], "tool 'a' has a key 'inputschema', .*; did you mean 'input_?[sS]chema'"),
        ([{"name": "a", "Description": ""}], "tool 'a' has a key 'Description', .*; did you mean 'description'"),
        (
            [{"name": "a", "code": ""}],
            "tool 'a' has a key 'code', which is not known; a tool has type, name, description",
        ),
        (
            [{"type": "function", "function": {"name": "a"}, "parameters": {}}],
            "tool 'a' has a key 'parameters', which is not known; a tool has type, function",
        ),
        (
            [{"name": "a", "parameters": {"type": "object"}, "inputSchema": {"type": "object"}}],
            "tool 'a' has both 'parameters' and 'inputSchema'; give one",
        ),
        ([{"type": "bash_20250124", "name": "bash"}], "tool 'bash' is of type 'bash_20250124'; it must be of type"),
        (
            [{"name": "a", "parameters": {"type": "string"}}],
            "'parameters' of tool 'a' is a schema of 'string'; .* schema of an object",
        ),
        ([{"name": "a", "parameters": {"type": "objekt"}}], "'parameters' of tool 'a' is not a JSON Schema: type: "),
        ([NOW, WEATHER, NOW], "two tools have the name 'now'"),
    ],
)
def test_lists_of_something_else_are_refused(tmp_path, listed, problem):
    (tmp_path / "tools.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=problem):
        schemas.load(tmp_path / "tools.json")


def test_the_file_is_named_in_the_error(tmp_path):
    (tmp_path / "tools.json").write_text("[]")
    with pytest.raises(ValueError, match=r"tools\.json: tools are \[\]"):
        schemas.load(tmp_path / "tools.json")


@pytest.mark.parametrize(
    "more",
    [
        {"return": {"type": "string"}},  # of transformers
        {"input_examples": [{"city": "Paris"}], "defer_loading": True, "allowed_callers": ["direct"]},  # of Anthropic
        {"response": {"type": "object"}, "behavior": "BLOCKING"},  # of Gemini
    ],
)
def test_keys_that_change_no_call_are_left_out(more):
    tool = {"name": "a", "description": "b", "parameters": {"type": "object", "properties": {"city": True}}}
    assert schemas.read([tool | more]) == schemas.read([{"type": "function", "function": tool | more}])
    assert schemas.read([tool | more]) == schemas.read([tool])


@pytest.mark.parametrize("arguments", [{"city": "é"}, {"city": "", "days": 12, "units": "F", "at": [{"hour": 0}, {}]}])
def test_arguments_that_a_tool_takes_pass(arguments):
    BOTH[0].check(arguments)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"city": "a", "town": "b"}, "tool 'weather' has no argument 'town'; it takes city, days, units, at"),
        ({"days": 1}, "tool 'weather' lacks argument 'city', which is required; it takes city"),
        ({"city": 3}, "argument city of tool 'weather': 3 is not of type 'string'"),
        ({"city": "a", "days": True}, "argument days of tool 'weather': True is not of type 'integer'"),
        ({"city": "a", "days": 13}, "argument days of tool 'weather': 13 is greater than the maximum of 12"),
        ({"city": "a", "units": "K"}, "argument units of tool 'weather': 'K' is not one of"),
        ({"city": "a", "at": [{}, {"hour": "x"}]}, r"argument at\[1\]\.hour of tool 'weather': 'x' is not of type"),
    ],
)
def test_arguments_that_a_tool_does_not_take_are_refused(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        BOTH[0].check(arguments)


def test_a_tool_without_arguments_says_so():
    with pytest.raises(ValueError, match="tool 'now' has no argument 'zone'; it takes none"):
        BOTH[1].check({"zone": 1})


def test_a_schema_that_says_what_else_it_takes_is_left_to_say_so():
    schemas.Tool(name="a", parameters={"type": "object", "additionalProperties": {"type": "string"}}).check({"b": "c"})
    schemas.Tool(name="a", parameters={"type": "object", "patternProperties": {"^b": True}}).check({"b": "c"})
    either = {"type": "object", "anyOf": [{"properties": {"b": True}, "required": ["b"]}, {"required": ["c"]}]}
    schemas.Tool(name="a", parameters=either).check({"b": "c"})
    with pytest.raises(ValueError, match="the arguments of tool 'a': "):
        schemas.Tool(name="a", parameters=either).check({"d": "c"})


def test_a_tool_that_there_is_not_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="there is no tool 'wether'; there are: weather, now"):
        schemas.find(BOTH, "wether")


@pytest.mark.parametrize("seed", range(30))
def test_text_held_to_the_schema_of_a_call_is_a_call(seed):
    constraint = constrained.Grammars(texts.tokenizer(), texts.TOKENIZER_SIZE).schema(schemas.call_schema(BOTH))()
    random, ids = np.random.default_rng(seed), []
    while not constraint.is_done:
        ids.append(int(random.choice(np.flatnonzero(constraint.allowed()))))
        constraint.consume(ids[-1])
    (call,) = calls.parse(texts.tokenizer().decode(ids), BOTH, "json")
    assert call.name in ("weather", "now")


def test_the_schema_of_a_call_is_one_and_has_the_references_of_each_tool():
    schema = schemas.call_schema(BOTH)
    json_schema.check(schema)
    for at, is_good in ([{"hour": 3}], True), ([{"hour": 24}], False), ([{"minute": 1}], False):
        call = {"name": "weather", "parameters": {"city": "a", "at": at}}
        assert (json_schema.violation(schema, call) is None) == is_good
    assert json_schema.violation(schema, {"name": "now", "parameters": {"city": "a"}})


def test_no_tools_make_no_schema():
    with pytest.raises(ValueError, match="there are no tools; give one or more"):
        schemas.call_schema([])
