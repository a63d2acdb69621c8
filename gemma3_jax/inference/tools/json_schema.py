"""JSON, and JSON Schema: texts read strictly, schemas checked before they are used, values held to them."""

import copy
import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping

import jsonschema
import referencing
import referencing.exceptions
import referencing.jsonschema

_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
# Where schemas stand in a schema: as the value of a keyword, in its list, or in its map.
_IN_VALUES = (
    "items",
    "additionalProperties",
    "additionalItems",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contains",
)
_IN_VALUES += ("propertyNames", "not", "if", "then", "else")
_IN_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_IN_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SAYING_NOTHING = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
_SAYING_NOTHING |= {"$schema", "$id", "$anchor", "$defs", "definitions", "then", "else", "minContains", "maxContains"}
_SAYING_NOTHING |= {"contentEncoding", "contentMediaType"}


def read(text: str) -> object:
    """What a JSON text holds; an object has each name once, numbers are finite, whole ones are of 64 bits.

    Raises: ValueError saying what is wrong.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
        check_plain(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return value


def _unique(pairs: list) -> dict:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has {twice!r:.60} twice")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def check_plain(value: object) -> None:
    """Refuses numbers and text that other programs could not read back.

    Raises: ValueError saying which.
    """
    if isinstance(value, str):
        if re.search("[\ud800-\udfff]", value):
            raise ValueError("a text has half of a surrogate pair, which is no character")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number is too large for a float of 64 bits")
    elif isinstance(value, int):
        if not _MIN_INT <= value <= _MAX_INT:
            raise ValueError("a whole number is too large for 64 bits")
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            check_plain(name)
            check_plain(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_plain(inner)


def load(path: pathlib.Path) -> Mapping | list:
    """The object or list in a JSON file, as `read` reads it.

    Raises: ValueError if there is no such file, or if it holds something else.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; it must be a JSON file")
    try:
        value = read(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, Mapping | list):
        raise ValueError(f"{path} holds {value!r:.60}; it must hold an object or a list")
    return value


def check(schema: object, what: str = "the schema") -> None:
    """Refuses what is not a JSON Schema, has keywords that no draft knows, or refers to what it does not have.

    Names that begin with `x-` are anybody's own. `what` names the schema in the error.
    Raises: ValueError saying what is wrong, and where.
    """
    if not isinstance(schema, Mapping | bool):
        raise ValueError(f"{what} is {schema!r:.60}; a JSON Schema is an object, true or false")
    if isinstance(schema, Mapping) and not isinstance(schema.get("$schema", ""), str):
        raise ValueError(f"{what} is not a JSON Schema: $schema is {schema['$schema']!r:.60}, and must be text")
    try:
        check_plain(schema)
        validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        place = _place(error.absolute_path)
        raise ValueError(f"{what} is not a JSON Schema: {place and place + ': '}{error.message:.200}") from error
    except RecursionError as error:
        raise ValueError(f"{what} is nested too deep") from error
    except ValueError as error:
        raise ValueError(f"{what} is not a JSON Schema: {error}") from error
    known = {*jsonschema.Draft202012Validator.VALIDATORS, *validator.VALIDATORS, *_SAYING_NOTHING}
    resource = referencing.jsonschema.DRAFT202012.create_resource(schema)
    resolver = referencing.Registry().resolver_with_root(resource)
    for part in _parts(schema):
        for name in part:
            if name not in known and not name.startswith("x-"):
                raise ValueError(
                    f"{what} has a keyword {name!r:.60}, which JSON Schema does not know; a name of your own begins "
                    "with x-"
                )
        for name in ("$ref", "$dynamicRef"):
            try:
                resolver.lookup(part.get(name, "#"))
            except referencing.exceptions.Unresolvable as error:
                raise ValueError(
                    f"{what} refers to {part[name]!r:.60}, which it does not hold; put it under $defs and refer to "
                    "'#/$defs/NAME'"
                ) from error


def _parts(schema: object) -> Iterator[Mapping]:
    """A schema and all those in it, objects alone."""
    if not isinstance(schema, Mapping):
        return
    yield schema
    for name, value in schema.items():
        if name in _IN_VALUES:
            yield from _parts(value)
        if name in _IN_LISTS and isinstance(value, list | tuple):
            for inner in value:
                yield from _parts(inner)
        if name in _IN_MAPS and isinstance(value, Mapping):
            for inner in value.values():
                yield from _parts(inner)


def moved(schema: Mapping, pointer: str) -> dict:
    """A copy that means the same where it stands at `pointer` (such as `/anyOf/0`) in another schema."""
    result = copy.deepcopy({name: value for name, value in schema.items() if name not in ("$schema", "$id")})
    for part in _parts(result):
        if re.match(r"#(/|$)", part.get("$ref", "")):
            part["$ref"] = f"#{pointer}{part['$ref'][1:]}"
    return result


def violation(schema: Mapping | bool, value: object) -> tuple[str, str] | None:
    """Where in a value it is not what the schema asks (`a.b[0]`; "" for the whole), and how; None where it is.

    `format` is not checked: it is an annotation unless a reader says otherwise.
    """
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        # An empty registry: what a schema refers to is never fetched.
        found = jsonschema.exceptions.best_match(validator(schema, registry=referencing.Registry()).iter_errors(value))
    except RecursionError:
        return "", "it is nested too deep"
    return None if found is None else (_place(found.absolute_path), f"{found.message:.200}")


def _place(path: object) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
