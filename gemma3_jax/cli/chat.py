"""A chat with a model at a prompt, or of one turn, in which the model may call tools."""

import argparse
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable

from gemma3_jax.cli import terminal, tool_process

MAX_CALLS = 8  # before an answer in words
TOOL_SECONDS = 60.0


def add_flags(parser: terminal.Parser) -> None:
    parser.add_argument(
        "--chat", action="store_true", help="use Gemma's chat format; without --prompt, chat at a prompt"
    )
    parser.add_argument(
        "--tools",
        metavar="FILE",
        help="a JSON list of tools that the model may call: objects with name, description and parameters (a JSON "
        "Schema)",
    )
    parser.add_argument(
        "--tool_format", choices=("json", "python"), help="the format in which the model writes calls (default: json)"
    )
    parser.add_argument(
        "--tool_command",
        metavar="PROGRAM",
        help="a program that runs calls: it reads each call as JSON from stdin, and what it prints is the result "
        "(default: calls are printed; at a prompt you type the results)",
    )
    parser.add_argument(
        "--tool_timeout",
        type=float,
        metavar="SECONDS",
        help="how long --tool_command may take for a call, before it and the processes that it has started are killed "
        f"(default: {TOOL_SECONDS:g})",
    )
    parser.add_argument("--force_call", action="store_true", help="constrain the answer to a call, in JSON")


def check(flags: argparse.Namespace) -> None:
    """Raises: ValueError if flags about tools are set without tools, or contradict each other."""
    for name in ("tools", "tool_format", "tool_command", "tool_timeout", "force_call"):
        if getattr(flags, name) and not (flags.chat and flags.tools):
            raise ValueError(f"--{name} is for --chat with --tools; give both")
    if flags.force_call and flags.tool_format == "python":
        raise ValueError("--force_call writes calls in JSON; leave out --tool_format=python")
    if flags.force_call and (flags.tool_command or not flags.prompt):
        raise ValueError("--force_call gives one call; give --prompt, and no --tool_command")
    if flags.tool_timeout is not None:
        if not flags.tool_command:
            raise ValueError("--tool_timeout is for --tool_command; give both")
        if not 0 < flags.tool_timeout < math.inf:
            raise ValueError(f"--tool_timeout is {flags.tool_timeout:g}; it must be a number of seconds over 0")
    if flags.tool_command and not pathlib.Path(flags.tool_command).is_file():
        raise ValueError(f"--tool_command is {flags.tool_command}, which is not a file; name a program")


class ChatSession:
    """The turns of one chat. `reply` takes turns, shows the model's answer, and returns it."""

    def __init__(self, flags: argparse.Namespace, reply: Callable[[list[dict]], str]):
        self._reply, self._command = reply, flags.tool_command
        self._tool_seconds = TOOL_SECONDS if flags.tool_timeout is None else flags.tool_timeout
        self._format, self._tools = flags.tool_format or "json", []
        if flags.tools:
            from gemma3_jax.inference.tools import calls, schemas

            self._tools = schemas.load(pathlib.Path(flags.tools))
            self._instructions = calls.instructions(self._tools, self._format)

    def call_schema(self) -> dict:
        """The JSON Schema of a call of one of the tools."""
        from gemma3_jax.inference.tools import schemas

        return schemas.call_schema(self._tools)

    def answer(self, text: str) -> tuple[list[dict], list[dict]]:
        """The turns of one question, and the tool calls in its answer; none if it is in words.

        Raises: ValueError if the model calls an unknown tool, or calls one wrongly.
        """
        turns = [{"role": "user", "content": text}]
        if not self._tools:
            return [*turns, {"role": "model", "content": self._reply(turns)}], []
        if self._command:
            return self._converse(turns, self._run_command), []
        from gemma3_jax.inference.tools import calls

        reply = self._reply([{"role": "system", "content": self._instructions}, *turns])
        parsed = calls.parse(reply, self._tools, self._format) or []
        return [*turns, {"role": "model", "content": reply}], [dataclasses.asdict(call) for call in parsed]

    def run_at_prompt(self) -> None:
        """Reads turns from stdin and answers them, until the input ends."""
        terminal.say("type your turn on one line; Ctrl-C ends an answer, an empty line or Ctrl-D the chat")
        turns: list[dict] = []
        while text := terminal.ask("> "):
            turns.append({"role": "user", "content": text})
            if self._tools:
                turns = self._converse(turns, self._run_command if self._command else _type_result)
            else:
                turns.append({"role": "model", "content": self._reply(turns)})

    def _converse(self, turns: list[dict], run: Callable) -> list[dict]:
        from gemma3_jax.inference.tools import conversation

        return conversation.converse(self._reply, turns, self._tools, run=run, format=self._format, max_calls=MAX_CALLS)

    def _run_command(self, call) -> object:
        """The result that --tool_command prints for a call: JSON if it parses, else a string."""
        terminal.say(f"calling {call.name}({json.dumps(dict(call.arguments))})")
        call_json = json.dumps({"name": call.name, "parameters": dict(call.arguments)})
        return _parse_result(tool_process.run(self._command, call_json, self._tool_seconds))


def _type_result(call) -> object:
    return _parse_result(terminal.ask(f"result of {call.name}({json.dumps(dict(call.arguments))})> "))


def _parse_result(text: str) -> object:
    from gemma3_jax.inference.tools import json_schema

    try:
        return json_schema.read(text)
    except ValueError:
        return text
