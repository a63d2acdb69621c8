"""`generate`: samples from a checkpoint."""

import argparse
import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Callable

from gemma3_jax.cli import chat, model_flags, terminal


def parser() -> terminal.Parser:
    flags = terminal.Parser(
        prog="python -m gemma3_jax generate",
        description="Goes on from a text, or talks: --chat at a prompt, or with --prompt for one answer. One text is\n"
        "shown as it is written. A text ends at <eos>, <end_of_turn>, a string of --stop, or --max_new_tokens.\n\n"
        "Ids are drawn in the order of Transformers: temperature, top_k, top_p of what is left, min_p. The same seed\n"
        "gives the same text. Defaults are those that Gemma 3 is published with.",
        epilog="example:\n"
        "  python -m gemma3_jax generate --checkpoint=run --prompt='def main():' --max_new_tokens=64 --seed=1\n"
        "  python -m gemma3_jax generate --checkpoint=gemma-3-1b-it --chat --dtype=bfloat16",
    )
    model_flags.add_flags(flags, "model")
    flags.add_argument(
        "--prompt", action="append", metavar="TEXT", help="to go on from; several times for several; - for stdin"
    )
    flags.add_argument("--prompt_ids", metavar="N,...", help="the same as ids, BOS and all; needs no tokenizer")
    chat.add_flags(flags)
    flags.add_argument("--max_new_tokens", type=int, default=256, metavar="N", help="(256)")
    flags.add_argument("--context", type=int, default=0, metavar="N", help="tokens, prompt and all (the model's own)")
    for name, kind, says in (
        ("temperature", float, "divides logits; 0: always the most probable id (1.0)"),
        ("top_k", int, "so many most probable ids; 0: all (64)"),
        ("top_p", float, "the fewest ids that have this share together; 1: all (0.95)"),
        ("min_p", float, "ids at least so probable as this share of the most probable one (0)"),
    ):
        flags.add_argument(f"--{name}", type=kind, metavar="X" if kind is float else "N", help=says)
    flags.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")
    flags.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends a text; may be given often")
    flags.add_argument("--ignore_eos", action="store_true", help="write on behind <eos> and <end_of_turn>")
    flags.add_argument("--schema", metavar="FILE", help="a JSON schema that the text is held to")
    flags.add_argument("--regex", metavar="PATTERN", help="a regular expression that the text is held to")
    flags.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: ids, text, ended_by, calls; of several prompts: answers, a list of these",
    )
    return flags


