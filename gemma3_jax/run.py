"""One run of a recipe in its directory: restores it where it was, trains on, and says how it ended.

config.json        every field, as resolved          checkpoints/   one for each saved step
metrics.jsonl      a row for each logged step        damaged/       those that could not be read
evaluations.jsonl  the evaluations                   tensorboard/   the rows again
skipped.jsonl      steps that were skipped           cache/         compiled programs
goodput.jsonl      where the time went               profile/       traces
starts.jsonl       every start: config, versions, data      tokenizer.model
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import jax

from gemma3_jax import chips, console, hosts, provenance, renamed, settings
from gemma3_jax.checkpoint import manager
from gemma3_jax.durable import atomic, json_file, jsonl, lock
from gemma3_jax.stages import adapter_inputs, build, inputs, trained
from gemma3_jax.train import (
    final,
    goodput,
    interrupts,
    loop,
    metrics,
    program,
    saver,
    stage_order,
    stage_run,
    step,
    trace,
    watchdog,
)

DONE, DIVERGED, STOPPED = 0, 70, interrupts.STOPPED  # exit statuses


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a start of a run, in addition to its config."""

    workdir: pathlib.Path
    only_stage: str = ""
    allow_data_change: bool = False
    overrides: tuple[str, ...] = ()  # in what the config is not the recipe's file, a line for each field
    trace_steps: tuple[int, int] | None = None  # steps of the run between which to trace
    started: float  # when the process did, by time.monotonic()


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a start of a run ended."""

    status: int
    text: str
    step: int | None  # the newest one that is saved
    seconds: dict[str, float]  # of the whole run, by kind
    final_loss: float | None = None  # of the last stage that was trained, as train.final has it; in the first process


def execute(config: settings.Train, options: RunOptions, out: console.Console) -> RunResult:
    """Starts the run in `options.workdir`, or resumes it.

    Raises: ValueError if it cannot, OSError if checkpoints keep failing.
    """
    workdir, is_first = options.workdir, jax.process_index() == 0
    if not is_first:
        out = console.SILENT
    with contextlib.ExitStack() as stack:
        # --- check everything before memory is allocated ---
        stacks_file = workdir / f"stacks-{jax.process_index()}.txt"
        hang_watchdog = stack.enter_context(contextlib.closing(watchdog.Watchdog(config.deadlines, stacks_file)))
        hang_watchdog.start("start_up")
        configs = [settings.resolve(config, name) for name in config.stage_order]
        stages = build.build(
            configs, workdir / manager.CHECKPOINTS, warn=out.say, allow_data_change=options.allow_data_change
        )
        out.say(*options.overrides, *map(_describe, stages))
        is_in_place = stack.enter_context(_locked(workdir, out.say)) if is_first else lambda: True

        def check_workdir() -> None:
            if hosts.any_host(not is_in_place()):
                raise OSError(
                    f"{workdir} was removed or replaced while the run was on, with its config, tokenizer and "
                    "checkpoints; nothing more is saved: put it back, or start the run anew"
                )

        # --- restore ---
        ledger_file = workdir / goodput.FILE if is_first else pathlib.Path(os.devnull)
        ledger = goodput.Ledger(jsonl.Journal(ledger_file, out.say, is_entry=goodput.is_entry), started=options.started)
        checkpoints = manager.CheckpointManager(
            workdir / manager.CHECKPOINTS,
            keep_last=config.checkpoints.keep_last,
            keep_every_steps=config.checkpoints.keep_every_steps,
            keep_steps=stage_order.offsets(stages),
            say=out.say,
        )

        def shapes_to_restore(step: int, cursor: Mapping, meta: Mapping) -> tuple[dict, object]:
            shapes = stages[stage_order.position(stages, step, cursor, meta)].program.state_shapes()
            return shapes.params, shapes.other_parts()

        with ledger.spend("restore"):
            restored = checkpoints.restore(shapes_to_restore)
        last = len(stages) - 1
        if options.only_stage:
            last = [stage.name for stage in stages].index(options.only_stage)
        if restored is None:
            first = _first_stage(config, stages, options)
            global_step = stage_order.offsets(stages)[first]
            state = stages[first].program.begin(_initial_params(configs[first], stages[first], out))
        else:
            first, global_step = _stage_of(restored, stages, last, options), restored.step
            state = step.State(params=restored.params, **restored.state)
            out.say(f"resuming from step {restored.step}, in {restored.meta['stage']}")
            if stages[first].name != restored.meta["stage"]:
                state = stages[first].program.begin(state.params)
        saved = restored and restored.step
        del restored  # else the optimizer state of a finished stage stays on the devices
        ledger.restored(global_step)

        # --- set up the services of the run ---
        save = saver.Saver(
            checkpoints,
            config.checkpoints,
            ledger,
            hang_watchdog,
            out.say,
            last_good=saved,
            check_directory=check_workdir,
        )
        chip = chips.find(jax.devices()[0].device_kind)
        services = loop.Services(
            saver=save,
            ledger=ledger,
            watchdog=hang_watchdog,
            interrupts=stack.enter_context(interrupts.Interrupts(out.say).handled()),
            writers=_writers(config, workdir, stages, last, global_step, out) if is_first else None,
            meter=metrics.Meter(ledger, chip and chip.peak_flops),
            log_every_steps=config.log.every_steps,
            trace=trace.Trace(workdir / "profile", *options.trace_steps) if options.trace_steps else None,
            say=out.say,
        )
        if saved is None and stages[first].keep_initial_checkpoint:
            save.save_blocking(stages[first], state, 0, global_step)

        # --- train ---
        status, text = DONE, "done" if first <= last else f"{stages[last].name} was done before"
        try:
            stage_order.run(stages, state, services, first=first, last=last)
        except loop.Stopped as error:
            status, text = STOPPED, f"stopped: {error}; run the same command to resume"
        except loop.Diverged as error:
            status, text = DIVERGED, f"diverged: {error}"
        finally:
            if services.trace:
                services.trace.close()
        check_workdir()
        if status != DIVERGED:  # the loop has recorded that
            ledger.record(save.last_good or 0)
        seconds, loss = ledger.total() if is_first else {}, None
        if is_first and status == DONE:
            loss = final.of_rows(jsonl.Journal(workdir / metrics.FILE, out.say).read(), "loss")
        return RunResult(status, text, save.last_good, seconds, None if loss is None or math.isnan(loss) else loss)


def _first_stage(config: settings.Train, stages: list[stage_run.StageRun], options: RunOptions) -> int:
    """Returns the number of the stage that a new run begins with. Raises: ValueError if `--stage` cannot be first."""
    names = [stage.name for stage in stages]
    first = names.index(options.only_stage) if options.only_stage else 0
    if first > 0 and not config.init_from:
        raise ValueError(
            f"--stage is {options.only_stage}, which starts where {names[first - 1]} ends; run that first, or name a "
            "checkpoint with --config.init_from"
        )
    return first


def _stage_of(restored: manager.Restored, stages: list[stage_run.StageRun], last: int, options: RunOptions) -> int:
    """Returns the number of the stage that resumes from a checkpoint: the next one, if its own has ended there.

    Raises: ValueError if `--stage` comes later.
    """
    index, before = [stage.name for stage in stages].index(restored.meta["stage"]), stage_order.offsets(stages)
    first = index + 1 if restored.step == before[index + 1] and index < last else index
    if options.only_stage and first < last:
        raise ValueError(
            f"--stage is {options.only_stage}, but the run is at step {restored.step - before[first]} of "
            f"{stages[first].num_steps} of {stages[first].name}; run that stage first"
        )
    return first


def _initial_params(config: settings.StageConfig, stage: stage_run.StageRun, out: console.Console) -> dict:
    mesh = stage.program.mesh
    if config.lora.rank:
        return adapter_inputs.initial_factors(config, mesh)
    if not config.init_from:
        return trained.fresh(config, mesh)
    checkpoint = inputs.open_init_from(config, stage.extra_files)
    mib = checkpoint.num_bytes() / 2**20
    out.say(f"reading {config.init_from} ({checkpoint.kind}, {mib:.1f} MiB)", *checkpoint.notes)
    with out.bar("read", checkpoint.num_bytes("float32")) as bar:
        params = checkpoint.load(mesh, "float32", bar.update)
    inputs.check_finite(params, f"config.init_from {config.init_from}")
    return params


def _writers(
    config: settings.Train,
    workdir: pathlib.Path,
    stages: list[stage_run.StageRun],
    last: int,
    after: int,
    out: console.Console,
) -> metrics.Writers:
    """Opens everything that the first process writes besides checkpoints; writes the config first.

    `last`: the number of the last stage that this start trains.
    """
    _write_config(config, workdir, stages, out.say)
    for file, content in stages[-1].extra_files.items():
        _write(workdir / file, content, out.say)
    numbers, tokens = {stage.name: number for number, stage in enumerate(stages)}, [_num_tokens(s) for s in stages]

    def show(row: Mapping) -> None:
        number = numbers[row["stage"]]
        name = f"{row['stage']} ({number + 1} of {len(stages)})" if len(stages) > 1 else row["stage"]
        seconds_after = sum(tokens[number + 1 : last + 1]) / row["tokens_per_second"]
        out.show(name, stages[number].num_steps, row, seconds_after)

    return metrics.Writers(
        workdir,
        config.log,
        after=after,
        config=dataclasses.asdict(config),
        warn=out.say,
        show=show,
    )


@contextlib.contextmanager
def _locked(workdir: pathlib.Path, say: Callable[..., None]) -> Iterator[Callable[[], bool]]:
    """Makes the directory and keeps a second run out of it. The system drops the lock when the process ends.

    Yields a function that returns whether the directory is still this run's. Raises: ValueError.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir {workdir} is not a directory")
    workdir.mkdir(parents=True, exist_ok=True)
    busy = f"another process trains in {workdir}; wait for it, or choose another --workdir"
    with lock.exclusive(workdir / ".lock", busy=busy, warn=say) as is_in_place:
        yield is_in_place


