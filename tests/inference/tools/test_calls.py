"""Calls in both forms: what is written is read back, and what is hostile or malformed is refused and never run."""

import json

import pytest

from gemma3_jax.inference.tools import calls, schemas

TOOLS = schemas.read(
    [
        {
            "name": "f",
            "description": "Takes anything.",
            "parameters": {"type": "object", "properties": {"a": {}, "b": {}}},
        },
        {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
        {"name": "now"},
    ]
)
VALUES = [
    "Paris",
    'a "quoted" \\ \n line\t ``` \'',
    "東京 😀 ▁ <end_of_turn>",
    "",
    0,
    -3,
    2**64 - 1,
    1.5e-7,
    -2.5,
    True,
    False,
    None,
    [],
    [1, [2, ["x"]], {}],
    {"k": {"é": [None]}, "": 1},
]


def written(call: calls.Call, format: str) -> str:
    if format == "json":
        return json.dumps({"name": call.name, "parameters": call.arguments}, ensure_ascii=False)
    return f"[{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})]"


@pytest.mark.parametrize("format", calls.FORMATS)
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_call_is_read_back_as_it_was_written(format, value):
    call = calls.Call("f", {"b": value, "a": [value]})
    (parsed,) = calls.parse(written(call, format), TOOLS, format)
    assert parsed == call and type(parsed.arguments["b"]) is type(value)
    assert list(parsed.arguments) == ["b", "a"]


F1, F2 = calls.Call("f", {"a": 1}), calls.Call("f", {"b": "```"})
PARIS, NOW = calls.Call("weather", {"city": "Paris"}), calls.Call("now", {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[f(a=1)]", [F1]),
        (" \n[f(a=1), now()]\n", [F1, NOW]),
        ("[f(a=1), \n  weather(city='Paris'),\n]", [F1, PARIS]),
        ("```tool_code\n[f(a=1)]\n```", [F1]),
        ("```tool_code\nnow()\nf(a=1)\n```", [NOW, F1]),
        ("I look it up.\n```tool_code\n[now()]\n```\nWait.\n```tool_code\nf(a=1)```\n", [NOW, F1]),
        ("```tool_code\n[now(), f(b='```')]\n```", [NOW, F2]),
        ("```tool_code\nnow()", [NOW]),  # generation stops where a fence would close
        ("now()", [NOW]),
        ("f(\n  a=1,  # one\n)", [F1]),
        ("[f(a='\\d')]", [calls.Call("f", {"a": "\\d"})]),
        ("[f(a=(1, -2), b='x' 'y')]", [calls.Call("f", {"a": [1, -2], "b": "xy"})]),
        ("It is 3 o'clock.", None),
        ("", None),
        ("[1] says so, and f(a=1) too", None),
        ("[see(1)] says so", None),
        ("[link](https://example.com)", None),
        ("Use `now()` for that.", None),
        ("print(now())", [NOW]),
        ("print( f(\n  a=1), weather(city='Paris'))", [F1, PARIS]),
        ("print([f(a=1), now()])", [F1, NOW]),
        ("[f(a=1), print(now())]", [F1, NOW]),
        ("[print(f(a=1)), print([now(), [f(a=1)]])]", [F1, NOW, F1]),
        ("print(f(a=1), sep='')", [F1]),
        ("print(f(a=1), now(), sep=', ', end='', flush=True)", [F1, NOW]),
        ("```tool_code\nprint(now(), end='')\n```", [NOW]),
        ("```tool_code\nprint(now())\nprint(f(a=1))\n```", [NOW, F1]),
        (
            "[f(a=true, b={'k': [null, false]})]",
            [calls.Call("f", {"a": True, "b": {"k": [None, False]}})],
        ),
        ("print('now()')", None),  # a bare call is one of a tool, or words
        ("print(3)", None),
        ("print(hello())", None),
        ("```python\nnow()\n```", None),
        ("[]", None),
    ],
)
def test_calls_in_pythons_form_are_told_from_words(text, expected):
    assert calls.parse(text, TOOLS, "python") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "f", "parameters": {"a": 1}}', [F1]),
        (' \n{"parameters": {"a": 1},\n "name": "f"}\n', [F1]),
        ('[{"name": "f", "parameters": {"a": 1}}, {"name": "now", "parameters": {}}]', [F1, NOW]),
        ('{"name": "now"}', [NOW]),
        ('```json\n{"name": "f", "parameters": {"a": 1}}\n```', [F1]),
        ('Look:\n```\n{"name": "f", "parameters": {"b": "```"}}\n```\n```tool_call\n{"name": "now"}\n```', [F2, NOW]),
        ("It is 3 o'clock.", None),
        ("", None),
        ('{"name": "Bob", "age": 3}', None),
        ('{"city": "Paris"}', None),
        ('{"city": "Pa', None),
        ("[1, 2]", None),
        ("```json\n[1, 2]\n```", None),
        ("3", None),
    ],
)
def test_calls_in_jsons_form_are_told_from_words(text, expected):
    assert calls.parse(text, TOOLS, "json") == expected


