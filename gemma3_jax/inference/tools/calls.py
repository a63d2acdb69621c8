"""Tool calls as text, in the two formats that Gemma 3 is prompted for; it has no special tokens for them.

    json     {"name": "weather", "parameters": {"city": "Paris"}}
    python   [weather(city="Paris")]     alone, in print(...), or in a fence of tool_code

A tool's result goes back in a turn of the user. Source: ai.google.dev, "Function calling with Gemma".
"""

import ast
import dataclasses
import json
import keyword
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence

from gemma3_jax.inference.tools import json_schema, schemas

FORMATS = ("json", "python")
_FORMAT_INSTRUCTIONS = {
    "json": (
        "To call one, answer with one JSON object and nothing else: "
        '{"name": NAME, "parameters": {ARGUMENT: VALUE, ...}}\nTo call several, answer with a list of such objects.'
    ),
    "python": (
        "To call one or more, answer with one list and nothing else: [NAME(ARGUMENT=VALUE, ...), NAME(ARGUMENT=VALUE)]"
        "\nEvery argument is named, and every value is a literal."
    ),
}
_JSON_FENCE = re.compile(r"```(?:json|tool_call|tool_code)?[ \t]*\n(.*?)(?:```[ \t]*(?:\n|\Z)|\Z)", re.DOTALL)
_JSON_CALL = re.compile(r'\s*\[?\s*\{\s*"(?:name|parameters)"\s*:')
_PYTHON_FENCE = re.compile(r"```tool_code[ \t]*\n(.*?)(?:```[ \t]*(?:\n|\Z)|\Z)", re.DOTALL)
_PYTHON_LIST = re.compile(r"\[\s*([^\W\d][\w.]*)\s*\(")
_PYTHON_CALL = re.compile(r"(?:print\s*\(\s*\[?\s*)?([^\W\d]\w*)\s*\(.*\)\Z", re.DOTALL)
_OF_PRINT = ("sep", "end", "flush")  # they change nothing of a call that is printed
_JSON_NAMES = {"true": True, "false": False, "null": None}  # models write them in Python, too


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a known tool, with arguments that the tool accepts."""

    name: str
    arguments: Mapping


def check_format(tools: Sequence[schemas.Tool], format: str) -> None:
    """Raises: ValueError if the format is unknown, or if calls of one of the tools cannot be written in it."""
    if format not in FORMATS:
        raise ValueError(f"the format of calls is {format!r}; it must be one of: {', '.join(FORMATS)}")
    schemas.check_names(tools)
    if format == "python":
        for tool in tools:
            for name in (tool.name, *tool.parameters.get("properties", {})):
                if not name.isidentifier() or keyword.iskeyword(name):
                    raise ValueError(
                        f"tool {tool.name!r} has the name {name!r}, which is not an identifier in Python; "
                        "use format json"
                    )


def instructions(tools: Sequence[schemas.Tool], format: str) -> str:
    """The text that lists a model's tools and how to call them; it goes before the user's first turn.

    Raises: ValueError as `check_format`.
    """
    check_format(tools, format)
    listed = ",\n".join(json.dumps(dataclasses.asdict(tool), ensure_ascii=False) for tool in tools)
    return (
        f"You can call functions. {_FORMAT_INSTRUCTIONS[format]}\nWhat they return comes in the next turn. "
        f"Where no function is needed, answer in words.\n\nThe functions:\n[{listed}]"
    )


def parse(text: str, tools: Sequence[schemas.Tool], format: str) -> list[Call] | None:
    """The calls in a text that a model wrote, in order; None if it is an answer in words.

    A call stands alone, or in a fence among words. A call in Python is parsed, never run; its arguments are literals.
    Raises: ValueError as `check_format`; if a call is cut off, malformed, of an unknown tool, or with arguments that
    the tool does not accept.
    """
    check_format(tools, format)
    try:
        parsed = (_parse_json if format == "json" else _parse_python)(text, tools)
        for call in parsed:
            schemas.find(tools, call.name).check(call.arguments)
    except RecursionError as error:
        raise ValueError("the call is nested too deeply") from error
    return parsed or None


def result_turn(call: Call, result: object, format: str) -> str:
    """The text of the user turn that has the result of a call. It is JSON; in format python, strings stay as they are.

    Raises: ValueError if JSON cannot hold the result.
    """
    try:
        result_json = json.dumps(result, ensure_ascii=False, allow_nan=False)
        result_json.encode()  # fails on an unpaired surrogate
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"tool {call.name!r} returned a {type(result).__name__} that is not JSON: {error}") from error
    if format == "json":
        return f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "result": {result_json}}}'
    return _fenced(result if isinstance(result, str) else result_json)


def error_turn(problem: str, format: str) -> str:
    """The text of the user turn that has the reason why a call was not made."""
    return json.dumps({"error": problem}, ensure_ascii=False) if format == "json" else _fenced(f"error: {problem}")


def _fenced(text: str) -> str:
    """The text in a fence that it cannot close: one longer than any in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}tool_output\n{text}\n{fence}"