def _num_tokens(stage: stage_run.StageRun) -> int:
    return stage.program.num_steps * stage.program.tokens_per_step


def _describe(stage: stage_run.StageRun) -> str:
    """What of the run a stage is, and where it runs."""
    step_program = stage.program
    device, num_hosts = step_program.mesh.devices.flat[0].device_kind, jax.process_count()
    sizes = " x ".join(f"{axis} {size}" for axis, size in step_program.mesh.shape.items() if size > 1) or "one device"
    line = (
        f"{step_program.name}: {step_program.num_steps:,} steps of {step_program.tokens_per_step:,} tokens, "
        f"{_num_tokens(stage):,} in all, on {sizes} ({device}{f', {num_hosts} hosts' if num_hosts > 1 else ''})"
    )
    mib = {role: program.bytes_per_device(tree) / 2**20 for role, tree in step_program.frozen_shapes.items()}
    if step_program.frozen_flops_per_token:
        fraction = step_program.frozen_flops_per_token / step_program.flops_per_token
        line += f"; its teacher: {mib['teacher']:,.1f} MiB a device and {fraction:.0%} of the FLOPs"
    if trained.BASE in mib:
        num_factors = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(step_program.param_shapes))
        line += f"; trains {num_factors:,} parameters of adapters; their base: {mib[trained.BASE]:,.1f} MiB a device"
    return line


