"""A chat at a prompt, or of one turn, in which the model may call tools."""

import argparse
import dataclasses
import json
import pathlib
import subprocess
from collections.abc import Callable

from gemma3_jax.cli import terminal

MOST_CALLS = 8  # before an answer in words


def add_flags(parser: terminal.Parser) -> None:
    parser.add_argument("--chat", action="store_true", help="in Gemma's turns; without --prompt at a prompt")
    parser.add_argument(
        "--tools", metavar="FILE", help="a JSON list of what the model may call: name, description, parameters (schema)"
    )
    parser.add_argument("--tool_format", choices=("json", "python"), help="how calls are written (json)")
    parser.add_argument(
        "--tool_command",
        metavar="PROGRAM",
        help="gets each call as JSON on stdin, and prints what is fed back (default: calls are printed; at a prompt "
        "you type what they give)",
    )
    parser.add_argument("--force_call", action="store_true", help="the answer must be a call, in JSON")


def check(flags: argparse.Namespace) -> None:
    """Raises: ValueError if flags of tools are given without them."""
    for name in ("tools", "tool_format", "tool_command", "force_call"):
        if getattr(flags, name) and not (flags.chat and flags.tools):
            raise ValueError(f"--{name} is for --chat with --tools; give both")
    if flags.force_call and flags.tool_format == "python":
        raise ValueError("--force_call holds calls to JSON; leave out --tool_format=python")
    if flags.force_call and (flags.tool_command or not flags.prompt):
        raise ValueError("--force_call gives one call; give --prompt, and no --tool_command")
    if flags.tool_command and not pathlib.Path(flags.tool_command).is_file():
        raise ValueError(f"--tool_command is {flags.tool_command}, which is not a file; name a program")


class Talk:
    """Turns with one model. `reply` takes turns, and shows or keeps what is written."""

    def __init__(self, flags: argparse.Namespace, reply: Callable[[list[dict]], str]):
        self._reply, self._command = reply, flags.tool_command
        self._format, self._known = flags.tool_format or "json", []
        if flags.tools:
            from gemma3_jax.inference.tools import calls, schemas

            self._known = schemas.load(pathlib.Path(flags.tools))
            self._introduction = calls.instructions(self._known, self._format)

    def call_schema(self) -> dict:
        """What a call of one of the tools has to be."""
        from gemma3_jax.inference.tools import schemas

        return schemas.schema(self._known)

    def once(self, text: str) -> tuple[list[dict], list[dict]]:
        """The turns of one question, and the calls of tools that its answer is; none if it is words.

        Raises: ValueError if the model calls a tool that there is not, or wrongly.
        """
        turns = [{"role": "user", "content": text}]
        if not self._known:
            return [*turns, {"role": "model", "content": self._reply(turns)}], []
        if self._command:
            return self._converse(turns, self._run), []
        from gemma3_jax.inference.tools import calls

        said = self._reply([{"role": "system", "content": self._introduction}, *turns])
        asked = calls.parse(said, self._known, self._format) or []
        return [*turns, {"role": "model", "content": said}], [dataclasses.asdict(call) for call in asked]

    def at_prompt(self) -> None:
        """Turn after turn, until the input ends."""
        terminal.say("a line is your turn; an empty one, or Ctrl-D, ends the talk")
        turns: list[dict] = []
        while text := terminal.ask("> "):
            turns.append({"role": "user", "content": text})
            if self._known:
                turns = self._converse(turns, self._run if self._command else _ask_for)
            else:
                turns.append({"role": "model", "content": self._reply(turns)})

    def _converse(self, turns: list[dict], run: Callable) -> list[dict]:
        from gemma3_jax.inference import conversation

        return conversation.converse(
            self._reply, turns, self._known, run=run, format=self._format, max_calls=MOST_CALLS
        )

    def _run(self, call) -> object:
        """What the program prints for a call: JSON if it is that, else text."""
        terminal.say(f"calling {call.name}({json.dumps(dict(call.arguments))})")
        given = json.dumps({"name": call.name, "parameters": dict(call.arguments)})
        done = subprocess.run(
            [str(pathlib.Path(self._command).absolute())], input=given, capture_output=True, text=True
        )
        if done.returncode:
            problem = done.stderr.strip().rpartition("\n")[2]
            raise ValueError(f"--tool_command {self._command} ended with status {done.returncode}: {problem}")
        return _parsed(done.stdout.strip())


def _ask_for(call) -> object:
    return _parsed(terminal.ask(f"{call.name}({json.dumps(dict(call.arguments))}) gives> "))


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text