LITERALS = "values are strings, numbers, True, False, None, and lists and dicts"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[f(a=now())]", rf"argument 'a' has 'now\(\)'; {LITERALS}"),
        ("[f(a=[1, {'k': f(b=1)}])]", rf"argument 'a' has 'f\(b=1\)'; {LITERALS}"),
        ("[f(a=os.environ)]", rf"argument 'a' has 'os\.environ'; {LITERALS}"),
        ("[f(a=().__class__.__bases__)]", "argument 'a' has .*__bases__'; values are"),
        ("[f(a=b)]", "argument 'a' has 'b'; values are"),
        ("[f(a=f'{1}')]", "argument 'a' has .*; values are"),
        ("[f(a=(b := 1))]", "argument 'a' has 'b := 1'; values are"),
        ("[f(a := 1)]", "the call of 'f' has 'a := 1' without a name"),
        ("[f(a=lambda: 1)]", "argument 'a' has 'lambda: 1'; values are"),
        ("[f(a=[x for x in 'ab'])]", "argument 'a' has .*; values are"),
        ("[f(a=[*'ab'])]", "argument 'a' has .*; values are"),
        ("[f(a=1 + 1)]", r"argument 'a' has '1 \+ 1'; values are"),
        ("[f(a=-True)]", "argument 'a' has '-True'; values are"),
        ("[f(a=b'x')]", "argument 'a' has .*; values are"),
        ("[f(a=2j)]", "argument 'a' has '2j'; values are"),
        ("[f(a=...)]", "argument 'a' has .*; values are"),
        ("[f(a={1, 2})]", "argument 'a' has .*; values are"),
        ("[f(a={1: 2})]", "argument 'a' has .*; values are"),
        ("[f(a={**{}})]", "argument 'a' has .*; values are"),
        ("[f(a={'k': 1, 'k': 2})]", "argument 'a' has .* with each key once"),
        ("[f(a=0x" + "f" * 9_000 + ")]", "argument 'a' of 'f' is not JSON: an integer is too large for 64 bits"),
        ("[f(a=" + "9" * 9_000 + ")]", "is not Python: Exceeds the limit"),
        ("[f(a=-1e999)]", "argument 'a' of 'f' is not JSON: a number is too large for a float"),
        ("[f(a='\\ud800')]", "argument 'a' of 'f' is not JSON: a string has half of a surrogate pair"),
        ("[f(a=" + "[" * 5_000 + "]" * 5_000 + ")]", "is not Python: too many nested parentheses|nested too deeply"),
        ("[f(a=" + "-" * 90_000 + "1)]", "is not Python|nested too deeply"),
        ("[f('x')]", "the call of 'f' has \"'x'\" without a name; name every argument"),
        ("[f(*'x')]", "the call of 'f' has .* without a name"),
        ("[f(**{'a': 1})]", r"the call of 'f' has \*\*.*; name every argument"),
        ("[f(a=1, a=2)]", "the call of 'f' has argument 'a' twice"),
        ("[f.__call__(a=1)]", r"'f\.__call__\(a=1\)' is not a call of a tool"),
        ("```tool_code\nimport os\n```", "'import os' is not a call of a tool"),
        ("```tool_code\nx = now()\n```", "is not a call of a tool; a call is"),
        ("```tool_code\nprint(a=now())\n```", "argument 'a' has 'now"),
        ("```tool_code\nprint(now(), file=out)\n```", "the call of 'print' has .* without a name"),
        ("[now(), print('x')]", "'x'.* is not a call of a tool"),
        ("```tool_code\nprint('now')\n```", "'now'.* is not a call of a tool"),
        ("```tool_code\nprint()\n```", "there is no tool 'print'; there are: f"),
        ("[f(a=nil)]", "argument 'a' has 'nil'; values are"),
        ("[f(a=-null)]", "argument 'a' has '-null'; values are"),
        ("[now(), 3]", "'3' is not a call of a tool"),
        ("[weather(city='Par", r"the call .* is not Python"),
        ("[weather(city='Paris')] it is.", "the call .* is not Python"),
        ("[f(a='\0')]", "the call .* is not Python"),
        ("[wether(city='Paris')]", "there is no tool 'wether'; there are: f, weather, now"),
        ("[weather(town='Paris')]", "tool 'weather' has no argument 'town'; it takes city"),
        ("[weather()]", "tool 'weather' lacks argument 'city'"),
        ("[now(), weather(city=3)]", "argument city of tool 'weather': 3 is not of type 'string'"),
    ],
    ids=lambda text: text[:30].replace("\0", "0"),
)
def test_what_is_no_call_in_pythons_form_is_refused(text, problem):
    with pytest.raises(ValueError, match=problem):
        calls.parse(text, TOOLS, "python")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"name": "f", "parameters": {"a": 1}', "the call is not JSON: Expecting ',' delimiter at character 36"),
        ('{"name": "f", "parameters": {}} Done.', "the call is not JSON: Extra data at character 32"),
        ('{"name": "f", "parameters": {"a": 1, "a": 2}}', "the call is not JSON: an object has 'a' twice"),
        ('{"name": "f", "parameters": {"a": NaN}}', "the call is not JSON: NaN is not a number"),
        ('{"name": "f", "parameters": {"a": 1e999}}', "the call is not JSON: a number is too large"),
        ('{"name": "f", "parameters": {"a": ' + "[" * 9**5, "the call is not JSON: it is nested too deeply"),
        ('{"name": "f", "parameters": {}, "id": 3}', 'the call is .*"id": 3}; it must be an object with a name and'),
        ('{"name": "f", "parameters": [1]}', "the call is .*; it must be an object with a name and parameters"),
        ('{"name": 3, "parameters": {}}', "the call is .*; it must be an object with a name and parameters"),
        ('[{"name": "now"}, 3]', "the call is 3; it must be an object with a name and parameters"),
        ('```json\n{"name": "f", "parameters": {"a": }}\n```', "the call is not JSON: Expecting value"),
        ('{"name": "wether", "parameters": {}}', "there is no tool 'wether'; there are: f, weather, now"),
        ('{"name": "weather"}', "tool 'weather' lacks argument 'city'"),
        ('{"name": "weather", "parameters": {"city": null}}', "argument city of tool 'weather': None is not of type"),
    ],
    ids=lambda text: text[:50],
)
def test_what_is_no_call_in_jsons_form_is_refused(text, problem):
    with pytest.raises(ValueError, match=problem):
        calls.parse(text, TOOLS, "json")


