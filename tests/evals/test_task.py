"""The driver of measures: whatever was measured before a stop is not measured again, and is never another's."""

import dataclasses
import json
import math

import pytest

from gemma3_jax.evals import task

NAN = float("nan")


def squares(num_items=7, measured=None, *, name="squares", fails_at=None, **asked):
    """A task with the items 0, 1, ..., three at once, which notes what it measures."""

    def measure(items):
        if fails_at in items:
            raise KeyboardInterrupt
        if measured is not None:
            measured.extend(items)
        return [{"square": item * item, "third": item / 3, "name": f"nr {item}\n"} for item in items]

    return task.Task(
        name=name,
        asked={"power": 2, **asked},
        items=range(num_items),
        items_at_once=3,
        measure=measure,
        summarise=lambda results: {"sum": sum(result["square"] for result in results), "thirds": results[-1]["third"]},
        lines=lambda summary: [str(summary["sum"])],
    )


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "kept.jsonl"


def test_a_run_measures_every_item_once_in_order_and_counts_them():
    measured, done = [], []
    assert task.run(squares(measured=measured), of="toy", progress=done.append) == {"sum": 91, "thirds": 2.0}
    assert measured == list(range(7)) and done == [0, 3, 3, 1]


def test_results_stand_in_the_file_a_line_each_after_one_that_says_of_what(kept):
    task.run(squares(), of="toy", kept=kept)
    header, *results = map(json.loads, kept.read_text().splitlines())
    assert (header["task"], header["of"], header["num_items"]) == ("squares", "toy", 7)
    assert results == squares().measure(range(7))


@pytest.mark.parametrize("fails_at, num_kept", [(0, 0), (2, 0), (3, 3), (6, 6)])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, kept, fails_at, num_kept):
    straight = task.run(squares(), of="toy", kept=tmp_path / "straight.jsonl")
    with pytest.raises(KeyboardInterrupt):
        task.run(squares(fails_at=fails_at), of="toy", kept=kept)
    measured, done = [], []
    assert task.run(squares(measured=measured), of="toy", kept=kept, progress=done.append) == straight
    assert kept.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()
    assert measured == list(range(num_kept, 7)) and done[0] == num_kept and sum(done) == 7


def test_a_batch_is_in_the_file_before_the_next_one_is_measured(kept):
    lines = []
    asked = squares()

    def measure(items):
        lines.append(len(kept.read_bytes().splitlines()))
        return asked.measure(items)

    task.run(dataclasses.replace(asked, measure=measure), of="toy", kept=kept)
    assert lines == [1, 4, 7]


def test_what_is_done_is_not_measured_again(kept):
    first, measured = task.run(squares(), of="toy", kept=kept), []
    before = kept.read_bytes()
    assert task.run(squares(measured=measured), of="toy", kept=kept) == first
    assert not measured and kept.read_bytes() == before


def test_wherever_a_file_is_cut_the_run_goes_on_from_its_whole_lines(kept):
    straight = task.run(squares(), of="toy", kept=kept)
    whole = kept.read_bytes()
    for length in range(len(whole)):
        kept.write_bytes(whole[:length])
        measured = []
        assert task.run(squares(measured=measured), of="toy", kept=kept) == straight, whole[:length]
        assert kept.read_bytes() == whole, whole[:length]
        assert len(measured) == 7 - max(whole[:length].count(b"\n") - 1, 0), whole[:length]


def test_numbers_that_are_not_finite_come_back_from_the_file(kept):
    given = [NAN, math.inf, -math.inf, 0.1]
    asked = dataclasses.replace(
        squares(1), measure=lambda items: [{"numbers": given}], summarise=lambda results: results[0]
    )
    for _ in range(2):
        assert repr(task.run(asked, of="toy", kept=kept)) == repr({"numbers": given})


# --- files that are not of this run ---


@pytest.mark.parametrize(
    "other, of, text",
    [
        (squares(name="cubes"), "toy", r"has results of another run: task squares, not cubes\. "),
        (squares(), "other", r"has results of another run: model toy, not other\. "),
        (squares(power=3), "toy", r"run: other settings, documents or tokenizer\. Name another file, or delete"),
        (squares(8), "toy", r"run: other settings, documents or tokenizer\. "),
        (squares(power=3), "other", r"run: model toy, not other; other settings"),
    ],
)
def test_results_of_another_task_model_or_settings_are_refused_and_left_alone(kept, other, of, text):
    with pytest.raises(KeyboardInterrupt):
        task.run(squares(fails_at=4), of="toy", kept=kept)
    kept.write_bytes(before := kept.read_bytes() + b'{"square": 9, "th')
    with pytest.raises(ValueError, match=text):
        task.run(other, of=of, kept=kept)
    assert kept.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b"# Notes\n", b"notes", b"{}\n", b'{"text": "a document"}\n', b"\xff\xfe\n", b"[1, 2]\n", b"\n", b"[" * 9**5],
)
def test_a_file_of_something_else_is_refused_and_left_alone(kept, content):
    kept.write_bytes(content)
    with pytest.raises(ValueError, match=r"kept\.jsonl is no file of results, .*; name another file"):
        task.run(squares(), of="toy", kept=kept)
    assert kept.read_bytes() == content


@pytest.mark.parametrize(
    "line, text",
    [
        (b"\0\0\0\0\n", "line 9 is not a JSON object"),
        (b"[1]\n", "line 9 is not a JSON object"),
        (b'{"square": 1}\n', "line 9 is after the last of 7 results"),
    ],
)
def test_a_damaged_file_is_refused(kept, line, text):
    task.run(squares(), of="toy", kept=kept)
    kept.write_bytes(kept.read_bytes() + line)
    with pytest.raises(ValueError, match=rf"kept\.jsonl is damaged: {text}; name another file, or delete this one"):
        task.run(squares(), of="toy", kept=kept)


def test_a_file_that_cannot_be_there_is_refused_before_anything_is_measured(tmp_path):
    measured = []
    with pytest.raises(ValueError, match=r"is a directory; results are kept in a file: name one in it"):
        task.run(squares(measured=measured), of="toy", kept=tmp_path)
    with pytest.raises(ValueError, match=r"there is no directory .*none; make it, or name another file"):
        task.run(squares(measured=measured), of="toy", kept=tmp_path / "none" / "kept.jsonl")
    assert not measured and list(tmp_path.iterdir()) == []


def test_a_second_process_with_the_same_file_is_told_of_the_first(kept):
    asked = squares()

    def measure(items):
        if items[0] == 3:  # while this batch is measured, another process measures it too
            task.run(asked, of="toy", kept=kept)
        return asked.measure(items)

    with pytest.raises(ValueError, match=r"kept\.jsonl was changed by another process meanwhile; name a file"):
        task.run(dataclasses.replace(asked, measure=measure), of="toy", kept=kept)
    assert task.run(asked, of="toy", kept=kept) == task.run(asked, of="toy")


def test_settings_are_the_same_in_any_order():
    assert (
        task._digest({"a": 1, "b": (2, 3)}) == task._digest({"b": [2, 3], "a": 1}) != task._digest({"a": 1, "b": (3,)})
    )


def test_results_that_json_would_change_are_refused(kept):
    asked = dataclasses.replace(squares(1), measure=lambda items: [{"pair": (1, 2)}])
    with pytest.raises(AssertionError, match="JSON does not give"):
        task.run(asked, of="toy", kept=kept)


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
    found = task.numbers(summary)
    assert math.isnan(found.pop("by_source/a/b/nats"))
    assert found == {"nats": 1.5, "count": 3.0, "by_source/news/nats": 2.0}
    assert all(type(value) is float for value in found.values())
