"""Rows of another form in a file of results are refused: each has to be the result of its item."""

import json

import pytest

from gemma3_jax.evals import context, documents, memorization, model_api, needle, perplexity, settings, task
from tests import texts
from tests.evals import stubs

DOCUMENTS = [
    documents.EvalDocument(text=f"def f{number}(x): return x * {number} ** 2\n" * 4, source=f"part {number % 2}")
    for number in range(4)
]


def model() -> model_api.ModelApi:
    score = stubs.scoring(stubs.of_last(2)).score

    def continue_(params, prompts, num_tokens, *, stop=True):
        return [[9] * num_tokens for _ in prompts]

    return model_api.ModelApi(tokenizer=texts.tokenizer(), score=score, continue_=continue_)


MADE = {
    "perplexity": lambda: perplexity.make(model(), DOCUMENTS, settings.Perplexity(window=40)),
    "context": lambda: context.make(model(), DOCUMENTS, settings.Context(lengths=(20, 40), last_tokens=8)),
    "memorization": lambda: memorization.make(
        model(), DOCUMENTS, settings.Memorization(num_samples=4, prefix_tokens=8, suffix_tokens=8)
    ),
    "needle": lambda: needle.make(
        model(), settings.Needle(kinds=("single", "common_words"), lengths=(600,), num_depths=2, num_samples=1)
    ),
}


def run(chosen: task.Task, path) -> dict:
    return task.run(chosen, stubs.no_params, model_id="toy", path=path)


@pytest.mark.parametrize("name", MADE)
def test_a_row_of_another_form_is_refused_and_one_that_was_written_is_read(name, tmp_path):
    chosen, path = MADE[name](), tmp_path / "results.jsonl"
    summary = run(chosen, path)
    assert run(chosen, path) == summary
    header, *rows = path.read_text().splitlines()
    row = json.loads(rows[1])
    needed = {
        "perplexity": ("document", "num_tokens", "nats"),
        "context": ("by_position", "by_length"),
        "memorization": ("source", "edits"),
        "needle": ("kind", "length", "depth_percent", "times", "score"),
    }[name]
    damaged = [{}, {"of": "another"}]
    damaged += [{key: value for key, value in row.items() if key != missing} for missing in needed]
    wrong = ("x", [], {}, 10**400, [None], -1, 1e9)
    damaged += [row | {key: value} for key in needed for value in wrong if (key, type(value)) != ("nats", float)]
    for other in damaged:
        content = "\n".join([header, rows[0], json.dumps(other), *rows[2:]]) + "\n"
        path.write_text(content)
        expected = rf"results\.jsonl is damaged: line 3 is not the result of item 2 of {name}; name another file, or"
        with pytest.raises(ValueError, match=expected):
            run(chosen, path)
        assert path.read_text() == content


@pytest.mark.parametrize("name", MADE)
def test_rows_in_another_order_are_refused_where_their_items_differ(name, tmp_path):
    chosen, path = MADE[name](), tmp_path / "results.jsonl"
    run(chosen, path)
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *rows[::-1]]) + "\n")
    if name == "context":  # its rows have no names: any order has the same summary
        run(chosen, path)
        return
    with pytest.raises(ValueError, match="is damaged: line 2 is not the result of item 1"):
        run(chosen, path)
