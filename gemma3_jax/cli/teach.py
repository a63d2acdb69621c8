"""`teach`: stores the targets of a teacher for the sequences of a stage, to train students without the teacher."""

import argparse
import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping

from gemma3_jax.cli import terminal, verification


def parser() -> terminal.Parser:
    flags = terminal.Parser(
        prog="python -m gemma3_jax teach",
        description="Runs a teacher over all sequences of a stage and stores its targets: a few token ids and weights\n"
        "for each token, by the estimator of the stage (config.stages.NAME.samples). Any student with the same\n"
        "tokenizer can then train on the same sequences in the same order without the teacher\n"
        "(config.stages.NAME.targets). Prints the size on disk before it starts. --config.FIELD=VALUE sets any\n"
        "field of the recipe.\n\n"
        "Run the same command again to resume after a stop or a crash. Exit status: 75 stopped by Ctrl-C or\n"
        "SIGTERM; 124 a phase exceeded its deadline (config.deadlines).",
        epilog="example:\n  python -m gemma3_jax teach --config=experiments/demo.py --stage=pretrain \\\n"
        "      --checkpoint=runs/demo/teacher --output=runs/demo/targets --config.data=runs/demo/data",
    )
    flags.takes_overrides = True
    flags.add_argument(
        "--config", required=True, metavar="FILE[:ARG]", help="the recipe: a Python file with get_config()"
    )
    flags.add_argument("--checkpoint", default="", metavar="PATH", help="the teacher (default: config.teacher)")
    flags.add_argument(
        "--output", required=True, metavar="DIR", help="the directory of the targets; created if it does not exist"
    )
    flags.add_argument(
        "--stage", default="", metavar="NAME", help="the stage (default: the only one with loss distill)"
    )
    verification.add_flag(flags)
    flags.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
    return flags


def run(flags: argparse.Namespace) -> None:
    from gemma3_jax import settings
    from gemma3_jax.cli import recipes

    if not flags.output:
        raise ValueError("--output is empty; name the directory to write")
    if "://" in flags.output:
        raise ValueError(f"--output is {flags.output}; it must be a directory (of a file system that all hosts share)")
    terminal.on_stop = terminal.Stop(75, f"finished work stays in {flags.output}; run the same command to resume")
    run_config = recipes.load(flags.config, flags.overrides)
    config = settings.resolve(run_config, _stage_name(run_config, flags.stage))
    if flags.checkpoint:
        config = dataclasses.replace(config, teacher=flags.checkpoint)

    import jax

    from gemma3_jax import console, hosts, teach
    from gemma3_jax.train import watchdog

    hosts.join(terminal.say, status_if_late=watchdog.STALLED)
    verification.run(flags, [config])
    is_first, output = jax.process_index() == 0, pathlib.Path(flags.output).absolute()
    # Beside the directory of the targets, which has no other files.
    stacks = output.with_name(f"{output.name}-stacks-{jax.process_index()}.txt")
    with contextlib.closing(watchdog.Watchdog(run_config.deadlines, stacks)) as hang_watchdog:
        out = console.Console(say=terminal.say, bar=terminal.bar)
        summary = teach.execute(config, output, out=out, hang_watchdog=hang_watchdog)
    hosts.leave()
    if is_first:
        terminal.say(f"wrote {flags.output}: {_describe(summary)}")
        if flags.json:
            terminal.show(json.dumps(summary))


def _describe(summary: Mapping) -> str:
    size = f"{summary['bytes'] / 2**20:,.1f} MiB for {summary['rows']:,} sequences"
    if not summary["tokens"]:
        return f"{size}; no targets were missing"
    return (
        f"{size}; {summary['tokens']:,} tokens in {terminal.duration(summary['seconds'])}, "
        f"{summary['tokens_per_second']:,.0f} a second"
    )


def _stage_name(config, stage_flag: str) -> str:
    """Returns the stage of the flag, or the only one that distills. Raises: ValueError."""
    distilled = [name for name in config.stage_order if config.stages[name].loss == "distill"]
    if stage_flag and stage_flag not in distilled:
        raise ValueError(f"--stage is {stage_flag}; the stages that distill are: {', '.join(distilled) or 'none'}")
    if not stage_flag and len(distilled) != 1:
        raise ValueError(f"--stage is missing; the stages that distill are: {', '.join(distilled) or 'none'}")
    return stage_flag or distilled[0]