def run(flags: argparse.Namespace) -> None:
    _check(flags)
    terminal.on_stop = terminal.Stop(None, "the text ends here")
    from gemma3_jax.inference import sampler, sampling

    chosen = {name: getattr(flags, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    asked = sampler.Asked(
        max_new_tokens=flags.max_new_tokens,
        how=sampling.Sampling(**{name: value for name, value in chosen.items() if value is not None}),
        seed=flags.seed,
        stop=tuple(flags.stop),
        ignore_ends=flags.ignore_eos,
    )
    gemma = model_flags.sampler(flags, axis="model", context=flags.context)
    if flags.prompt_ids is not None:
        if gemma.tokenizer is None and not flags.ignore_eos:
            terminal.say("note: there is no tokenizer: nothing but --max_new_tokens ends the text")
        _write(flags, gemma, [_ids(flags.prompt_ids)], asked)
    elif not flags.chat:
        _write(flags, gemma, [gemma.encode(text) for text in flags.prompt], asked)
    else:
        _talk(flags, gemma, asked)


def _check(flags: argparse.Namespace) -> None:
    if flags.prompt_ids is not None and (flags.prompt or flags.chat):
        raise ValueError("--prompt_ids stands for the whole prompt; leave out --prompt and --chat")
    if not flags.prompt and flags.prompt_ids is None and not flags.chat:
        raise ValueError("nothing to go on from; give --prompt, --prompt_ids or --chat")
    if flags.chat and not flags.prompt and flags.json:
        raise ValueError("--json is for one answer; give --prompt, or talk without --json")
    if flags.chat and len(flags.prompt or ()) > 1:
        raise ValueError("--chat answers one --prompt; give one, or none to talk")
    if flags.context < 0:
        raise ValueError(f"--context is {flags.context}; it must be at least 1, or left out")
    forms = [name for name in ("schema", "regex", "force_call") if getattr(flags, name)]
    if len(forms) > 1:
        raise ValueError(f"--{forms[0]} and --{forms[1]} both say what the text is; give one")
    if forms and flags.ignore_eos:
        raise ValueError(f"--{forms[0]} says where the text ends; leave out --ignore_eos")
    chat.check(flags)
    flags.prompt = [sys.stdin.read() if text == "-" else text for text in flags.prompt or ()]
    if "" in flags.prompt:
        raise ValueError("--prompt is empty; give a text to go on from")


def _ids(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise ValueError(f"--prompt_ids is {text!r:.60}; it must be token ids, as 2,9259,1902")
    return [int(part) for part in parts]


def _form(flags: argparse.Namespace, gemma, call_schema: Callable[[], dict]) -> Callable | None:
    """Makes what a text is held to, one for each; None where it is free."""
    if not (flags.schema or flags.regex or flags.force_call):
        return None
    from gemma3_jax.inference.tools import constrained, json_schema

    if gemma.tokenizer is None:
        raise ValueError("the checkpoint has no tokenizer, and a form is of text; name one with --tokenizer=FILE")
    grammars = constrained.Grammars(gemma.tokenizer, gemma.model.vocab_size)
    if flags.regex:
        return grammars.regex(flags.regex)
    return grammars.schema(json_schema.load(pathlib.Path(flags.schema)) if flags.schema else call_schema())


def _write(flags: argparse.Namespace, gemma, prompts: list[list[int]], asked) -> None:
    """How each prompt goes on."""
    is_shown = len(prompts) == 1 and not flags.json and gemma.tokenizer is not None
    answers = _go_on(gemma, prompts, asked, _form(flags, gemma, dict), is_shown=is_shown)
    if is_shown:
        return
    if flags.json:
        found = [dataclasses.asdict(answer) for answer in answers]
        print(json.dumps(found[0] if len(found) == 1 else {"answers": found}))
    else:
        print("\n---\n".join(_plain(answer) for answer in answers))


def _go_on(gemma, prompts: list[list[int]], asked, form: Callable | None, *, is_shown: bool) -> list:
    """The answers, with a bar until there is text to show."""
    from gemma3_jax.inference import sampler

    with terminal.bar("read and write", sampler.num_tokens(prompts, asked), unit="tokens") as bar:

        def show(text: str) -> None:
            bar.close()
            print(text, end="", flush=True)

        held_to = [form() for _ in prompts] if form else None
        answers = gemma.go_on(prompts, asked, constraints=held_to, show=show if is_shown else None, progress=bar.update)
    if is_shown:
        print()
    return answers


def _talk(flags: argparse.Namespace, gemma, asked) -> None:
    last: dict = {}

    def reply(turns: list[dict]) -> str:
        # Another draw for every turn, however often it is asked.
        seed = (asked.seed + next(number)) % (1 << 32)
        prompt = gemma.encode_turns(turns)
        (answer,) = _go_on(gemma, [prompt], dataclasses.replace(asked, seed=seed), form, is_shown=not flags.json)
        last.update(dataclasses.asdict(answer))
        return answer.text

    gemma.encode_turns([{"role": "user", "content": "?"}])  # refuses a model without turns before anybody types
    talk, number = chat.Talk(flags, reply), itertools.count()
    form = _form(flags, gemma, talk.call_schema)
    if not flags.prompt:
        talk.at_prompt()
        return
    turns, calls = talk.once(flags.prompt[0])
    if flags.json:
        print(json.dumps({**last, "turns": turns, **({"calls": calls} if flags.tools else {})}))
    elif calls:
        print(*map(json.dumps, calls), sep="\n")


def _plain(answer) -> str:
    return answer.text if answer.text is not None else ",".join(map(str, answer.ids))
