"""`train`: trains the stages of a recipe in a run directory, and resumes a run that was stopped."""

import argparse
import dataclasses
import json
import pathlib
import re
import shlex
import sys
import textwrap
import time
from collections.abc import Mapping

from gemma3_jax.cli import terminal, verification


def parser() -> terminal.Parser:
    from gemma3_jax import settings
    from gemma3_jax.cli import field_help

    fields = textwrap.indent("\n".join(field_help.describe(settings.Train)), "  ")
    fields = re.sub(r"(--config\.model\.\w+=)\(must be set\)", r"\1(that of init_from)", fields)
    flags = terminal.Parser(
        prog="python -m gemma3_jax train",
        description="Trains the stages of a recipe in a run directory. --config.FIELD=VALUE sets any field.\n\n"
        "Run the same command again to resume after a stop or a crash: a checkpoint has the parameters, the\n"
        "optimizer state and the position in the data, and the result is equal to the last bit. Ctrl-C or\n"
        "SIGTERM saves and stops; a second one stops at once.\n\n"
        "Exit status: 0 done; 1 a mistake in the command, the config or the files; 70 diverged: too many steps in\n"
        "a row were skipped, as their loss was not finite or spiked; 71 an unexpected error, with a traceback;\n"
        "75 saved and stopped; 124 a phase exceeded its deadline (config.deadlines); 130, 143 stopped at once.\n\n"
        "The run directory has\n\n"
        "config.json        all fields, as resolved         checkpoints/   one for each saved step\n"
        "metrics.jsonl      a row for each logged step      damaged/       those that could not be read\n"
        "evaluations.jsonl  the evaluations                 tensorboard/   metrics and evaluations, for TensorBoard\n"
        "skipped.jsonl      the skipped steps               cache/         compiled programs\n"
        "goodput.jsonl      time by kind                    profile/       traces of --profile\n"
        "starts.jsonl       each start: command, versions   stacks-N.txt   the stacks of a process that hung\n"
        "tokenizer.model    the tokenizer of the data",
        epilog="example:\n  python -m gemma3_jax train --config=experiments/finetune.py --workdir=runs/tuned \\\n"
        "      --config.init_from=gemma-3-1b-it --config.data=data\n"
        "  python -m gemma3_jax train --config=experiments/demo.py --workdir=runs/my_run \\\n"
        "      --config.data=data/demo --config.stages.pretrain.optimizer.peak_lr=2e-3\n\n"
        f"fields of the config and their defaults (NAME is the key of an entry):\n{fields}",
    )
    flags.takes_overrides = True
    flags.add_argument(
        "--config", required=True, metavar="FILE[:ARG]", help="the recipe: a Python file with get_config()"
    )
    flags.add_argument(
        "--workdir", required=True, metavar="DIR", help="the run directory; created if it does not exist"
    )
    flags.add_argument("--stage", default="", metavar="NAME", help="train this stage alone (default: all)")
    flags.add_argument(
        "--allow_data_change", action="store_true", help="resume even if the data has changed since the run began"
    )
    verification.add_flag(flags)
    flags.add_argument(
        "--cache", metavar="DIR", help="directory of compiled programs; empty for none (default: WORKDIR/cache)"
    )
    flags.add_argument(
        "--profile", metavar="START:STOP", help="profile the steps after START up to STOP, into WORKDIR/profile"
    )
    flags.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
    return flags


