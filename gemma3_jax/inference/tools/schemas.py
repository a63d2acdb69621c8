"""The tools that a model may call: names, descriptions, and schemas of their arguments."""

import dataclasses
import difflib
import pathlib
from collections.abc import Mapping, Sequence

from gemma3_jax.inference.tools import json_schema

_NO_ARGUMENTS = {"type": "object", "properties": {}}
# Keywords that may name arguments besides `properties`.
_SCHEMA_KEYS = ("parameters", "inputSchema", "input_schema")  # of OpenAI, of MCP, of Anthropic
# Keys of the same formats that do not change how a tool is called.
_IGNORED_KEYS = {
    *("strict", "return"),  # of OpenAI, of transformers
    *("title", "annotations", "outputSchema", "icons", "execution", "_meta"),  # of MCP
    *("cache_control", "input_examples", "defer_loading", "allowed_callers"),  # of Anthropic
    *("response", "behavior"),  # of Gemini
}
_COMBINING = {"$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "unevaluatedProperties"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tool:
    """A function. `parameters` is the JSON Schema of an object with its arguments.

    Raises: ValueError if it has no name, or if `parameters` is not the schema of an object.
    """

    name: str
    description: str = ""
    parameters: Mapping = dataclasses.field(default_factory=lambda: _NO_ARGUMENTS)

    def __post_init__(self):
        if not self.name.strip():
            raise ValueError("a tool has no name; give it one that is not empty")
        what = f"'parameters' of tool {self.name!r}"
        json_schema.check(self.parameters, what)
        if self.parameters.get("type") != "object":
            raise ValueError(
                f"{what} is a schema of {self.parameters.get('type')!r:.60}; it must be the schema of an object "
                '({"type": "object", "properties": ...})'
            )

    def accepts(self) -> dict:
        """`parameters`, closed to arguments it does not name unless it has a keyword that may allow them."""
        closed = {} if _COMBINING & set(self.parameters) else {"additionalProperties": False}
        return {**closed, **self.parameters}

    def check(self, arguments: Mapping) -> None:
        """Raises: ValueError naming the argument that is unknown, missing or of the wrong kind."""
        schema = self.accepts()
        names = list(schema.get("properties", {}))
        accepted = f"it takes {', '.join(names)}" if names else "it takes none"
        for name in arguments:
            is_open = schema.get("additionalProperties") is not False or "patternProperties" in schema
            if name not in names and not is_open:
                raise ValueError(f"tool {self.name!r} has no argument {name!r:.60}; {accepted}")
        for name in schema.get("required", ()):
            if name not in arguments:
                raise ValueError(f"tool {self.name!r} lacks argument {name!r}, which is required; {accepted}")
        if violation := json_schema.violation(schema, arguments):
            path, problem = violation
            raise ValueError(f"{f'argument {path}' if path else 'the arguments'} of tool {self.name!r}: {problem}")


def read(items: object) -> list[Tool]:
    """The tools in a list of {"name", "description", "parameters"}, or of {"type": "function", "function": such a one}.

    `parameters` may be called `inputSchema` (MCP) or `input_schema` (Anthropic).
    Raises: ValueError if it is not such a list, is empty, or has an unknown key or a name twice.
    """
    if not isinstance(items, list) or not items:
        raise ValueError(f"tools are {items!r:.60}; they must be a list of one or more objects")
    tools = []
    for number, item in enumerate(items):
        is_wrapped = isinstance(item, Mapping) and item.get("type") == "function" and "function" in item
        function = item["function"] if is_wrapped else item
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(
                f"tool {number} is {item!r:.60}; it must be an object with a name, a description and parameters, or "
                '{"type": "function", "function": such an object}'
            )
        name = function["name"]
        if is_wrapped:
            _check_keys(item, name, ("type", "function"))
        _check_keys(function, name, ("type", "name", "description", *_SCHEMA_KEYS))
        if function.get("type", "function") not in ("function", "custom"):
            raise ValueError(f"tool {name!r} is of type {function['type']!r:.60}; it must be of type 'function'")
        tools.append(Tool(name=name, **_description(function, name), **_parameters(function, name)))
    check_names(tools)
    return tools


def _check_keys(item: Mapping, name: str, known: Sequence[str]) -> None:
    """Raises: ValueError for the first key that is not known."""
    for key in item:
        if key not in known and key not in _IGNORED_KEYS:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"a tool has {', '.join(known)}"
            raise ValueError(f"tool {name!r} has a key {key!r:.60}, which is not known; {hint}")


def _description(function: Mapping, name: str) -> dict:
    description = function.get("description")
    if not isinstance(description, str | None):
        raise ValueError(f"tool {name!r} must have a description that is a string; it is {description!r:.60}")
    return {} if description is None else {"description": description}


def _parameters(function: Mapping, name: str) -> dict:
    keys = [key for key in _SCHEMA_KEYS if function.get(key) is not None]
    if len(keys) > 1:
        raise ValueError(f"tool {name!r} has both {keys[0]!r} and {keys[1]!r}; give one")
    if keys and not isinstance(function[keys[0]], Mapping):
        raise ValueError(f"tool {name!r} has {keys[0]} {function[keys[0]]!r:.60}; they must be a JSON Schema")
    return {"parameters": function[keys[0]]} if keys else {}


def check_names(tools: Sequence[Tool]) -> None:
    """Raises: ValueError if there are no tools, or two with one name."""
    names = [tool.name for tool in tools]
    if not names:
        raise ValueError("there are no tools; give one or more")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two tools have the name {twice!r}; a call would be ambiguous")


def load(path: pathlib.Path) -> list[Tool]:
    """The tools in a JSON file, in the format of `read`.

    Raises: ValueError as `json_schema.load` and `read`, with the name of the file.
    """
    items = json_schema.load(path)
    try:
        return read(items)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def find(tools: Sequence[Tool], name: str) -> Tool:
    """The tool with this name.

    Raises: ValueError that lists the tools, if there is none.
    """
    for tool in tools:
        if tool.name == name:
            return tool
    raise ValueError(f"there is no tool {name!r:.60}; there are: {', '.join(tool.name for tool in tools)}")


def call_schema(tools: Sequence[Tool]) -> dict:
    """The JSON Schema of one call of any of the tools: {"name": ..., "parameters": {...}}."""
    check_names(tools)
    return {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.name},
                    "parameters": json_schema.rebased(tool.accepts(), f"/anyOf/{number}/properties/parameters"),
                },
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
            for number, tool in enumerate(tools)
        ]
    }