def differences(old: object, new: object) -> list[str]:
    """Returns a line for each field in which two configs, as nested dicts, differ: config.a.b: old -> new."""
    olds, news = provenance.fields(old), provenance.fields(new)
    fields = sorted(name for name in olds.keys() | news.keys() if olds.get(name) != news.get(name))
    return [f"config.{name}: {olds.get(name)!r} -> {news.get(name)!r}" for name in fields]


def _write_config(
    config: settings.Train, workdir: pathlib.Path, stages: list[stage_run.StageRun], say: Callable[..., None]
) -> None:
    """Writes the config and the row of this start, and reports what changed since the last start."""
    now, path = dataclasses.asdict(config), workdir / provenance.CONFIG
    try:
        if path.exists():
            before = renamed.current(json_file.read_object(path))
            say(*(f"changed since the last start: {line}" for line in differences(before, now)))
    except ValueError as error:
        say(f"warning: {error}; it is not a config that a run wrote, and is replaced")
    _write(path, json.dumps(jsonl.finite(now), indent=2).encode() + b"\n", say)
    start = {
        "time": time.time(),
        "command": sys.argv[1:],
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "data": {stage.name: _digests(stage) for stage in stages},
        "config": now,
    }
    jsonl.Journal(workdir / provenance.STARTS, say).write(start)


def _digests(stage: stage_run.StageRun) -> dict[str, str]:
    """Returns the digests of what a stage trains on, as a checkpoint stores them."""
    cursor = stage.cursor(0)
    rows = {name: cursor[name] for name in ("data", "mixture")}
    return rows | {name: stage.compat_keys[name] for name in ("tokenizer", "teacher")}


def _write(path: pathlib.Path, content: bytes, say: Callable[..., None]) -> None:
    try:
        atomic.replace(path, content)
    except OSError as error:
        say(f"warning: {path} cannot be written: {error}")
