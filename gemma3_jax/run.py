"""One run of a recipe in its directory: goes back to where it was, walks on, and says how it ended.

config.json        every field, as resolved          checkpoints/   one for each saved step
metrics.jsonl      a row for each logged step        damaged/       those that could not be read
evaluations.jsonl  what was measured beside          tensorboard/   the rows again
skipped.jsonl      steps that were not believed      cache/         compiled programs
goodput.jsonl      where the time went               profile/       traces
starts.jsonl       every start: what, by which code  tokenizer.model
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import jax

from gemma3_jax import chips, provenance, settings, stages
from gemma3_jax.checkpoint import manager
from gemma3_jax.train import (
    goodput,
    interrupts,
    journal,
    loop,
    metrics,
    saver,
    stage,
    stage_order,
    step,
    trace,
    watchdog,
)

DONE, DIVERGED, STOPPED = 0, 70, interrupts.STOPPED  # exit statuses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What a start of a run was asked, beside its settings."""

    workdir: pathlib.Path
    only_stage: str = ""
    allow_data_change: bool = False
    changed: tuple[str, ...] = ()  # what the command line changed of the recipe, a line for each field
    traced: tuple[int, int] | None = None  # steps of the run between which to trace
    started: float  # when the process did, by time.monotonic()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Front:
    """How a run speaks: to a terminal, to nobody."""

    say: Callable[..., None]  # lines
    show: Callable[[stage.Leg, Mapping], None]  # a row, as it is written
    bar: Callable[[str, int], contextlib.AbstractContextManager]  # progress of reading so many bytes


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a start of a run ended."""

    status: int
    text: str
    step: int | None  # the newest one that is saved
    seconds: dict[str, float]  # of the whole run, by kind


def execute(given: settings.Train, asked: Asked, front: Front) -> Ended:
    """Goes on with the run in `asked.workdir`, or begins it.

    Raises: ValueError if it cannot, OSError if checkpoints keep failing.
    """
    is_first = jax.process_index() == 0
    if not is_first:
        front = dataclasses.replace(front, say=_nothing, show=_nothing, bar=_no_bar)
    stacks = asked.workdir / f"stacks-{jax.process_index()}.txt"
    with contextlib.closing(watchdog.Watchdog(given.deadlines, stacks)) as watch:
        watch.start("start_up")
        legs = stages.build(
            given,
            given.stage_order,
            asked.workdir / manager.CHECKPOINTS,
            warn=front.say,
            allow_data_change=asked.allow_data_change,
        )
        front.say(*asked.changed, *map(_describe, legs))
        with _locked(asked.workdir, front.say) if is_first else contextlib.nullcontext():
            return _go_on(given, asked, front, legs, watch)


def _go_on(given: settings.Train, asked: Asked, front: Front, legs: list[stage.Leg], watch: watchdog.Watchdog) -> Ended:
    """Goes back to where the run was, sets up who looks after it, and walks on."""
    is_first = jax.process_index() == 0
    ledger_file = asked.workdir / goodput.FILE if is_first else pathlib.Path(os.devnull)
    ledger = goodput.Ledger(journal.Journal(ledger_file, front.say), started=asked.started)
    checkpoints = manager.Series(
        asked.workdir / manager.CHECKPOINTS,
        keep_last=given.checkpoints.keep_last,
        keep_every_steps=given.checkpoints.keep_every_steps,
        keep_steps=stage_order.offsets(legs),
        say=front.say,
    )
    with ledger.spend("restore"):
        restored = checkpoints.restore(functools.partial(_what_to_read, legs))
    first, state, global_step = _begin(given, asked, legs, restored, front)
    saved = restored and restored.step
    del restored  # the optimizer's state of a stage that is over would stay on the devices
    ledger.restored(global_step)
    keeper = saver.Saver(checkpoints, given.checkpoints, ledger, watch, front.say, last_good=saved)
    chip = chips.find(jax.devices()[0].device_kind)
    with interrupts.Interrupts(front.say).handled() as pressed:
        crew = loop.Crew(
            saver=keeper,
            ledger=ledger,
            watchdog=watch,
            interrupts=pressed,
            writers=_writers(given, asked.workdir, legs, global_step, front) if is_first else None,
            meter=metrics.Meter(ledger, chip and chip.peak_flops),
            log_every_steps=given.log.every_steps,
            trace=trace.Trace(asked.workdir / "profile", *asked.traced) if asked.traced else None,
        )
        if saved is None and legs[first].needs_start:
            keeper.insist(legs[first], state, 0, global_step)
        status, text = _walk(legs, state, crew, first, _last(legs, asked))
    if status != DIVERGED:  # the loop has recorded that
        ledger.record(keeper.last_good or 0)
    return Ended(status, text, keeper.last_good, ledger.total() if is_first else {})


def _walk(legs, state: step.State, crew: loop.Crew, first: int, last: int) -> tuple[int, str]:
    try:
        stage_order.run(legs, state, crew, first=first, last=last)
    except loop.Stopped as error:
        return STOPPED, f"stopped: {error}; the same command goes on"
    except loop.Diverged as error:
        return DIVERGED, f"diverged: {error}"
    finally:
        if crew.trace:
            crew.trace.close()
    return DONE, "done" if first <= last else f"{legs[last].name} was done before"


def _last(legs: list[stage.Leg], asked: Asked) -> int:
    return len(legs) - 1 if not asked.only_stage else [leg.name for leg in legs].index(asked.only_stage)


def _what_to_read(legs: list[stage.Leg], step: int, cursor: Mapping, meta: Mapping) -> tuple[dict, object]:
    abstract = legs[stage_order.position(legs, step, cursor, meta)].abstract()
    return abstract.params, abstract.beside_params()


def _begin(
    given: settings.Train, asked: Asked, legs: list[stage.Leg], restored: manager.Restored | None, front: Front
) -> tuple[int, step.State, int]:
    """The leg to begin with, its state there, and the steps of the run that lie before.

    Raises: ValueError if `--stage` cannot begin there.
    """
    before, names, last = stage_order.offsets(legs), [leg.name for leg in legs], _last(legs, asked)
    if restored is None:
        first = last if asked.only_stage else 0
        if first > 0 and not given.init_from:
            raise ValueError(
                f"--stage is {asked.only_stage}, which starts where {names[first - 1]} ends; run that first, or name a "
                "checkpoint with --config.init_from"
            )
        return first, legs[first].begin(_start_params(given, legs[first], front)), before[first]
    index = names.index(restored.meta["stage"])
    state = step.State(params=restored.params, **restored.state)
    front.say(f"going on from step {restored.step}, in {names[index]}")
    if restored.step == before[index + 1] and index < last:
        index, state = index + 1, legs[index + 1].begin(state.params)
    if asked.only_stage and index < last:
        raise ValueError(
            f"--stage is {asked.only_stage}, but the run is at step {restored.step - before[index]} of "
            f"{legs[index].num_steps} of {names[index]}; run that stage first"
        )
    return index, state, restored.step


def _start_params(given: settings.Train, leg: stage.Leg, front: Front) -> dict:
    model = stages.stage_model(given, leg.name)
    if not given.init_from:
        return stages.fresh_params(given, leg, model)
    start = stages.open_start(given, leg, model)
    front.say(f"reading {given.init_from} ({start.kind}, {start.num_bytes() / 2**20:.1f} MiB)", *start.notes)
    with front.bar("read", start.num_bytes("float32")) as bar:
        return start.load(leg.mesh, "float32", bar.update)


def _writers(
    given: settings.Train, workdir: pathlib.Path, legs: list[stage.Leg], after: int, front: Front
) -> metrics.Writers:
    """Everything that the first process writes beside checkpoints, the config first."""
    _write_config(given, workdir, legs, front.say)
    for file, content in legs[-1].beside.items():
        _write(workdir / file, content, front.say)
    by_name = {leg.name: leg for leg in legs}
    return metrics.Writers(
        workdir,
        given.log,
        after=after,
        config=dataclasses.asdict(given),
        warn=front.say,
        show=lambda row: front.show(by_name[row["stage"]], row),
    )


@contextlib.contextmanager
def _locked(workdir: pathlib.Path, say: Callable[..., None]) -> Iterator[None]:
    """Makes the directory and keeps a second run out of it. The system drops the lock when the process ends.

    Raises: ValueError.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir {workdir} is not a directory")
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process trains in {workdir}; wait for it, or choose another --workdir") from None
        except OSError as error:
            say(f"warning: nothing keeps a second run out of {workdir}: {error}")
        yield


