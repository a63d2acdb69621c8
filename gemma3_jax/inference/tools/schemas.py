"""Functions that a model may ask for: their names, what they are for, and the arguments they take."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from gemma3_jax.inference.tools import json_schema

_NO_ARGUMENTS = {"type": "object", "properties": {}}
# What may name arguments beside `properties`.
_COMBINING = {"$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "unevaluatedProperties"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tool:
    """A function; `parameters` is the JSON Schema of an object that has an argument by each name.

    Raises: ValueError if it has no name, or if `parameters` is no such schema.
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
                f"{what} is a schema of {self.parameters.get('type')!r:.60}; it must be one of an object "
                '({"type": "object", "properties": ...})'
            )

    def accepts(self) -> dict:
        """`parameters` without room for arguments that it does not name, unless it says itself whether there is any."""
        closed = {} if _COMBINING & set(self.parameters) else {"additionalProperties": False}
        return {**closed, **self.parameters}

    def check(self, arguments: Mapping) -> None:
        """Raises: ValueError if the tool does not take these arguments, saying which is unknown, missing or wrong."""
        schema = self.accepts()
        names = list(schema.get("properties", {}))
        takes = f"it takes {', '.join(names)}" if names else "it takes none"
        for name in arguments:
            is_open = schema.get("additionalProperties") is not False or "patternProperties" in schema
            if name not in names and not is_open:
                raise ValueError(f"tool {self.name!r} has no argument {name!r:.60}; {takes}")
        for name in schema.get("required", ()):
            if name not in arguments:
                raise ValueError(f"tool {self.name!r} lacks argument {name!r}, which it requires; {takes}")
        if found := json_schema.violation(schema, arguments):
            place, problem = found
            raise ValueError(f"{f'argument {place}' if place else 'what is asked'} of tool {self.name!r}: {problem}")


def read(listed: object) -> list[Tool]:
    """The tools in a list of {"name", "description", "parameters"}, or of {"type": "function", "function": such a one}.

    Raises: ValueError if it is no such list, is empty, or has a name twice.
    """
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"tools are {listed!r:.60}; they must be a list of one or more objects")
    tools = []
    for number, item in enumerate(listed):
        is_wrapped = isinstance(item, Mapping) and item.get("type") == "function" and "function" in item
        found = item["function"] if is_wrapped else item
        if not isinstance(found, Mapping) or not isinstance(found.get("name"), str):
            raise ValueError(
                f"tool {number} is {item!r:.60}; it must be an object with a name, a description and parameters, or "
                '{"type": "function", "function": such an object}'
            )
        fields = {name: found[name] for name in ("name", "description", "parameters") if found.get(name) is not None}
        if not isinstance(fields.get("description", ""), str) or not isinstance(fields.get("parameters", {}), Mapping):
            raise ValueError(
                f"tool {fields['name']!r} must have a description that is text and parameters that are a JSON Schema"
            )
        tools.append(Tool(**fields))
    check_names(tools)
    return tools


def check_names(tools: Sequence[Tool]) -> None:
    """Raises: ValueError if there are no tools, or two of one name."""
    names = [tool.name for tool in tools]
    if not names:
        raise ValueError("there are no tools; give one or more")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two tools have the name {twice!r}; a call could mean either")


def load(path: pathlib.Path) -> list[Tool]:
    """The tools in a JSON file, as `read` reads them.

    Raises: ValueError as `json_schema.load` and `read`, with the name of the file.
    """
    listed = json_schema.load(path)
    try:
        return read(listed)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def find(tools: Sequence[Tool], name: str) -> Tool:
    """The tool of a name.

    Raises: ValueError if there is none, saying which there are.
    """
    for tool in tools:
        if tool.name == name:
            return tool
    raise ValueError(f"there is no tool {name!r:.60}; there are: {', '.join(tool.name for tool in tools)}")


def schema(tools: Sequence[Tool]) -> dict:
    """The JSON Schema of one call, {"name": ..., "parameters": {...}}: text held to it calls one of the tools."""
    check_names(tools)
    return {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.name},
                    "parameters": json_schema.moved(tool.accepts(), f"/anyOf/{number}/properties/parameters"),
                },
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
            for number, tool in enumerate(tools)
        ]
    }
