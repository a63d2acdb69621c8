"""`teach`: stores what a teacher says of the rows of a stage, to be learned from without it."""

import argparse
import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping

from gemma3_jax.cli import terminal


def parser() -> terminal.Parser:
    flags = terminal.Parser(
        prog="python -m gemma3_jax teach",
        description="Has a teacher go through all rows of a stage and stores what it says of every token, in few\n"
        "numbers (config.stages.NAME.samples). `train` learns from them with --config.stages.NAME.targets=DIR: the\n"
        "same rows in the same order, by a student with the same tokenizer. How much it will be is said first.\n"
        "Stopped or killed at any moment, the same command goes on. Status 124: a phase hung (config.deadlines).",
        epilog="example:\n  python -m gemma3_jax teach --config=experiments/demo.py --stage=pretrain \\\n"
        "      --checkpoint=runs/demo/teacher --output=runs/demo/targets --config.data=runs/demo/data",
    )
    flags.takes_overrides = True
    flags.add_argument("--config", required=True, metavar="FILE[:ARG]", help="the recipe of the student, as for train")
    flags.add_argument("--checkpoint", default="", metavar="DIR", help="the teacher (default: config.teacher)")
    flags.add_argument("--output", required=True, metavar="DIR", help="of the targets; made if it is not there")
    flags.add_argument("--stage", default="", metavar="NAME", help="whose rows (default: the only one that distils)")
    flags.add_argument("--json", action="store_true", help="print what it took as one JSON object on stdout")
    return flags


def run(flags: argparse.Namespace) -> None:
    from gemma3_jax import settings
    from gemma3_jax.cli import configs

    if not flags.output:
        raise ValueError("--output is empty; name the directory to write")
    if "://" in flags.output:
        raise ValueError(f"--output is {flags.output}; it must be a directory (of a file system that all hosts share)")
    terminal.on_stop = terminal.Stop(75, f"what is written in {flags.output} is kept: the same command goes on")
    given = configs.load(flags.config, flags.overrides, settings.Train)
    name = _stage(given, flags.stage)
    if flags.checkpoint:
        stage = dataclasses.replace(given.stages[name], teacher=flags.checkpoint)
        given = dataclasses.replace(given, stages={**given.stages, name: stage})

    import jax

    from gemma3_jax import hosts, teach
    from gemma3_jax.train import watchdog

    hosts.join()
    is_first, output = jax.process_index() == 0, pathlib.Path(flags.output).absolute()
    # Beside the targets: their directory is for them alone.
    stacks = output.with_name(f"{output.name}-stacks-{jax.process_index()}.txt")
    with contextlib.closing(watchdog.Watchdog(given.deadlines, stacks)) as watch:
        took = teach.execute(given, name, output, say=terminal.say, bar=terminal.bar, watch=watch)
    hosts.leave()
    if is_first:
        terminal.say(f"wrote {flags.output}: {_describe(took)}")
        if flags.json:
            print(json.dumps(took))


def _describe(took: Mapping) -> str:
    size = f"{took['bytes'] / 2**20:,.1f} MiB for {took['rows']:,} rows"
    if not took["tokens"]:
        return f"{size}; nothing was left to teach"
    return (
        f"{size}; {took['tokens']:,} tokens in {terminal.duration(took['seconds'])}, "
        f"{took['tokens_per_second']:,.0f} a second"
    )


def _stage(given, asked: str) -> str:
    distilled = [name for name in given.stage_order if given.stages[name].loss == "distill"]
    if asked and asked not in distilled:
        raise ValueError(f"--stage is {asked}; the stages that distil are: {', '.join(distilled) or 'none'}")
    if not asked and len(distilled) != 1:
        raise ValueError(f"--stage is not given; name one of those that distil: {', '.join(distilled) or 'none'}")
    return asked or distilled[0]
