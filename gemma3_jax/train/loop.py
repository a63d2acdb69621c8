"""The loop: every stage of the recipe is this one, with another loss, other rows and another view of the parameters.

Numbers are looked at a step late: the device is always given its next step before anything waits for the last one.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable

import jax

from gemma3_jax.train import goodput, interrupts, metrics, saver, stage, step, trace, watchdog

RECORD_SECONDS = 10.0  # between records in the ledger of where time goes


class Stopped(Exception):
    """The run was asked to stop, and has saved."""


class Diverged(Exception):
    """Too many steps in a row were not to be believed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crew:
    """Those who look after a run while the loop works."""

    saver: saver.Saver
    ledger: goodput.Ledger
    watchdog: watchdog.Watchdog
    interrupts: interrupts.Interrupts
    writers: metrics.Writers | None  # None: another process writes
    meter: metrics.Meter
    log_every_steps: int
    trace: trace.Trace | None


@dataclasses.dataclass(frozen=True)
class _Flight:
    """A step that has been given to the device."""

    done: int  # steps of the stage, this one included
    batch_id: str
    reported: step.Sums


def run(leg: stage.Leg, state: step.State, *, steps_before: int, tokens_before: int, crew: Crew) -> step.State:
    """Takes the steps of a leg that are left, and saves at its end; returns the state after the last.

    `steps_before` and `tokens_before`: of the stages before this one.
    Raises: Stopped, once saved; Diverged; OSError if checkpoints keep failing.
    """
    compiled, done, flight, last_record = None, int(state.step), None, time.monotonic()
    if done == leg.num_steps:
        return state  # restored from the save at its end
    with crew.ledger.spend("restore"), crew.watchdog.phase("start_up"):
        frozen = leg.frozen.load()
    measure = _begin_evaluation(leg, state, frozen, steps_before, crew)
    while done < leg.num_steps:
        with crew.ledger.spend("data"), crew.watchdog.phase("step" if compiled else "start_up"):
            batch = leg.stage.next_batch(done)
        if compiled is None:
            compiled = _compile(leg, state, frozen, batch.rows, crew)
        crew.watchdog.start("step")
        with crew.ledger.spend("step"):
            asked = interrupts.agree(lambda: (crew.interrupts.requested, crew.saver.is_late()))
            with jax.transfer_guard("disallow"):  # all it needs is on the devices
                state, reported = compiled(state, frozen, batch.rows)
            done += 1
            crew.interrupts.unsaved = True
            landed, flight = flight, _Flight(done, batch.id, reported)
            if landed:
                _land(leg, landed, steps_before, tokens_before, crew)
            stop, save = asked()
        global_step = steps_before + done
        if crew.trace:
            crew.trace.after(global_step, reported)
        crew.saver.poll()
        if time.monotonic() - last_record > RECORD_SECONDS:
            crew.ledger.record(global_step)
            last_record = time.monotonic()
        is_last = done == leg.num_steps
        must = stop or is_last
        is_measured = measure and leg.evaluation.is_due(done, leg.num_steps) and (is_last or not stop)
        is_saved = must or save or crew.saver.is_due(global_step)
        if not (is_measured or is_saved):
            continue
        with crew.ledger.spend("step"):
            _land(leg, flight, steps_before, tokens_before, crew)  # the checkpoint counts on its row
        flight = None
        if is_measured:
            measure(state, done)
        if not is_saved:
            continue
        if crew.writers:
            crew.writers.flush()
        crew.watchdog.stop("step")
        (crew.saver.insist if must else crew.saver.begin)(leg, state, done, global_step)
        crew.ledger.record(global_step)
        if must:
            crew.interrupts.unsaved = False
        if stop:
            raise Stopped(f"saved step {done} of {leg.name}")
    crew.watchdog.stop("step")
    return state


def _compile(leg: stage.Leg, state: step.State, frozen: dict, rows: object, crew: Crew) -> Callable:
    with crew.ledger.spend("compile"), crew.watchdog.phase("compile"), jax.set_mesh(leg.mesh):
        return leg.jitted().lower(state, frozen, rows).compile()


def _begin_evaluation(
    leg: stage.Leg, state: step.State, frozen: dict, steps_before: int, crew: Crew
) -> Callable[[step.State, int], None] | None:
    """`(state, steps done)`: measures, and writes the row.

    That comes before the checkpoint of the step, unless the run has to stop: who goes on from there does it here.
    """
    if leg.evaluation is None:
        return None

    def spent():
        crew.watchdog.stop("step")
        stack = contextlib.ExitStack()
        stack.enter_context(crew.ledger.spend("evaluate"))
        stack.enter_context(crew.watchdog.phase("evaluate"))
        return stack

    with spent():
        score = leg.evaluation.begin(frozen)

    def measure(state: step.State, done: int) -> None:
        with spent():
            found = score(state.params)
        if crew.writers:
            place = {"stage": leg.name, "step": done, "global_step": steps_before + done, "time": time.time()}
            crew.writers.evaluate(place | found)

    if (done := int(state.step)) and leg.evaluation.is_due(done, leg.num_steps):
        measure(state, done)
    return measure


def _land(leg: stage.Leg, flight: _Flight, steps_before: int, tokens_before: int, crew: Crew) -> None:
    """Waits for a step and writes its row. Raises: Diverged."""
    numbers = jax.device_get(flight.reported)
    crew.watchdog.start("step")  # the next one is on its way
    crew.meter.count()
    place = {"stage": leg.name, "step": flight.done, "global_step": steps_before + flight.done}
    tokens_seen = tokens_before + flight.done * leg.tokens_per_step
    row = metrics.row(leg, {**place, "batch_id": flight.batch_id}, numbers, tokens_seen)
    if row["skipped"] and crew.writers:
        crew.writers.skip(row)
    if flight.done % crew.log_every_steps == 0 or flight.done == leg.num_steps:
        row = row | {"time": time.time()} | crew.meter.read(leg)
        if crew.writers:
            crew.writers.write(row)
    if row["num_skipped_in_a_row"] >= leg.spike_guard.max_skipped_in_a_row:
        crew.saver.finish()
        crew.ledger.record(row["global_step"])
        good = crew.saver.last_good
        raise Diverged(
            f"the last {row['num_skipped_in_a_row']} steps of {leg.name} had a loss or gradient norm not finite, or "
            f"far from those before (now loss {row['loss']:g}, gradient norm {row['gradient_norm']:g}); their "
            f"batches are in {metrics.SKIPPED_FILE}; the last good checkpoint is "
            + ("none" if good is None else f"that of step {good}")
        )
