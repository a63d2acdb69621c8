"""The driver of tasks: a result is never measured twice, and never taken from another task or model."""

import dataclasses
import functools
import json
import math
import pathlib

import pytest

from gemma3_jax.evals import task
from tests.evals import stubs

NAN = float("nan")
run = functools.partial(task.run, load_params=stubs.no_params, model_id="toy")


def squares(num_items=7, measured=None, *, name="squares", fails_at=None, **identity):
    """A task with the items 0, 1, ... in batches of three, which records what it measures."""

    def measure(params, items):
        if fails_at in items:
            raise KeyboardInterrupt
        if measured is not None:
            measured.extend(items)
        return [{"square": item * item, "third": item / 3, "name": f"nr {item}\n"} for item in items]

    return task.Task(
        name=name,
        identity={"power": 2, **identity},
        items=range(num_items),
        batch_size=3,
        measure=measure,
        summarize=lambda results: {"sum": sum(result["square"] for result in results), "thirds": results[-1]["third"]},
        format_lines=lambda summary: [str(summary["sum"])],
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.jsonl"


def test_a_run_measures_every_item_once_in_order_and_counts_them():
    measured, done = [], []
    assert run(squares(measured=measured), progress=done.append) == {
        "sum": 91,
        "thirds": 2.0,
    }
    assert measured == list(range(7)) and done == [0, 3, 3, 1]


def test_results_stand_in_the_file_a_line_each_after_one_that_says_of_what(path):
    run(squares(), path=path)
    header, *results = map(json.loads, path.read_text().splitlines())
    assert (header["task"], header["of"], header["num_items"]) == ("squares", "toy", 7)
    assert results == squares().measure({}, range(7))


@pytest.mark.parametrize("fails_at, num_kept", [(0, 0), (2, 0), (3, 3), (6, 6)])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, path, fails_at, num_kept):
    straight = run(squares(), path=tmp_path / "straight.jsonl")
    with pytest.raises(KeyboardInterrupt):
        run(squares(fails_at=fails_at), path=path)
    measured, done = [], []
    assert run(squares(measured=measured), path=path, progress=done.append) == straight
    assert path.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()
    assert measured == list(range(num_kept, 7)) and done[0] == num_kept and sum(done) == 7


def test_a_batch_is_in_the_file_before_the_next_one_is_measured(path):
    lines = []
    squares_task = squares()

    def measure(params, items):
        lines.append(len(path.read_bytes().splitlines()))
        return squares_task.measure(params, items)

    run(dataclasses.replace(squares_task, measure=measure), path=path)
    assert lines == [1, 4, 7]


def test_what_is_done_is_not_measured_again(path):
    first, measured = run(squares(), path=path), []
    before = path.read_bytes()
    assert run(squares(measured=measured), path=path) == first
    assert not measured and path.read_bytes() == before


def test_wherever_a_file_is_cut_the_run_goes_on_from_its_whole_lines(path):
    straight = run(squares(), path=path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        measured = []
        assert run(squares(measured=measured), path=path) == straight, whole[:length]
        assert path.read_bytes() == whole, whole[:length]
        assert len(measured) == 7 - max(whole[:length].count(b"\n") - 1, 0), whole[:length]


def test_numbers_that_are_not_finite_come_back_from_the_file(path):
    values = [NAN, math.inf, -math.inf, 0.1]
    squares_task = dataclasses.replace(
        squares(1), measure=lambda params, items: [{"numbers": values}], summarize=lambda results: results[0]
    )
    for _ in range(2):
        assert repr(run(squares_task, path=path)) == repr({"numbers": values})


# --- files that are not of this run ---


@pytest.mark.parametrize(
    "other, model_id, text",
    [
        (squares(name="cubes"), "toy", r"has results of another run: task squares, not cubes\. "),
        (squares(), "other", r"has results of another run: model toy, not other\. "),
        (squares(power=3), "toy", r"run: other settings, documents or tokenizer\. Name another file, or delete"),
        (squares(8), "toy", r"run: other settings, documents or tokenizer\. "),
        (squares(power=3), "other", r"run: model toy, not other; other settings"),
    ],
)
def test_results_of_another_task_model_or_settings_are_refused_and_left_alone(path, other, model_id, text):
    with pytest.raises(KeyboardInterrupt):
        run(squares(fails_at=4), path=path)
    path.write_bytes(before := path.read_bytes() + b'{"square": 9, "th')
    with pytest.raises(ValueError, match=text):
        run(other, model_id=model_id, path=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b"# Notes\n", b"notes", b"{}\n", b'{"text": "a document"}\n', b"\xff\xfe\n", b"[1, 2]\n", b"\n", b"[" * 9**5],
)
def test_a_file_of_something_else_is_refused_and_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"results\.jsonl is not a file of results: .*; name another file"):
        run(squares(), path=path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "line, text",
    [
        (b"\0\0\0\0\n", "line 9 is not a JSON object"),
        (b"[1]\n", "line 9 is not a JSON object"),
        (b'{"square": 1}\n', "line 9 is after the last of 7 results"),
    ],
)
def test_a_damaged_file_is_refused(path, line, text):
    run(squares(), path=path)
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(ValueError, match=rf"results\.jsonl is damaged: {text}; name another file, or delete this one"):
        run(squares(), path=path)


def test_a_file_that_cannot_be_there_is_refused_before_anything_is_measured(tmp_path):
    measured = []
    with pytest.raises(ValueError, match=r"is a directory; results go to a file: name one in it"):
        run(squares(measured=measured), path=tmp_path)
    with pytest.raises(ValueError, match=r"there is no directory .*none; make it, or name another file"):
        run(squares(measured=measured), path=tmp_path / "none" / "results.jsonl")
    assert not measured and list(tmp_path.iterdir()) == []


def test_a_device_is_refused():
    with pytest.raises(ValueError, match="/dev/null is not a regular file, and could not be resumed from"):
        run(squares(), path=pathlib.Path("/dev/null"))


def test_a_second_process_with_the_same_file_is_told_of_the_first(path):
    squares_task = squares()

    def measure(params, items):
        if items[0] == 3:  # while this batch is measured, another process measures it too
            run(squares_task, path=path)
        return squares_task.measure(params, items)

    with pytest.raises(ValueError, match=r"results\.jsonl was changed by another process; name a file"):
        run(dataclasses.replace(squares_task, measure=measure), path=path)
    assert run(squares_task, path=path) == run(squares_task)


def test_settings_are_the_same_in_any_order(path):
    measured = []
    whole = run(squares(a=1, b=(2, 3)), path=path)
    assert run(squares(measured=measured, b=[2, 3], a=1), path=path) == whole and measured == []
    with pytest.raises(ValueError, match="other settings"):
        run(squares(a=1, b=(3,)), path=path)


def test_results_that_json_would_change_are_refused(path):
    squares_task = dataclasses.replace(squares(1), measure=lambda params, items: [{"pair": (1, 2)}])
    with pytest.raises(AssertionError, match="JSON does not preserve"):
        run(squares_task, path=path)


# --- numbers ---


def test_numbers_are_named_by_their_places_and_nothing_else_is_kept():
    summary = {
        "nats": 1.5,
        "count": 3,
        "by_source": {"news": {"nats": 2, "kind": "text"}, "a/b": {"nats": NAN}},
        "error": None,
        "is_good": True,
        "list": [1, 2],
        "empty": {},
    }
    result = task.numbers(summary)
    assert math.isnan(result.pop("by_source/a/b/nats"))
    assert result == {"nats": 1.5, "count": 3.0, "by_source/news/nats": 2.0}
    assert all(type(value) is float for value in result.values())
