"""`generate`: samples from a checkpoint."""

import argparse
import contextlib
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable

from gemma3_jax import console
from gemma3_jax.cli import chat, model_flags, terminal


def parser() -> terminal.Parser:
    flags = terminal.Parser(
        prog="python -m gemma3_jax generate",
        description="Continues a text, or chats: with --chat at a prompt, or with --chat and --prompt for one answer.\n"
        "A single text is shown while it is generated. A text ends at <eos>, <end_of_turn> or a string of --stop,\n"
        "or after --max_new_tokens.\n\n"
        "Sampling filters apply in the order of Transformers: --temperature, --top_k, --top_p, --min_p. The same\n"
        "seed gives the same text. The sampling defaults are those that Gemma 3 is published with.",
        epilog="example:\n"
        "  python -m gemma3_jax generate --checkpoint=run --prompt='def main():' --max_new_tokens=64 --seed=1\n"
        "  python -m gemma3_jax generate --checkpoint=gemma-3-1b-it --chat --dtype=bfloat16",
    )
    model_flags.add_flags(flags, "model")
    flags.add_argument(
        "--prompt", action="append", metavar="TEXT", help="text to continue; - reads stdin; may be repeated"
    )
    flags.add_argument("--prompt_ids", metavar="ID,...", help="token ids to continue, BOS included; needs no tokenizer")
    chat.add_flags(flags)
    flags.add_argument(
        "--max_new_tokens", type=int, default=256, metavar="N", help="tokens to generate at most (default: 256)"
    )
    _add_sampling_flags(flags)
    flags.add_argument(
        "--context",
        type=int,
        default=0,
        metavar="N",
        help="tokens that a prompt and its completion may have (default: the model's context length)",
    )
    flags.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="a string that ends the text; may be repeated",
    )
    flags.add_argument("--ignore_eos", action="store_true", help="continue after <eos> and <end_of_turn>")
    flags.add_argument(
        "--schema", metavar="FILE", help="generate JSON that is valid under the JSON Schema in this file"
    )
    flags.add_argument("--regex", metavar="PATTERN", help="generate text that matches this regular expression")
    flags.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object with ids, text, ended_by and, with --tools, calls; for several prompts, an object "
        "whose answers is a list of these",
    )
    return flags


def _add_sampling_flags(flags: terminal.Parser) -> None:
    for name, kind, text in (
        ("temperature", float, "divide the logits by X; 0 always takes the most probable token (default: 1.0)"),
        ("top_k", int, "sample from the N most probable tokens; 0 keeps all (default: 64)"),
        (
            "top_p",
            float,
            "sample from the fewest tokens whose probabilities sum to at least X; 1 keeps all (default: 0.95)",
        ),
        ("min_p", float, "drop tokens less probable than X times the most probable one; 0 keeps all (default: 0)"),
    ):
        flags.add_argument(f"--{name}", type=kind, metavar="X" if kind is float else "N", help=text)
    flags.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random draws (default: 0)")


