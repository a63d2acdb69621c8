"""`train`: walks a recipe's stages in one run directory, and goes on there whatever stopped it."""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Mapping

from gemma3_jax.cli import terminal


def parser() -> terminal.Parser:
    from gemma3_jax import settings
    from gemma3_jax.cli import configs

    fields = "\n".join(f"  {line}" for line in configs.describe(settings.Train))
    flags = terminal.Parser(
        prog="python -m gemma3_jax train",
        description="Walks the stages of a recipe in one run directory. Stopped or killed at any moment, the same\n"
        "command goes on, and ends where it would have ended: a checkpoint holds parameters, optimizer, and the place\n"
        "in the data. One Ctrl-C or SIGTERM saves and stops (status 75), a second one stops at once. Status 70: too\n"
        "many steps in a row were not finite, or spiked; 124: a phase hung (config.deadlines).\n\n"
        "In the run directory: config.json (all fields), metrics.jsonl, skipped.jsonl (steps that were not taken),\n"
        "goodput.jsonl (where the time went), checkpoints/, tensorboard/, cache/ (compiled programs).",
        epilog="example:\n  python -m gemma3_jax train --config=experiments/demo.py --workdir=runs/demo \\\n"
        "      --config.data=data/demo --config.stages.pretrain.optimizer.peak_lr=2e-3\n\n"
        f"fields of the config and their defaults (NAME is one of yours):\n{fields}",
    )
    flags.takes_overrides = True
    flags.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a Python file with get_config()")
    flags.add_argument("--workdir", required=True, metavar="DIR", help="the run directory; made if it is not there")
    flags.add_argument("--stage", default="", metavar="NAME", help="run this stage of the stage_order alone")
    flags.add_argument(
        "--allow_data_change", action="store_true", help="go on although the data is not what the run began with"
    )
    flags.add_argument(
        "--cache", metavar="DIR", help="of compiled programs (default: WORKDIR/cache; --cache= keeps none)"
    )
    flags.add_argument(
        "--profile", metavar="START:STOP", help="trace the steps between into WORKDIR/profile, for TensorBoard or xprof"
    )
    flags.add_argument("--json", action="store_true", help="print how it ended as one JSON object on stdout")
    return flags


def run(flags: argparse.Namespace) -> int:
    from gemma3_jax import settings
    from gemma3_jax.cli import configs

    terminal.on_stop = terminal.Stop(75, "no step was taken: the same command goes on")
    given = configs.load(flags.config, flags.overrides, settings.Train)
    if flags.stage and flags.stage not in given.stage_order:
        raise ValueError(f"--stage is {flags.stage}; config.stage_order has: {', '.join(given.stage_order)}")
    if not flags.workdir:
        raise ValueError("--workdir is empty; name the directory of the run")
    if "://" in flags.workdir:
        raise ValueError(
            f"--workdir is {flags.workdir}; it must be a directory (of a file system that all hosts share)"
        )
    workdir = pathlib.Path(flags.workdir).absolute()
    _prepare_jax(str(workdir / "cache") if flags.cache is None else flags.cache)

    from gemma3_jax import hosts, run
    from gemma3_jax.train import goodput, trace

    recipe = configs.load(flags.config, [], settings.Train) if flags.overrides else given
    asked = run.Asked(
        workdir=workdir,
        only_stage=flags.stage,
        allow_data_change=flags.allow_data_change,
        traced=trace.parse(flags.profile) if flags.profile else None,
        changed=tuple(run.differences(dataclasses.asdict(recipe), dataclasses.asdict(given))),
        started=terminal.STARTED,
    )
    display = _Display()
    front = run.Front(say=terminal.say, show=display.show, bar=terminal.bar)
    try:
        ended = run.execute(given, asked, front)
    finally:
        display.close()
    hosts.leave()
    if ended.seconds:  # in the first process
        terminal.say(goodput.table(ended.seconds), f"gemma3_jax: {ended.text}")
        if flags.json:
            print(json.dumps(dataclasses.asdict(ended)))
    return ended.status


def _prepare_jax(cache: str) -> None:
    """Says where compiled programs are kept, and joins the other processes, if there are any."""
    import jax

    from gemma3_jax import hosts

    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    hosts.join()


class _Display:
    """One live line on a terminal; where stderr is no terminal, a line now and then."""

    SECONDS = 10.0  # between plain lines

    def __init__(self):
        self._bar, self._stage, self._last = None, "", 0.0

    def show(self, leg, row: Mapping) -> None:
        text = f"loss {row['loss']:.3f}  {row['tokens_per_second']:,.0f} tokens/s"
        text += f"  MFU {row['mfu']:.1%}" if "mfu" in row else ""
        text += f"  {row['data_wait_share']:.0%} waiting for data" if row["data_wait_share"] >= 0.01 else ""
        text += f"  {row['num_skipped']} skipped" if row["num_skipped"] else ""
        if sys.stderr.isatty():
            self._draw(leg, row["step"], text)
        elif (
            row["stage"] != self._stage or row["step"] == leg.num_steps or time.monotonic() > self._last + self.SECONDS
        ):
            self._stage, self._last = row["stage"], time.monotonic()
            left = terminal.duration((leg.num_steps - row["step"]) * row["step_seconds"])
            terminal.say(f"{leg.name} {row['step']}/{leg.num_steps}  {text}  {left} left")

    def _draw(self, leg, step: int, text: str) -> None:
        if self._stage != leg.name:
            self.close()
            self._stage, self._bar = leg.name, terminal.steps_bar(leg.name, leg.num_steps, step)
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None
