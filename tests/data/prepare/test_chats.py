"""A chat is learned as it is meant, or not at all."""

import numpy as np
import pytest

from gemma3_jax.data.prepare import chats, settings
from tests import texts

USER, MODEL = {"role": "user", "content": "hi"}, {"role": "model", "content": "yes"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, MODEL]},
        {"messages": (USER, MODEL), "id": 3, "source": "web", "language": "en"},
        {"messages": [USER, MODEL], "tools": [], "system": ""},
        {"messages": [USER, MODEL], "weight": 1, "train": True},
        {"messages": [USER, MODEL], "weight": None, "train": np.True_},
        # A column of text has JSON as text.
        {"messages": [USER, MODEL], "tools": "[]", "functions": "{}", "system": "null"},
        {"messages": [USER, MODEL | {"tool_calls": "[]", "name": " "}], "tools": " [] ", "system": "\n"},
        {"messages": [USER, MODEL | {"weight": np.float32(1), "tool_calls": np.array([])}], "tools": np.array([])},
        {"messages": [USER, MODEL], "embedding": np.array([1, 2])},
        {"messages": [USER, MODEL | {"weight": 1}]},
        {"messages": [USER, MODEL | {"weight": 1.0, "train": True}]},
        # As Parquet gives it: every turn has the keys of all.
        {"messages": [USER | {"weight": None, "name": None}, MODEL | {"tool_calls": None, "refusal": None}]},
        {"messages": [USER, MODEL | {"tool_calls": [], "name": ""}]},
    ],
)
def test_what_is_understood_is_taken(row):
    assert chats.problem(row, "messages") is None


@pytest.mark.parametrize(
    "row, problem",
    [
        ({}, "field messages is absent, not a list of {role, content}"),
        ({"messages": []}, "field messages is empty, not a list of {role, content}"),
        ({"messages": "hi"}, "field messages is a str, not a list of {role, content}"),
        ({"messages": USER}, "field messages is a dict, not a list of {role, content}"),
        ({"messages": ["hi"]}, "turn 0 of field messages is a str, not {role, content}"),
        (
            {"messages": [{"from": "human", "value": "hi"}]},
            "turn 0 of field messages has no role; a turn is {role, content}, both text",
        ),
        (
            {"messages": [USER, {"role": "model", "content": [{"type": "text", "text": "yes"}]}]},
            "turn 1 of field messages has a list as its content; a turn is {role, content}, both text",
        ),
        (
            {"messages": [USER, {"role": "model", "content": None, "tool_calls": [{"id": "1"}]}]},
            "turn 1 of field messages has no content; a turn is {role, content}, both text",
        ),
        (
            {"messages": [USER, MODEL | {"weight": 0}]},
            "turn 1 of field messages has weight 0; turns that are not to be learned are not supported",
        ),
        (
            {"messages": [USER, MODEL | {"train": False}]},
            "turn 1 of field messages has train False; turns that are not to be learned are not supported",
        ),
        (
            {"messages": [USER, MODEL | {"weight": 0.5}]},
            "turn 1 of field messages has 'weight' 0.5, which is not understood; only 1 is",
        ),
        (
            {"messages": [USER, MODEL | {"tool_calls": [{"id": "1"}]}]},
            "turn 1 of field messages has 'tool_calls', which is not understood; a turn is {role, content}",
        ),
        *(
            (
                {"messages": [USER, MODEL], key: value},
                f"the row has {key} {value}; turns that are not to be learned are not supported",
            )
            for key, value in [("weight", 0), ("weight", 0.0), ("train", False), ("train", 0), ("weight", np.int64(0))]
        ),
        ({"messages": [USER, MODEL], "weight": 0.5}, "the row has 'weight' 0.5, which is not understood; only 1 is"),
        ({"messages": [USER, MODEL], "train": "no"}, "the row has 'train' no, which is not understood; only 1 is"),
        ({"messages": np.array([])}, "field messages is a ndarray, not a list of {role, content}"),
        ({"messages": [USER, np.array([1, 2])]}, "turn 1 of field messages is a ndarray, not {role, content}"),
        (
            {"messages": [USER, MODEL | {"extra": np.array([1, 2])}]},
            "turn 1 of field messages has 'extra', which is not understood; a turn is {role, content}",
        ),
        (
            {"messages": [USER, MODEL | {"weight": np.array([0, 1])}]},
            "turn 1 of field messages has 'weight' [0 1], which is not understood; only 1 is",
        ),
        (
            {"messages": [USER, MODEL], "tools": np.array(["a", "b"])},
            "the row has tools beside messages, which would be dropped; put them into the turns",
        ),
        (
            {"messages": [USER, MODEL], "tools": '[{"name": "f"}]'},
            "the row has tools beside messages, which would be dropped; put them into the turns",
        ),
        (
            {"messages": [USER, MODEL | {"loss": False}]},
            "turn 1 of field messages has 'loss', which is not understood; a turn is {role, content}",
        ),
        (
            {"messages": [USER | {"name": "Jo"}, MODEL]},
            "turn 0 of field messages has 'name', which is not understood; a turn is {role, content}",
        ),
        (
            {"messages": [USER, MODEL | {"reasoning_content": "hm"}]},
            "turn 1 of field messages has 'reasoning_content', which is not understood; a turn is {role, content}",
        ),
        (
            {"messages": [USER, MODEL], "tools": [{"type": "function"}]},
            "the row has tools beside messages, which would be dropped; put them into the turns",
        ),
        (
            {"messages": [USER, MODEL], "system": "Be kind."},
            "the row has system beside messages, which would be dropped; put them into the turns",
        ),
        (
            {"messages": [USER, MODEL | {"content": "\ud800"}]},
            "turn 1 of field messages holds half a surrogate pair, which is no text",
        ),
    ],
)
def test_what_is_not_understood_is_named(row, problem):
    assert chats.problem(row, "messages") == problem


def test_a_turn_of_no_weight_is_not_learned(tmp_path):
    rows = [{"messages": [USER, MODEL]}, {"messages": [USER, MODEL | {"weight": 0, "content": "wrong"}]}]
    source = settings.SourceConfig(paths=(texts.write_lines(tmp_path / "a.jsonl", rows),), turns_field="messages")
    _, report = texts.run(texts.config(tmp_path, {"a": source}), tmp_path / "out")
    assert report["kept"]["documents"] == 1
    [example] = report["broken"]["examples"]
    assert example.endswith(
        "line 2: turn 1 of field messages has weight 0; turns that are not to be learned are not supported"
    )
