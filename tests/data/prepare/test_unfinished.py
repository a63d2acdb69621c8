"""What a stopped `prepare` has left may be damaged too: the file is named, with what to do."""

import json
import pathlib

import msgpack
import pytest

from gemma3_jax.data import shards
from gemma3_jax.data.prepare import pipeline, settings
from tests import texts


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A config and its output, stopped before its manifest."""
    path = texts.write_lines(tmp_path / "a.jsonl", [texts.library()[0][:3_000]])
    config = texts.config(tmp_path, {"a": settings.SourceConfig(paths=(path,))})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline.manifest, "summarize", stop)
        texts.run(config, tmp_path / "out")
    return config, tmp_path / "out"


def stop(results):
    raise KeyboardInterrupt


def named(output: pathlib.Path, pattern: str) -> pathlib.Path:
    [path] = output.glob(f".work/{pattern}")
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        msgpack.packb([]),
        msgpack.packb({"candidates": []}),
        msgpack.packb({"counts": {}, "candidates": [[1]]}),
        msgpack.packb({"counts": {"dropped": 3, "broken": [], "examples": []}, "candidates": []}),
        msgpack.packb({"counts": {"dropped": [], "broken": [[1]], "examples": [], "x": 1}, "candidates": []}),
    ],
)
def test_a_damaged_index_is_named_and_can_be_removed(stopped, content):
    config, output = stopped
    named(output, "*.index").write_bytes(content)
    with pytest.raises(ValueError, match=r"\.work/unit-000000.index is damaged; remove it, and run the same command"):
        texts.run(config, output)
    named(output, "*.index").unlink()
    assert texts.run(config, output)[0]["digest"]


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"{", "is not JSON"),
        (b"[]", "is a list; it must be a JSON object"),
        (b"{}", "has no field part"),
        (json.dumps({"part": 3}).encode(), "part is 3; it must be text"),
    ],
)
def test_a_damaged_summary_of_a_shard_is_named_and_can_be_removed(stopped, content, problem):
    config, output = stopped
    named(output, "*.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"\.work/text.en-00000.json:? {problem}.*; remove it, and run the same"):
        texts.run(config, output)
    named(output, "*.json").unlink()
    assert texts.run(config, output)[0]["digest"]


def test_a_damaged_candidate_is_named(stopped):
    config, output = stopped
    named(output, "*.json").unlink()
    shards.write(str(named(output, "*.array_record")), [msgpack.packb({"place": 3})])
    with pytest.raises(ValueError, match=r"unit-000000.array_record is damaged \(its field place is of type int\); re"):
        texts.run(config, output)
