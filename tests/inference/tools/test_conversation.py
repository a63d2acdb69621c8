"""Questions, calls and results, with a model whose answers are scripted."""

import pytest

from gemma3_jax.inference.tools import calls, conversation, schemas
from gemma3_jax.tokenizer import chat
from tests import texts

TOOLS = schemas.read(
    [
        {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
        {"name": "now"},
    ]
)
USER = {"role": "user", "content": "Add 2."}


class Script:
    """A model that gives its answers in order, and records the turns it gets."""

    def __init__(self, *answers: str):
        self.answers, self.prompts = list(answers), []

    def __call__(self, turns: list[dict]) -> str:
        self.prompts.append(turns)
        return self.answers[len(self.prompts) - 1]


def converse(model, turns=(USER,), **changes):
    made = []

    def run(call: calls.Call) -> object:
        made.append(call)
        return 40 + call.arguments["a"] if call.name == "add" else "noon"

    settings = {"run": run, "format": "python"} | changes
    return conversation.converse(model, turns, TOOLS, **settings), made


def test_a_call_is_made_and_what_it_gave_is_told_before_the_answer():
    model = Script("[add(a=2)]", "It is 42.")
    turns, made = converse(model)
    assert made == [calls.Call("add", {"a": 2})]
    assert turns == [
        USER,
        {"role": "model", "content": "[add(a=2)]"},
        {"role": "user", "content": "```tool_output\n42\n```"},
        {"role": "model", "content": "It is 42."},
    ]


def test_jsons_form_goes_the_same_way():
    model = Script('{"name": "add", "parameters": {"a": 2}}', "It is 42.")
    turns, made = converse(model, format="json")
    assert made == [calls.Call("add", {"a": 2})]
    assert [turn["content"] for turn in turns[2:]] == ['{"name": "add", "result": 42}', "It is 42."]


def test_several_calls_are_made_in_order_and_told_in_one_turn():
    turns, made = converse(Script("[now(), add(a=1)]", "So."))
    assert [call.name for call in made] == ["now", "add"]
    assert turns[2]["content"] == "```tool_output\nnoon\n```\n```tool_output\n41\n```"


def test_every_question_begins_with_the_tools_and_is_a_chat():
    model = Script("[now()]", "Noon.")
    turns, _ = converse(model, [{"role": "system", "content": "Be brief."}, USER])
    instructions = calls.instructions(TOOLS, "python")
    for prompt in model.prompts:
        assert chat.fold_system(prompt)[0] == ("user", f"{instructions}\n\nBe brief.\n\nAdd 2.")
        assert chat.prompt(texts.tokenizer(), prompt)
    assert turns[:2] == [{"role": "system", "content": "Be brief."}, USER]  # without the instructions


def test_a_conversation_is_gone_on_with():
    first, _ = converse(Script("Hello."))
    second, _ = converse(model := Script("[now()]", "Noon."), [*first, {"role": "user", "content": "When?"}])
    assert [turn["role"] for turn in second] == ["user", "model", "user", "model", "user", "model"]
    assert sum("The functions:" in turn["content"] for turn in model.prompts[-1]) == 1


@pytest.mark.parametrize(
    ("answer", "problem"),
    [("[add(b=2)]", "tool 'add' has no argument 'b'; it takes a"), ("[sub(a=2)]", "there is no tool 'sub'")],
)
def test_a_call_that_cannot_be_made_is_told_what_is_wrong_with_it(answer, problem):
    turns, made = converse(Script(answer, "[add(a=2)]", "It is 42."))
    assert turns[2]["content"].startswith(f"```tool_output\nerror: {problem}")
    assert turns[-1]["content"] == "It is 42." and len(made) == 1


@pytest.mark.parametrize("answer", ["[now()]", "[now(a=1)]"])
def test_a_model_that_goes_on_calling_is_stopped(answer):
    model = Script(*[answer] * 9)
    with pytest.raises(conversation.TooManyCalls, match="call 4 of a tool; at most 3 are made") as stopped:
        converse(model, max_calls=3)
    assert len(model.prompts) == 4 and len(stopped.value.turns) == 8
    assert stopped.value.turns[-1] == {"role": "model", "content": answer}


def test_calls_over_the_limit_are_not_made():
    made = []
    with pytest.raises(conversation.TooManyCalls, match="call 3 of a tool; at most 2 are made"):
        converse(Script("[now(), now(), now()]"), run=made.append, max_calls=2)
    assert not made


def test_as_many_calls_as_are_allowed_are_made():
    _, made = converse(Script("[now(), now()]", "Noon."), max_calls=2)
    assert len(made) == 2
    assert converse(Script("Hello."), max_calls=0)[0][-1]["content"] == "Hello."


def test_what_a_tool_raises_goes_through():
    def run(call: calls.Call) -> object:
        raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        converse(Script("[now()]"), run=run)


@pytest.mark.parametrize(
    ("turns", "changes", "problem"),
    [
        ([USER, {"role": "model", "content": "a"}], {}, "a conversation continues from a turn of the user"),
        ([], {}, "there is no turn of a user"),
        ([USER], {"format": "xml"}, "the format of calls is 'xml'"),
        ([USER], {"max_calls": -1}, "max_calls is -1; it must be >= 0"),
    ],
)
def test_what_is_no_conversation_is_refused_before_the_model_is_asked(turns, changes, problem):
    model = Script("Hello.")
    with pytest.raises(ValueError, match=problem):
        converse(model, turns, **changes)
    assert not model.prompts
