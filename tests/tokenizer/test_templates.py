"""The chat format in other programs' template languages says what `chat` says."""

import pytest

from gemma3_jax.tokenizer import chat, templates
from tests import texts

jinja2 = pytest.importorskip("jinja2", reason="jinja2 comes with the extra [interop]")

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A model."},
    {"role": "user", "content": "Which?"},
]


def render(turns, **options) -> str:
    def raise_exception(message):
        raise ValueError(message)

    # As Transformers and llama.cpp set it up.
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    template = environment.from_string(templates.JINJA)
    return template.render(messages=turns, bos_token="<bos>", **{"add_generation_prompt": False, **options})


def test_a_chat_is_rendered_as_it_is_encoded():
    tokenizer, text = texts.tokenizer(), render(TURNS, add_generation_prompt=True)
    assert text == (
        "<bos><start_of_turn>user\nBe brief.\n\nWho are you?<end_of_turn>\n"
        "<start_of_turn>model\nA model.<end_of_turn>\n<start_of_turn>user\nWhich?<end_of_turn>\n<start_of_turn>model\n"
    )
    ids = [tokenizer.bos, *tokenizer.encode(text.removeprefix("<bos>"), parse_control=True)]
    assert ids == chat.prompt(tokenizer, TURNS)


def test_spaces_around_a_turn_go_and_parts_of_a_turn_are_joined():
    parts = [{"type": "image"}, {"type": "text", "text": " What is it? "}]
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert render([system, {"role": "user", "content": parts}]) == (
        "<bos><start_of_turn>user\nBe brief.\n\n<start_of_image>What is it?<end_of_turn>\n"
    )
    assert render([{"role": "user", "content": "\n a  b \n"}]) == "<bos><start_of_turn>user\na  b<end_of_turn>\n"


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        (TURNS[2:], "Turns must alternate user/assistant"),
        ([TURNS[1], TURNS[3]], "Turns must alternate user/assistant"),
        ([{"role": "user", "content": 3}], "The content of a turn must be text or a list of parts"),
    ],
)
def test_what_is_no_chat_is_refused(turns, problem):
    with pytest.raises(ValueError, match=problem):
        render(turns)