def _describe(leg: stage.Leg) -> str:
    sizes = " x ".join(f"{axis} {size}" for axis, size in leg.mesh.shape.items() if size > 1) or "one device"
    line = (
        f"{leg.name}: {leg.num_steps:,} steps of {leg.tokens_per_step:,} tokens, "
        f"{leg.num_steps * leg.tokens_per_step:,} in all, on {sizes}"
    )
    if leg.frozen.shapes:
        share = leg.frozen.flops_per_token / leg.flops_per_token
        mib = leg.frozen.bytes_per_device() / 2**20
        line += f"; its teacher: {mib:,.1f} MiB a device and {share:.0%} of the operations"
    return line


def differences(old: object, new: object) -> list[str]:
    """A line for each field in which two configs, as nested dicts, differ: config.a.b: old -> new."""
    olds, news = provenance.fields(old), provenance.fields(new)
    fields = sorted(name for name in olds.keys() | news.keys() if olds.get(name) != news.get(name))
    return [f"config.{name}: {olds.get(name)!r} -> {news.get(name)!r}" for name in fields]


def _write_config(
    given: settings.Train, workdir: pathlib.Path, legs: list[stage.Leg], say: Callable[..., None]
) -> None:
    """Writes the resolved config, what this start is made of, and says what changed since the last one here."""
    now, path = dataclasses.asdict(given), workdir / provenance.CONFIG
    try:
        if path.exists():
            say(*(f"changed since the last start: {line}" for line in differences(json.loads(path.read_text()), now)))
    except ValueError as error:
        say(f"warning: {path} is not what a run writes, and is written anew: {error}")
    _write(path, json.dumps(journal.finite(now), indent=2).encode() + b"\n", say)
    start = {
        "time": time.time(),
        "command": sys.argv[1:],
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "data": {leg.name: _digests(leg) for leg in legs},
        "config": now,
    }
    journal.Journal(workdir / provenance.STARTS, say).write(start)


def _digests(leg: stage.Leg) -> dict[str, str]:
    """What a leg learns from, by the names that a checkpoint knows it by."""
    cursor = leg.cursor(0)
    rows = {name: cursor[name] for name in ("data", "mixture")}
    return rows | {name: leg.identity[name] for name in ("tokenizer", "teacher")}


def _write(path: pathlib.Path, content: bytes, say: Callable[..., None]) -> None:
    try:
        journal.replace(path, content)
    except OSError as error:
        say(f"warning: {path} cannot be written: {error}")


def _nothing(*_) -> None: ...


def _no_bar(*_) -> contextlib.AbstractContextManager:
    class Silent:
        update = staticmethod(_nothing)

    return contextlib.nullcontext(Silent)
