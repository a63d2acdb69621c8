"""Results that a stopped program has written are read again, and never those of another origin."""

import json

import pytest

from gemma3_jax.durable import results_file

HEADER = {"task": "squares", "num_items": 4}
RESULTS = [{"square": number * number} for number in range(4)]


def differences(old, new):
    return [f"{name} {old[name]}, not {new[name]}" for name in new if old[name] != new[name]]


def read(path, header=HEADER):
    return results_file.read(path, header, most=4, differences=differences)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.jsonl"


def write(path, *batches):
    with results_file.appending(path, HEADER, len(read(path))) as append:
        for batch in batches:
            append(batch)


def test_what_was_written_is_read(path):
    assert read(path) == []
    write(path, RESULTS[:1], RESULTS[1:3])
    assert read(path) == RESULTS[:3]
    write(path, RESULTS[3:])
    assert read(path) == RESULTS
    assert list(map(json.loads, path.read_text().splitlines())) == [HEADER, *RESULTS]


def test_wherever_it_is_cut_its_whole_lines_are_read_and_written_on(path):
    write(path, RESULTS)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        results = read(path)
        assert results == RESULTS[: max(whole[:length].count(b"\n") - 1, 0)]
        write(path, RESULTS[len(results) :])
        assert path.read_bytes() == whole


def test_results_of_another_header_are_refused_and_left_alone(path):
    write(path, RESULTS)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"has results of another run: task squares, not cubes\. Name another file"):
        read(path, HEADER | {"task": "cubes"})
    with pytest.raises(ValueError, match="is not a file of results: its first line is not their header"):
        read(path, {"other": 1})
    assert path.read_bytes() == before


def test_a_file_that_another_process_has_changed_is_not_written_to(path):
    with pytest.raises(ValueError, match="was changed by another process; name a file"):
        with results_file.appending(path, HEADER, 0) as append:
            append(RESULTS[:1])
            with path.open("ab") as other:
                other.write(b'{"square": 1}\n')
            append(RESULTS[1:2])
