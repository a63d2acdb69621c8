"""The training loop of every stage of the recipe: they differ in the five fields of `program.Stage` alone.

Metrics are read one step late: the device always has its next step before the host waits for the last one.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gemma3_jax import hosts
from gemma3_jax.train import goodput, interrupts, metrics, program, saver, stage_run, step, trace, watchdog

RECORD_SECONDS = 10.0  # between records in goodput.jsonl


class Stopped(Exception):
    """The run has saved, and stops because of a signal."""


class Diverged(Exception):
    """Too many steps in a row were skipped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Services:
    """Services of a run: saving, timing, signals and logging."""

    saver: saver.Saver
    ledger: goodput.Ledger
    watchdog: watchdog.Watchdog
    interrupts: interrupts.Interrupts
    writers: metrics.Writers | None  # None: another process writes
    meter: metrics.Meter
    log_every_steps: int
    trace: trace.Trace | None
    say: Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class PendingStep:
    """A step that is dispatched, and whose metrics have not been read."""

    done: int  # steps of the stage, this one included
    batch_id: str
    logged: step.Sums


def run(
    stage: stage_run.StageRun, state: step.State, *, steps_before: int, tokens_before: int, services: Services
) -> step.State:
    """Takes the remaining steps of a stage, and saves at its end. Returns the state after the last step.

    `steps_before` and `tokens_before` count the stages before this one.
    Raises: Stopped, once saved; Diverged; OSError if checkpoints keep failing.
    """
    compiled, done, pending, last_record = None, int(state.step), None, time.monotonic()
    if done == stage.num_steps:
        return state  # restored from the save at its end
    with services.ledger.spend("restore"), services.watchdog.phase("start_up"):
        frozen, hyperparameters = stage.load_frozen(), stage.program.place_hyperparameters()
    evaluate = _begin_evaluation(stage, state, frozen, steps_before, services)
    while done < stage.num_steps:
        with services.ledger.spend("data"), services.watchdog.phase("step" if compiled else "start_up"):
            batch = stage.program.stage.next_batch(done, program.Now(state, frozen))
        if compiled is None:
            compiled = _compile(stage.program, (state, frozen, hyperparameters, batch.rows), services)
        services.watchdog.start("step")
        with services.ledger.spend("step"):
            requests = hosts.any_host_async(lambda: (services.interrupts.requested, services.saver.is_late()))
            with jax.transfer_guard("disallow"):  # everything it needs is on the devices
                state, logged = compiled(state, frozen, hyperparameters, batch.rows)
            done += 1
            services.interrupts.unsaved = True
            previous, pending = pending, PendingStep(done, batch.id, logged)
            if previous:
                log_step(stage, previous, steps_before, tokens_before, services)
            stop, save = requests()
        global_step = steps_before + done
        if services.trace:
            services.trace.after(global_step, logged)
        services.saver.poll()
        if time.monotonic() - last_record > RECORD_SECONDS:
            services.ledger.record(global_step)
            last_record = time.monotonic()
        is_last = done == stage.num_steps
        must_save = stop or is_last
        is_evaluated = evaluate and stage.evaluation.is_due(done, stage.num_steps) and (is_last or not stop)
        is_saved = must_save or save or services.saver.is_due(global_step)
        if not (is_evaluated or is_saved):
            continue
        with services.ledger.spend("step"):
            log_step(stage, pending, steps_before, tokens_before, services)  # its row comes before its checkpoint
        pending = None
        if is_evaluated:
            evaluate(state, done)
        if not is_saved:
            continue
        if services.writers:
            services.writers.flush()
        services.watchdog.stop("step")
        (services.saver.save_blocking if must_save else services.saver.save_async)(stage, state, done, global_step)
        services.ledger.record(global_step)
        if must_save:
            services.interrupts.unsaved = False
        if stop:
            raise Stopped(f"saved step {done} of {stage.name}")
    services.watchdog.stop("step")
    return state


def _compile(step_program: program.Program, arguments: tuple, services: Services) -> Callable:
    services.say(f"compiling {step_program.name} (the first time, a minute or more)")
    jitted = step_program.jitted()
    with services.ledger.spend("compile"), services.watchdog.phase("compile"), jax.set_mesh(step_program.mesh):
        compiled = jitted.lower(*arguments).compile()
    if not any(leaf.dtype in (jnp.int4, jnp.uint4) for leaf in jax.tree.leaves(arguments)):
        return compiled

    # On a CPU, JAX 0.10.2 compiles for arrays of 4 bits packed, which none says of itself, and `compiled` compares the
    # two and refuses. The jitted function finds the same program, and does not compare.
    def call(*arguments):
        with jax.set_mesh(step_program.mesh):
            return jitted(*arguments)

    return call


def _begin_evaluation(
    stage: stage_run.StageRun, state: step.State, frozen: dict, steps_before: int, services: Services
) -> Callable[[step.State, int], None] | None:
    """Returns `(state, steps done)`, which evaluates and writes the row; None if the stage has no evaluation.

    A step is evaluated before its checkpoint is written, unless the run has to stop: then the run that resumes from
    there evaluates it here.
    """
    if stage.evaluation is None:
        return None

    def evaluating():
        services.watchdog.stop("step")
        stack = contextlib.ExitStack()
        stack.enter_context(services.ledger.spend("evaluate"))
        stack.enter_context(services.watchdog.phase("evaluate"))
        return stack

    with evaluating():
        score = stage.evaluation.begin(frozen)

    def evaluate(state: step.State, done: int) -> None:
        with evaluating():
            results = score(state.params)
        if services.writers:
            position = {"stage": stage.name, "step": done, "global_step": steps_before + done, "time": time.time()}
            services.writers.evaluate(position | results)

    if (done := int(state.step)) and stage.evaluation.is_due(done, stage.num_steps):
        evaluate(state, done)
    return evaluate


def log_step(
    stage: stage_run.StageRun, pending: PendingStep, steps_before: int, tokens_before: int, services: Services
) -> None:
    """Waits for a step and writes its row. Raises: Diverged."""
    numbers = jax.device_get(pending.logged)
    services.watchdog.start("step")  # the next one runs already
    services.meter.count()
    position = {"stage": stage.name, "step": pending.done, "global_step": steps_before + pending.done}
    tokens_seen = tokens_before + pending.done * stage.program.tokens_per_step
    row = metrics.row({**position, "batch_id": pending.batch_id}, numbers, tokens_seen)
    if row["skipped"] and services.writers:
        services.writers.skip(row)
    if pending.done % services.log_every_steps == 0 or pending.done == stage.num_steps:
        row = row | {"time": time.time()} | services.meter.read(stage.program)
        if services.writers:
            services.writers.write(row)
    if row["num_skipped_in_a_row"] >= stage.program.spike_guard.max_skipped_in_a_row:
        services.saver.finish()
        services.ledger.record(row["global_step"])
        good = services.saver.last_good
        raise Diverged(
            f"the last {row['num_skipped_in_a_row']} steps of {stage.name} were skipped: their loss, gradient norm "
            "or update was not finite, or the first two were far above those before (now loss "
            f"{row['loss']:g}, gradient norm {row['gradient_norm']:g}, update norm {row['update_norm']:g}); their "
            f"batches are in {metrics.SKIPPED_FILE}; the last good checkpoint is "
            + ("none" if good is None else f"that of step {good}")
        )