def run(flags: argparse.Namespace) -> None:
    _check(flags)
    terminal.on_stop = terminal.Stop(None, "the text ends here")
    from gemma3_jax.inference import sampler, sampling

    sampling_flags = {name: getattr(flags, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    options = sampler.GenerateOptions(
        max_new_tokens=flags.max_new_tokens,
        sampling_options=sampling.Sampling(
            **{name: value for name, value in sampling_flags.items() if value is not None}
        ),
        seed=flags.seed,
        stop=tuple(flags.stop),
        ignore_ends=flags.ignore_eos,
    )
    gemma = model_flags.open_sampler(flags, axis="model", context=flags.context)
    if flags.prompt_ids is not None:
        if gemma.tokenizer is None and not flags.ignore_eos:
            terminal.say("note: there is no tokenizer: nothing but --max_new_tokens ends the text")
        _complete(flags, gemma, [_parse_ids(flags.prompt_ids)], options)
    elif not flags.chat:
        _complete(flags, gemma, [gemma.encode(text) for text in flags.prompt], options)
    else:
        _chat(flags, gemma, options)


def _check(flags: argparse.Namespace) -> None:
    if flags.prompt_ids is not None and (flags.prompt or flags.chat):
        raise ValueError("--prompt_ids is the whole prompt; leave out --prompt and --chat")
    if not flags.prompt and flags.prompt_ids is None and not flags.chat:
        raise ValueError("there is no prompt; give --prompt, --prompt_ids or --chat")
    if flags.chat and not flags.prompt and flags.json:
        raise ValueError("--json is for one answer; give --prompt, or chat without --json")
    if flags.chat and len(flags.prompt or ()) > 1:
        raise ValueError("--chat answers one --prompt; give one, or none to chat at a prompt")
    if flags.context < 0:
        raise ValueError(f"--context is {flags.context}; it must be at least 1, or left out")
    constraints = [name for name in ("schema", "regex", "force_call") if getattr(flags, name)]
    if len(constraints) > 1:
        raise ValueError(f"--{constraints[0]} and --{constraints[1]} both constrain the text; give one")
    if constraints and flags.ignore_eos:
        raise ValueError(f"--{constraints[0]} determines where the text ends; leave out --ignore_eos")
    chat.check(flags)
    for name, texts in (("prompt", flags.prompt or ()), ("stop", flags.stop), ("regex", [flags.regex or ""])):
        for text in texts:
            terminal.check_text(text, f"--{name}")
    flags.prompt = [terminal.read_stdin() if text == "-" else text for text in flags.prompt or ()]
    if "" in flags.prompt:
        raise ValueError("--prompt is empty; give a text to continue")


def _parse_ids(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
        raise ValueError(f"--prompt_ids is {text!r:.60}; it must be token ids, as 2,9259,1902")
    return [int(part) for part in parts]


def _constraint_factory(flags: argparse.Namespace, gemma, call_schema: Callable[[], dict]) -> Callable | None:
    """A function that makes one sequence's constraint; None if the flags ask for none."""
    if not (flags.schema or flags.regex or flags.force_call):
        return None
    from gemma3_jax.inference.tools import constrained, json_schema

    if gemma.tokenizer is None:
        raise ValueError("the checkpoint has no tokenizer, and constraints apply to text; name one: --tokenizer=FILE")
    grammars = constrained.Grammars(gemma.tokenizer, gemma.model.vocab_size)
    if flags.regex:
        return grammars.regex(flags.regex)
    return grammars.schema(json_schema.load(pathlib.Path(flags.schema)) if flags.schema else call_schema())


def _complete(flags: argparse.Namespace, gemma, prompts: list[list[int]], options) -> None:
    """Prints the completion of each prompt."""
    is_shown = len(prompts) == 1 and not flags.json and gemma.tokenizer is not None
    completions = complete(gemma, prompts, options, _constraint_factory(flags, gemma, dict), is_shown=is_shown)
    if is_shown:
        return
    if flags.json:
        answers = [dataclasses.asdict(completion) for completion in completions]
        terminal.show(json.dumps(answers[0] if len(answers) == 1 else {"answers": answers}))
    else:
        terminal.show(*map(_plain, completions), sep="\n---\n")


def complete(
    gemma,
    prompts: list[list[int]],
    options,
    make_constraint: Callable | None,
    *,
    is_shown: bool,
    is_interrupted: Callable[[], bool] = console.never,
) -> list:
    """The completions, with a progress bar until there is text to show.

    `is_interrupted` returns whether no more text is wanted.
    """
    from gemma3_jax.inference import sampler

    with terminal.bar("read and write", sampler.num_tokens(prompts, options), unit="tokens") as bar:

        def show(text: str) -> None:
            bar.close()
            terminal.show(text, end="")

        constraints = [make_constraint() for _ in prompts] if make_constraint else None
        completions = gemma.continue_(
            prompts,
            options,
            constraints=constraints,
            show=show if is_shown else None,
            progress=bar.update,
            is_interrupted=is_interrupted,
        )
    if is_shown:
        terminal.show("")
    return completions


def _chat(flags: argparse.Namespace, gemma, options) -> None:
    last: dict = {}

    def reply(turns: list[dict]) -> str:
        # A different seed for every turn.
        seed = (options.seed + next(turn_numbers)) % (1 << 32)
        prompt = gemma.encode_turns(turns)
        turn_options = dataclasses.replace(options, seed=seed)
        with contextlib.nullcontext(console.never) if flags.prompt else terminal.interruptible() as is_interrupted:
            (completion,) = complete(
                gemma, [prompt], turn_options, make_constraint, is_shown=not flags.json, is_interrupted=is_interrupted
            )
        last.update(dataclasses.asdict(completion))
        return completion.text

    gemma.encode_turns([{"role": "user", "content": "?"}])  # refuses a model without turns before anybody types
    session, turn_numbers = chat.ChatSession(flags, reply), itertools.count()
    make_constraint = _constraint_factory(flags, gemma, session.call_schema)
    if not flags.prompt:
        session.run_at_prompt()
        return
    turns, calls = session.answer(flags.prompt[0])
    if flags.json:
        terminal.show(json.dumps({**last, "turns": turns, **({"calls": calls} if flags.tools else {})}))
    elif calls:
        terminal.show(*map(json.dumps, calls))


def _plain(completion) -> str:
    return completion.text if completion.text is not None else ",".join(map(str, completion.ids))