@pytest.mark.parametrize("format", calls.FORMATS)
def test_instructions_have_the_form_and_every_tool(format):
    text = calls.instructions(TOOLS, format)
    listed = json.loads(text.partition("The functions:\n")[2])
    assert schemas.read(listed) == TOOLS
    assert ("[NAME(ARGUMENT=VALUE" in text) == (format == "python")
    assert ('{"name": NAME, "parameters"' in text) == (format == "json")


def test_a_result_goes_back_in_the_form_of_the_call():
    assert calls.result_turn(PARIS, {"é": 1.5}, "json") == '{"name": "weather", "result": {"é": 1.5}}'
    assert calls.result_turn(PARIS, "dry", "json") == '{"name": "weather", "result": "dry"}'
    assert calls.result_turn(PARIS, {"é": 1.5}, "python") == '```tool_output\n{"é": 1.5}\n```'
    assert calls.result_turn(PARIS, "dry\n```\nwet", "python") == "````tool_output\ndry\n```\nwet\n````"
    assert calls.error_turn("no", "json") == '{"error": "no"}'
    assert calls.error_turn("no", "python") == "```tool_output\nerror: no\n```"


@pytest.mark.parametrize("result", [{1, 2}, float("nan"), "\ud800", 10**9_999], ids=["set", "nan", "surrogate", "huge"])
@pytest.mark.parametrize("format", calls.FORMATS)
def test_a_result_that_is_no_json_is_refused(format, result):
    with pytest.raises(ValueError, match=f"tool 'weather' returned a {type(result).__name__} that is not JSON: "):
        calls.result_turn(PARIS, result, format)


def test_formats_that_there_are_not_are_refused():
    for function in (calls.instructions, lambda tools, format: calls.parse("", tools, format)):
        with pytest.raises(ValueError, match="the format of calls is 'xml'; it must be one of: json, python"):
            function(TOOLS, "xml")


@pytest.mark.parametrize("name", ["from", "a-b", "a.b"])
def test_names_that_python_cannot_write_are_refused_in_its_form_alone(name):
    argument = [schemas.Tool(name="f", parameters={"type": "object", "properties": {name: {}}})]
    for tools in (argument, [schemas.Tool(name=name)]):
        with pytest.raises(
            ValueError, match=f"has the name '{name}', which is not an identifier in Python; use format json"
        ):
            calls.instructions(tools, "python")
    call = calls.Call("f", {name: 1})
    assert calls.parse(written(call, "json"), argument, "json") == [call]


def test_a_tool_may_have_the_name_print():
    tools = [schemas.Tool(name="print", parameters={"type": "object", "properties": {"a": True}}), *TOOLS]
    assert calls.parse("print(a=1)", tools, "python") == [calls.Call("print", {"a": 1})]
    with pytest.raises(ValueError, match="the call of 'print' has .* without a name"):
        calls.parse("print(now())", tools, "python")