def run(flags: argparse.Namespace) -> int:
    from gemma3_jax import settings
    from gemma3_jax.cli import configs, recipes

    terminal.on_stop = terminal.Stop(75, "no step was taken; run the same command to resume")
    config = recipes.load(flags.config, flags.overrides)
    if flags.stage and flags.stage not in config.stage_order:
        raise ValueError(f"--stage is {flags.stage}; config.stage_order has: {', '.join(config.stage_order)}")
    if not flags.workdir:
        raise ValueError("--workdir is empty; name the directory of the run")
    if "://" in flags.workdir:
        raise ValueError(
            f"--workdir is {flags.workdir}; it must be a directory (of a file system that all hosts share)"
        )
    workdir = pathlib.Path(flags.workdir).absolute()
    _prepare_jax(str(workdir / "cache") if flags.cache is None else flags.cache)

    from gemma3_jax import console, hosts, run
    from gemma3_jax.train import goodput, trace

    names = [flags.stage] if flags.stage else config.stage_order
    verification.run(flags, (settings.resolve(config, name) for name in names))
    recipe = configs.read(configs.run_file(flags.config), [], settings.Train)
    options = run.RunOptions(
        workdir=workdir,
        only_stage=flags.stage,
        allow_data_change=flags.allow_data_change,
        trace_steps=trace.parse(flags.profile) if flags.profile else None,
        overrides=tuple(run.differences(recipe, dataclasses.asdict(config))),
        started=terminal.STARTED,
    )
    display = _Display()
    out = console.Console(say=terminal.say, show=display.show, bar=terminal.bar)
    try:
        result = run.execute(config, options, out)
    finally:
        display.close()
    hosts.leave()
    if result.seconds:  # in the first process
        terminal.say(goodput.table(result.seconds), *_last_lines(flags.workdir, result, bool(config.lora.rank)))
        if flags.json:
            terminal.show(json.dumps(dataclasses.asdict(result)))
    return result.status


def _last_lines(workdir: str, result, has_adapters: bool) -> list[str]:
    """How the run ended; if it is done, its final loss, where it is saved, and what to do with it."""
    from gemma3_jax import run
    from gemma3_jax.checkpoint import manager

    if result.status != run.DONE:
        return [f"gemma3_jax: {result.text}"]
    loss = "" if result.final_loss is None else f"final loss {result.final_loss:.3f}, "
    verb, kind = "python -m gemma3_jax", "peft" if has_adapters else "hf"
    path, target = shlex.quote(workdir), shlex.quote(f"{workdir.rstrip('/')}-{kind}")
    return [
        f"gemma3_jax: {result.text}; {loss}saved in {pathlib.Path(workdir) / manager.CHECKPOINTS / str(result.step)}",
        f"  next: {verb} evaluate --checkpoint={path} --task=perplexity --input=FILE",
        f"        {verb} convert --source={path} --target={target} --format={kind}",
    ]


def _prepare_jax(cache: str) -> None:
    """Sets the directory of compiled programs, and joins the other processes of the run."""
    import jax

    from gemma3_jax import hosts
    from gemma3_jax.train import watchdog

    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        # Keys would hold the path of the cache (findings/jax_cache_key_holds_its_path.sh).
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    hosts.join(terminal.say, status_if_late=watchdog.STALLED)


class _Display:
    """Shows the progress of training: a progress bar on a terminal, elsewhere a line every ten seconds."""

    SECONDS = 10.0  # between plain lines

    def __init__(self):
        self._bar, self._stage, self._last = None, "", 0.0

    def show(self, stage: str, num_steps: int, row: Mapping, seconds_after: float) -> None:
        """Shows a row of a stage. `seconds_after`: what the stages after it are expected to take."""
        text = f"loss {row['loss']:.3f}  {row['tokens_per_second']:,.0f} tokens/s"
        text += f"  MFU {row['mfu']:.1%}" if "mfu" in row else ""
        text += f"  {row['data_wait_share']:.0%} waiting for data" if row["data_wait_share"] >= 0.01 else ""
        text += f"  {row['num_skipped']} skipped" if row["num_skipped"] else ""
        seconds = seconds_after + (num_steps - row["step"]) * row["step_seconds"]
        whole = f"{terminal.duration(seconds)} with all stages" if seconds_after else ""
        if sys.stderr.isatty():
            self._draw(stage, num_steps, row["step"], f"{text}  {whole}" if whole else text)
        elif stage != self._stage or row["step"] == num_steps or time.monotonic() > self._last + self.SECONDS:
            self._stage, self._last = stage, time.monotonic()
            seconds = (num_steps - row["step"]) * row["step_seconds"]
            left = f"{terminal.duration(seconds)} left" + (f", {whole}" if whole else "")
            terminal.say(f"{stage} {row['step']}/{num_steps}  {text}  {left}")

    def _draw(self, stage: str, num_steps: int, step: int, text: str) -> None:
        if self._stage != stage:
            self.close()
            self._stage, self._bar = stage, terminal.steps_bar(stage, num_steps, step)
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None
