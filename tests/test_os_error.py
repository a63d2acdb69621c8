"""An OSError is one line that names its file and its flag, also where the system names neither."""

import argparse
import errno
import io
import os
import resource
import sys

import pytest

from gemma3_jax.cli import convert, os_error, program, report, terminal
from gemma3_jax.durable import atomic, os_errors, results_file


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "flags", "line"),
    [
        (OSError(errno.EACCES, "Permission denied", "out"), {"output": "out"}, "--output out: Permission denied"),
        (
            OSError(errno.ENOENT, "No such file or directory", "run/config.json"),
            {"workdir": "run", "config": "toy.py"},
            "run/config.json (of --workdir): No such file or directory",
        ),
        (
            OSError(errno.ENOENT, "No such file or directory", "runs"),
            {"workdir": "run"},
            "runs: No such file or directory",
        ),
        (
            OSError(errno.EIO, "Input/output error", b"a/b"),
            {"source": "a", "target": "a/b"},
            "--target a/b: Input/output error",
        ),
        (OSError(errno.EIO, "Input/output error", "b"), {"compare": ["a", "b"]}, "--compare b: Input/output error"),
        (OSError(errno.EIO, "Input/output error", 7), {"source": "a"}, "Input/output error in --source a"),
        (
            OSError(errno.EXDEV, "Invalid link", "out/a", None, "b"),
            {"output": "out"},
            "out/a (of --output) -> b: Invalid link",
        ),
        # What is being written has another name.
        (
            OSError(errno.ENOSPC, "No space left", "d/.out.partial-12/w/0"),
            {"target": "d/out"},
            "d/out/w/0 (of --target): No space left",
        ),
        (full(), {"output": "out", "input": "in"}, "No space left on device in --output out"),
        (
            full(),
            {"workdir": "run", "cache": "/c", "config": "toy.py"},
            "No space left on device in --workdir run, or in --cache /c",
        ),
        (full(), {}, "No space left on device"),
        (
            OSError(errno.EIO, "Input/output error"),
            {"output": "", "compare": ["a", "b"]},
            "Input/output error in --compare a, or in --compare b",
        ),
        (FileNotFoundError("gs://a/b"), {"output": "gs://a"}, "gs://a/b (of --output): No such file or directory"),
        (PermissionError("gs://a"), {"output": "gs://a"}, "--output gs://a: Permission denied"),
        (FileNotFoundError("no file a"), {"output": "a"}, "no file a"),
        # A text that is no path may be the same as one, or the name of a directory above it.
        *(
            (
                OSError(errno.EACCES, "Permission denied", file),
                more | {"checkpoint": "sub"},
                f"{line}: Permission denied",
            )
            for file, more, line in [
                ("sub/x.json", {"stop": ["sub/x.json"]}, "sub/x.json (of --checkpoint)"),
                ("sub", {"format": "sub"}, "--checkpoint sub"),
                ("other/x.json", {"stop": ["."], "prompt": ["other"]}, "other/x.json"),
                ("own.json", {"regex": ".", "model": "own.json"}, "--model own.json"),
            ]
        ),
        (OSError("3 saves in a row failed"), {"workdir": "run"}, "3 saves in a row failed"),
    ],
)
def test_the_line_names_the_file_and_the_flag(error, flags, line):
    assert os_error.describe(error, argparse.Namespace(json=True, seed=3, **flags)) == line


def test_every_flag_that_is_a_path_may_be_named():
    actions = [action for verb, _ in program.VERBS.values() for action in verb.parser()._actions]
    assert {a.dest for a in actions if terminal.PATHS.search(a.metavar or "")} == set(os_error.PATHS)


def test_a_working_directory_that_was_removed_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(report, "run", lambda flags: os.getcwd())
    assert program.main(["report", "--workdir=run"]) == 1
    line = "gemma3_jax: error: the working directory does not exist any more; change to one that does\n"
    assert capsys.readouterr().err == line
    error = OSError(errno.EACCES, "Permission denied", "run")
    assert os_error.describe(error, argparse.Namespace(workdir="run")) == "run: Permission denied"


def test_a_verb_that_meets_a_full_disk_ends_with_one_line(monkeypatch, capsys, tmp_path):
    def fails(flags):
        raise full()

    monkeypatch.setattr(convert, "run", fails)
    flags = ["--source=a", f"--target={tmp_path / 'b'}", "--format=hf"]
    assert program.main(["convert", *flags]) == 1
    expected = f"gemma3_jax: error: No space left on device in --target {tmp_path / 'b'}\n"
    assert capsys.readouterr().err == expected


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"), os_errors.named("/dev/full"):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")
    with pytest.raises(OSError, match="No such file or directory: '/nowhere'"), os_errors.named("/dev/full"):
        open("/nowhere")
    with pytest.raises(OSError, match="^mine$"), os_errors.named("/dev/full"):
        raise OSError("mine")


def test_writers_of_whole_and_of_growing_files_name_them(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(full()))
        with pytest.raises(OSError, match=r"No space left on device: '.*/page\.html'"):
            atomic.replace(tmp_path / "page.html", b"x")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        with pytest.raises(OSError, match=r"File too large: '.*/results\.jsonl'"):
            with results_file.appending(tmp_path / "results.jsonl", {"task": "x"}, 0):
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_cannot_be_printed_names_stdout(monkeypatch):
    stream = io.StringIO()
    stream.write = lambda text: (_ for _ in ()).throw(full())
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(OSError, match="No space left on device: 'stdout'"):
        terminal.show("x")
