"""What is read from stdin and what is printed: text of files, prompts and models never controls a terminal."""

import ast
import io
import json
import os
import pathlib
import subprocess
import sys

import pytest

from gemma3_jax.cli import evaluate, generate, program, terminal
from gemma3_jax.inference import sampler

# Title, colors, clear screen, cursor up; a bell; C1's CSI; delete; a line that hides the one before.
BAD = "\x1b]0;title\x07 \x1b[31mred\x1b[2J\x1b[A \x9b31m \x7f \r\x00hidden\x08"
# As in JSON.
ESCAPED = r"\u001b]0;title\u0007 \u001b[31mred\u001b[2J\u001b[A \u009b31m \u007f \u000d\u0000hidden\u0008"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (BAD, ESCAPED),
        ("a\tb\nc\r\nd", "a\tb\nc\r\nd"),
        ("naïve 東京 😀 \u200d שלום", "naïve 東京 😀 \u200d שלום"),
        # Overrides of the direction show other text than there is; terminals may break lines at the others.
        ("a\u202eb\u202c", r"a\u202eb\u202c"),
        ("\u202a\u202b\u202d\u2066\u2067\u2068\u2069", r"\u202a\u202b\u202d\u2066\u2067\u2068\u2069"),
        ("a\u2028b\u2029", r"a\u2028b\u2029"),
        ("a\rb\r", r"a\u000db\u000d"),
        (r"\u001b", r"\u001b"),
        ("\x0b\x0c\x85", r"\u000b\u000c\u0085"),
    ],
)
def test_control_characters_become_escapes(text, shown):
    assert terminal.printable(text) == shown
    assert json.loads(f'"{ESCAPED}"') == BAD


def test_messages_have_none_wherever_they_go(capsys, monkeypatch):
    terminal.say(BAD, "next")
    assert capsys.readouterr().err == f"{ESCAPED}\nnext\n"
    with terminal.bar(BAD, 3, unit="steps") as shown:
        assert shown.desc.rstrip(": ") == ESCAPED
    monkeypatch.setattr(sys, "stdin", Terminal("4\n"))
    assert terminal.ask(BAD) == "4" and ESCAPED in capsys.readouterr().err


def test_results_have_none_on_a_terminal_and_all_elsewhere(capsys, monkeypatch):
    terminal.show(BAD, "next", end="")
    assert capsys.readouterr().out == f"{BAD}\nnext"
    monkeypatch.setattr(sys, "stdout", Terminal())
    terminal.show(BAD, "next", end="")
    assert sys.stdout.getvalue() == f"{ESCAPED}\nnext"


@pytest.mark.parametrize(
    ("encoding", "text", "shown"),
    [
        ("ascii", "naïve 😀", rb"na\xefve \U0001f600"),
        ("latin-1", "naïve 東", b"na\xefve \\u6771"),
        ("cp1252", "€ 東", b"\x80 \\u6771"),
    ],
)
def test_what_stdout_cannot_encode_is_escaped_and_said_once(monkeypatch, capsys, encoding, text, shown):
    """The text may have taken hours."""
    terminal.say_escaped.cache_clear()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    terminal.show("plain")
    assert not capsys.readouterr().err
    terminal.show(text, end="")
    terminal.show(text, end="")
    assert sys.stdout.buffer.getvalue() == b"plain\n" + shown * 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"gemma3_jax: the encoding of stdout, {encoding}, lacks some characters, which become escapes; "
        "set PYTHONIOENCODING=utf-8 for all of them"
    )


def test_errors_have_none(capsys, tmp_path):
    assert program.main(["report", f"--workdir={tmp_path / BAD[:8].replace('/', '')}"]) == 1
    err = capsys.readouterr().err
    assert r"\u001b]0;titl is not a run" in err and "\x1b" not in err
    assert program.main(["report", "--work\x1b[2Jdir=x"]) == 1
    assert "\x1b" not in capsys.readouterr().err