def _parse_json(text: str, tools: Sequence[schemas.Tool]) -> list[Call]:
    calls: list[Call] = []
    for body in [text] if _JSON_CALL.match(text) else _JSON_FENCE.findall(text):
        if not _JSON_CALL.match(body):
            continue
        try:
            value = json_schema.read(body)
        except ValueError as error:
            raise ValueError(f"the call is not JSON: {error}") from error
        items = value if isinstance(value, list) else [value]
        if any(_is_call(item, tools) for item in items):
            calls += [_call(item, tools) for item in items]
    return calls


def _is_call(item: object, tools: Sequence[schemas.Tool]) -> bool:
    """Whether a value is a call; an object with a name alone may be an answer that describes a person."""
    return isinstance(item, Mapping) and (
        {"name", "parameters"} <= set(item) or item.get("name") in [tool.name for tool in tools]
    )


def _call(item: object, tools: Sequence[schemas.Tool]) -> Call:
    is_valid = _is_call(item, tools) and set(item) <= {"name", "parameters"} and isinstance(item["name"], str)
    if not is_valid or not isinstance(item.get("parameters", {}), Mapping):
        raise ValueError(
            f"the call is {json.dumps(item, ensure_ascii=False):.80}; it must be an object with a name and parameters "
            "(an object) alone"
        )
    return Call(item["name"], item.get("parameters", {}))


def _parse_python(text: str, tools: Sequence[schemas.Tool]) -> list[Call]:
    names = [tool.name for tool in tools]
    if bodies := _PYTHON_FENCE.findall(text):
        return [call for body in bodies for call in _python_calls(body.strip(), names)]
    body = text.strip()
    listed, single = _PYTHON_LIST.match(body), _PYTHON_CALL.match(body)
    # "[see(1)] for more" is an answer, unless `see` is a tool.
    is_list = listed and (listed[1] in names or body.endswith(")]"))
    return _python_calls(body, names) if is_list or (single and single[1] in names) else []


def _python_calls(body: str, names: Sequence[str]) -> list[Call]:
    """The calls in a list, or alone on lines of their own."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # escapes such as "\d" print a warning
            statements = ast.parse(body).body
    except (SyntaxError, ValueError, MemoryError) as error:  # ValueError: a null byte; MemoryError: nested too deeply
        raise ValueError(f"the call {body!r:.80} is not Python: {error}") from error
    values = [statement.value if isinstance(statement, ast.Expr) else statement for statement in statements]
    return [_python_call(node, body) for value in values for node in _call_nodes(value, names)]


def _call_nodes(value: ast.AST, names: Sequence[str]) -> Iterator[ast.AST]:
    """The calls in lists and in calls of print, as in Google's examples; `print` may also be the name of a tool."""
    nodes = None
    match value:
        case ast.List():
            nodes = value.elts
        case ast.Call(func=ast.Name(id="print"), args=[_, *_]) if "print" not in names:
            if all(keyword_node.arg in _OF_PRINT for keyword_node in value.keywords):
                nodes = value.args
    if nodes is None:
        yield value
    for node in nodes or ():
        yield from _call_nodes(node, names)


def _python_call(node: ast.AST, body: str) -> Call:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError(f"{_source(node, body)} is not a call of a tool; a call is name(argument=value, ...)")
    name, arguments = node.func.id, {}
    if node.args:
        raise ValueError(
            f"the call of {name!r:.60} has {_source(node.args[0], body)} without a name; name every argument"
        )
    for keyword_node in node.keywords:
        if keyword_node.arg is None:
            raise ValueError(f"the call of {name!r:.60} has **{_source(keyword_node.value, body)}; name every argument")
        if keyword_node.arg in arguments:
            raise ValueError(f"the call of {name!r:.60} has argument {keyword_node.arg!r:.60} twice")
        arguments[keyword_node.arg] = value = _literal(keyword_node.value, keyword_node.arg, body)
        try:
            json_schema.check_plain(value)
        except ValueError as error:
            raise ValueError(f"argument {keyword_node.arg!r:.60} of {name!r:.60} is not JSON: {error}") from error
    return Call(name, arguments)


def _literal(node: ast.AST, argument: str, body: str) -> object:
    match node:
        case ast.Constant(value=str() | bool() | int() | float() | None):
            return node.value
        case ast.Name(id=name) if name in _JSON_NAMES:
            return _JSON_NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())) if not isinstance(
            node.operand.value, bool
        ):
            return -node.operand.value
        case ast.List() | ast.Tuple():
            return [_literal(inner, argument, body) for inner in node.elts]
        case ast.Dict() if all(isinstance(key, ast.Constant) and isinstance(key.value, str) for key in node.keys):
            names = [key.value for key in node.keys]
            if len(set(names)) == len(names):
                return {name: _literal(inner, argument, body) for name, inner in zip(names, node.values, strict=True)}
    raise ValueError(
        f"argument {argument!r:.60} has {_source(node, body)}; values are strings, numbers, True, False, None, and "
        "lists and dicts of these with each key once"
    )


def _source(node: ast.AST, body: str) -> str:
    return f"{(ast.get_source_segment(body, node) or type(node).__name__)!r:.60}"
