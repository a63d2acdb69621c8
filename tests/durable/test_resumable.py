"""A directory that several starts write: who may resume it, what a failure leaves, and when it is complete."""

import json
import pathlib

import fsspec
import pytest

from gemma3_jax.durable import resumable

ORIGIN = {"seed": 1, "text": "x" * 100}


def directory(url, **changes) -> resumable.ResumableDirectory:
    plain = {"manifest": "manifest.json", "work": ".work", "contents": "data set"}
    return resumable.ResumableDirectory(url=str(url), **(plain | changes))


def files(path: pathlib.Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def begin(out: resumable.ResumableDirectory, *names: str, origin=ORIGIN, error=KeyboardInterrupt, **options) -> None:
    """A start that writes some files and then stops."""
    with pytest.raises(error), out.resume(origin, **options):
        for name in names:
            out.write(name, b"result")
        raise error("stop")


@pytest.mark.parametrize("url", ["{}/out", "memory://resumable/{}/out"])
def test_what_was_begun_is_resumed_and_completed(tmp_path, url):
    out = directory(url.format(tmp_path))
    begin(out, "a")
    with out.resume(ORIGIN):
        assert out.exists("a") and out.read("a") == b"result"
        out.write("b", b"more")
        out.complete(b"{}")
        out.clean_up()
    kind, path = fsspec.core.url_to_fs(out.url)
    assert sorted(name.removeprefix(f"{path}/") for name in kind.find(path)) == ["a", "b", "manifest.json"]
    with pytest.raises(ValueError, match="out exists and is complete; choose another --output, or remove it first"):
        with out.resume(ORIGIN):
            pass


def test_another_origin_is_refused_with_the_values_that_a_line_has_room_for(tmp_path):
    out = directory(tmp_path / "out")
    begin(out, "a")
    match = r"out was begun with another seed \(1, now 2\), text; resume with the old settings, choose another"
    with pytest.raises(ValueError, match=match), out.resume({"seed": 2, "text": "y" * 100}):
        pass
    with pytest.raises(
        ValueError, match=r"another a \(None, now 1\), b \(None, now 2\), c \(None, now 3\) and 1 more;"
    ):
        with out.resume({**ORIGIN, "a": 1, "b": 2, "c": 3, "d": 4}):
            pass


def test_a_start_that_came_to_nothing_may_be_forgotten(tmp_path):
    for forgets_empty, num_results in ((False, 0), (True, 1)):
        out = directory(tmp_path / f"out{num_results}", forgets_empty=forgets_empty)
        begin(out, *["a"] * num_results)
        with pytest.raises(ValueError, match="was begun with another seed"), out.resume(ORIGIN | {"seed": 2}):
            pass
    out = directory(tmp_path / "out", forgets_empty=True, scratch=("tokenizer",))
    begin(out, "tokenizer")
    begin(out, origin=ORIGIN | {"seed": 2})
    assert json.loads(out.read(".work/begun-00000")) == ORIGIN | {"seed": 2}


def test_an_origin_is_read_under_todays_names(tmp_path):
    begin(directory(tmp_path / "out"), "a", origin={"old": 1})
    renamed = directory(tmp_path / "out", read_origin=lambda stored: {"new": stored.get("old", stored.get("new"))})
    with renamed.resume({"new": 1}):
        pass
    with pytest.raises(ValueError, match=r"another new \(1, now 2\)"), renamed.resume({"new": 2}):
        pass


def test_a_mark_without_a_number_counts_too(tmp_path):
    """Version 0.1 wrote one: what it began is not taken for a new directory."""
    begin(directory(tmp_path / "out"), "a")
    (tmp_path / "out" / ".work" / "begun-00000").rename(tmp_path / "out" / ".work" / "begun")
    with pytest.raises(ValueError, match=r"out was begun with another seed \(1, now 2\)"):
        with directory(tmp_path / "out").resume(ORIGIN | {"seed": 2}):
            pass


def test_an_error_before_the_first_result_leaves_nothing(tmp_path):
    out = directory(tmp_path / "out", scratch=("tokenizer",))
    begin(out, "tokenizer", error=ValueError)
    assert list(tmp_path.iterdir()) == []
    begin(out, "tokenizer", "a", error=ValueError)
    assert files(tmp_path / "out") == [".work/begun-00000", ".work/lock-00000", "a", "tokenizer"]


def test_a_directory_of_the_users_stays(tmp_path):
    (tmp_path / "out").mkdir()
    begin(directory(tmp_path / "out"), error=ValueError)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_one_process_withdraws_leaves_the_others(tmp_path):
    out = directory(tmp_path / "out")
    with out.resume(ORIGIN, process=1, subdirectory="part-1"):
        begin(out, error=ValueError, process=0, subdirectory="part-0")
        assert files(tmp_path / "out") == [".work/begun-00001", ".work/lock-00001"]
        with pytest.raises(ValueError, match="out is being written by another process; wait for it, or end it"):
            with out.resume(ORIGIN, process=1, subdirectory="part-1"):
                pass


def test_half_written_files_are_removed_and_are_no_results(tmp_path):
    out = directory(tmp_path / "out")
    begin(out, "a")
    (tmp_path / "out" / ".b.partial-1").mkdir()
    (tmp_path / "out" / ".b.partial-1" / "shard").write_bytes(b"")
    (tmp_path / "out" / "part").mkdir()
    (tmp_path / "out" / "part" / ".c.partial-2").write_bytes(b"")
    (tmp_path / "out" / "a").unlink()
    assert not out.has_results()
    with out.resume(ORIGIN):
        assert files(tmp_path / "out") == [".work/begun-00000", ".work/lock-00000"]


def test_a_process_removes_the_half_written_files_of_its_part_alone(tmp_path):
    out = directory(tmp_path / "out")
    begin(out, process=0, subdirectory="part-0")
    for part in ("part-0", "part-1"):
        (tmp_path / "out" / part).mkdir()
        (tmp_path / "out" / part / ".c.partial-2").write_bytes(b"")
    begin(out, process=0, subdirectory="part-0")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.partial-*")] == ["out/part-1/.c.partial-2"]


@pytest.mark.parametrize("made_of", [None, ORIGIN])
def test_a_directory_killed_between_its_last_two_steps_is_complete(tmp_path, made_of):
    """With its origin in the manifest it can be finished by the same start; otherwise it is only cleaned up."""
    out = directory(tmp_path / "out")
    begin(out, "a")
    out.complete(json.dumps({} if made_of is None else {"made_of": made_of}).encode())
    with out.resume(ORIGIN):
        pass
    (tmp_path / "out" / ".work" / "begun-00000").unlink()
    if made_of:
        with pytest.raises(ValueError, match="was begun with another seed"), out.resume(ORIGIN | {"seed": 2}):
            pass
        with out.resume(ORIGIN):
            out.clean_up()
    else:
        with pytest.raises(ValueError, match="out exists and is complete"), out.resume(ORIGIN):
            pass
    assert files(tmp_path / "out") == ["a", "manifest.json"]


def test_what_is_something_else_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match="file is a file; choose another --output"),
        directory(tmp_path / "file").resume(ORIGIN),
    ):
        pass
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match="other exists and is not an unfinished data set; choose another --output"):
        with directory(tmp_path / "other").resume(ORIGIN):
            pass
    assert files(tmp_path / "other") == ["thesis.txt"]
    with pytest.raises(ValueError, match="--output nosuch://out cannot be reached: Protocol not known"):
        directory("nosuch://out").exists("a")


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"", "is not JSON"),
        (b"[]", "is a list; it must be a JSON object"),
        (b"[" * 100_000, "is not JSON that can be read"),
        (b"\xff", "is not UTF-8"),
        (b'{"made_of": []}', "made_of is a list; it must be an object"),
    ],
)
def test_a_damaged_mark_or_manifest_is_named(tmp_path, content, problem):
    out = directory(tmp_path / "out")
    begin(out, "a")
    (tmp_path / "out" / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"out/manifest.json:? {problem}.*; choose another --output, or remove .*out"):
        with out.resume(ORIGIN):
            pass
    (tmp_path / "out" / "manifest.json").unlink()
    if b"made_of" not in content:
        (tmp_path / "out" / ".work" / "begun-00000").write_bytes(content)
        with pytest.raises(ValueError, match=f"begun-00000 {problem}.*; choose another --output, or remove .*out"):
            with out.resume(ORIGIN):
                pass