def test_a_traceback_has_none(tmp_path):
    code = """
import sys
from gemma3_jax.cli import program
def fails(arguments):
    raise RuntimeError(chr(27) + "[2J")
program.main = fails
program.run()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == 71 and rb"RuntimeError: \u001b[2J" in done.stderr and b"\x1b" not in done.stderr


@pytest.mark.parametrize(
    "stdin",
    [
        io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"),
        io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8", errors="surrogateescape"),  # in a C locale
        io.TextIOWrapper(io.BytesIO(b"\xff\xfeh\x00i\x00\n\x00"), encoding="utf-8"),
        io.TextIOWrapper(io.BytesIO(b"\xed\xa0\x80\n"), encoding="utf-8"),
    ],
)
def test_stdin_that_is_not_utf_8_is_one_line(stdin, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", stdin)
    assert program.main(["generate", "--checkpoint=none", "--prompt=-"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gemma3_jax: error: stdin is not UTF-8 (") and "as with iconv" in line
    stdin.seek(0)
    with pytest.raises(ValueError, match="stdin is not UTF-8"):
        terminal.ask("> ")


@pytest.mark.parametrize("flag", ["prompt", "stop", "regex"])
def test_flags_that_are_not_utf_8_are_one_line(flag, capsys):
    flags = ["--checkpoint=none", "--prompt=x", f"--{flag}={os.fsdecode(b'caf' + bytes([0xE9]))}"]
    assert program.main(["generate", *flags]) == 1
    assert capsys.readouterr().err.startswith(f"gemma3_jax: error: --{flag} is not UTF-8 (at character 3); ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[[2, 9], [\xff]]", "ids.json is not JSON: 'utf-8' codec can't decode"),
        (b"[" * 100_000, "ids.json is not JSON: "),
        (b"[[" + b"9" * 5_000 + b"]]", "ids.json is not JSON: Exceeds the limit"),
        (b"", "ids.json is not JSON: Expecting value"),
    ],
)
def test_an_input_that_is_not_json_is_one_line(content, problem, tmp_path, capsys):
    (tmp_path / "ids.json").write_bytes(content)
    flags = ["--checkpoint=none", "--task=logprobs", f"--input={tmp_path / 'ids.json'}"]
    assert program.main(["evaluate", *flags]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line


def test_a_stream_that_the_shell_has_closed_is_not_another_file(tmp_path):
    code = "import sys; from gemma3_jax.cli import program; program.run()"
    command = f"{sys.executable} -c '{code}' report --help <&- >&- 2>&-"
    assert subprocess.run(command, shell=True).returncode == 0
    command = f"{sys.executable} -c '{code}' generate --checkpoint=none --prompt=- <&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "gemma3_jax: error: --prompt is empty; give a text to continue\n"


def test_what_a_model_writes_is_escaped_on_a_terminal_alone(monkeypatch):
    class Gemma:
        tokenizer = "one"

        def continue_(self, prompts, options, *, constraints, show, progress, is_interrupted):
            for character in f"{BAD}\n":
                show(character)
            return []

    for stdout, shown in ((io.StringIO(), f"{BAD}\n\n"), (Terminal(), f"{ESCAPED}\n\n")):
        monkeypatch.setattr(sys, "stdout", stdout)
        generate.complete(Gemma(), [[2]], sampler.GenerateOptions(), None, is_shown=True)
        assert stdout.getvalue() == shown


def test_a_table_of_an_evaluation_is_escaped_on_a_terminal(monkeypatch):
    flags = evaluate.parser().parse_args(["--task=perplexity"])
    monkeypatch.setattr(sys, "stdout", Terminal())
    evaluate.print_summary(flags, {}, [f"source {BAD}"])
    assert sys.stdout.getvalue() == f"source {ESCAPED}\n"


def test_verbs_print_by_this_module_alone():
    for path in pathlib.Path(terminal.__file__).parent.glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printing = [call.lineno for call in calls if getattr(call.func, "id", "") == "print"]
        assert not printing or path.name == "terminal.py", f"{path.name}: {printing}"
