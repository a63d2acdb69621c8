"""Flags of all verbs, and what the environment sets."""

import os
import subprocess
import sys

import pytest

from gemma3_jax.cli import program, terminal

# Every flag that names files, by verb: one that is added without a metavar of paths is missing here.
PATH_FLAGS = {
    "prepare": {"config", "input", "output", "tokenizer"},
    "train": {"config", "workdir", "cache"},
    "plan": {"config", "teacher_model", "profile", "compare"},
    "teach": {"config", "checkpoint", "output"},
    "convert": {"source", "target", "tokenizer", "base", "model"},
    "generate": {"checkpoint", "tokenizer", "base", "model", "tools", "tool_command", "schema"},
    "evaluate": {"checkpoint", "tokenizer", "base", "model", "input", "output", "include_path"},
    "report": {"workdir", "compare", "output"},
}


@pytest.mark.parametrize("verb", program.VERBS)
def test_paths_below_the_home_directory_are_expanded(verb, monkeypatch):
    monkeypatch.setenv("HOME", "/home/user")
    parser = program.VERBS[verb][0].parser()
    for action in parser._actions:
        action.required = False
    names = [action.dest for action in parser._actions if action.metavar and action.type is None]
    flags = parser.parse_all([f"--{name}=~/data" for name in names])
    expanded = {name for name in names if getattr(flags, name) in ("/home/user/data", ["/home/user/data"])}
    assert expanded == PATH_FLAGS[verb]


def test_each_of_several_paths_is_expanded_and_no_other_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/user")
    parser = terminal.Parser(prog="verb")
    parser.add_argument("--many", metavar="DIR,...")
    parser.add_argument("--one", metavar="FILE")
    flags = parser.parse_all(["--many=~/a,b~,~/c", "--one=a,~/b"])
    assert (flags.many, flags.one) == ("/home/user/a,b~,/home/user/c", "a,~/b")


@pytest.mark.parametrize("platforms", ["cuda", "gpuu", "rocm"])
def test_a_platform_that_is_not_there_is_one_line(platforms):
    code = "import sys, jax\nfrom gemma3_jax.cli import program\n"
    code += "program.VERBS['report'][0].run = lambda flags: jax.devices()\n"
    code += "sys.exit(program.main(['report', '--workdir=x']))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": platforms}, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("gemma3_jax: error: ")]
    assert line.startswith(f"gemma3_jax: error: JAX_PLATFORMS is {platforms}, and JAX finds no such devices")
    assert "Traceback" not in done.stderr
