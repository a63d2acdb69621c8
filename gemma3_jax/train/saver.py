"""When to save, and what to do when the disk refuses."""

import time
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import jax

from gemma3_jax.train import goodput, interrupts, settings, stage, step, watchdog

RETRY_SECONDS = 1.0  # between attempts at a checkpoint that cannot wait for the next step


@runtime_checkable
class Series(Protocol):
    """Where checkpoints go: `checkpoint.series.Series`."""

    def save(
        self, step: int, params: dict, state: object, *, cursor: Mapping, meta: Mapping, about: Mapping
    ) -> None: ...
    def finish(self) -> None: ...
    @property
    def is_saving(self) -> bool: ...


class Saver:
    """Saves in the background; a failed save leaves those before it alone, and is tried again when one is due."""

    def __init__(
        self,
        series: Series,
        when: settings.Checkpoints,
        ledger: goodput.Ledger,
        watch: watchdog.Watchdog,
        say: Callable[[str], None],
        *,
        last_good: int | None = None,
    ):
        self._series, self._when, self._ledger, self._watch, self._say = series, when, ledger, watch, say
        self._last_time = time.monotonic()
        self._in_hand: int | None = None
        self._refused: OSError | None = None  # it could not even begin
        self._num_failures = 0
        self.last_good = last_good  # the newest step that is saved

    def is_due(self, global_step: int) -> bool:
        """By its number: the same answer in every process."""
        return bool(self._when.every_steps) and global_step % self._when.every_steps == 0

    def is_late(self) -> bool:
        """By the clock, which process 0 alone reads; the others are told."""
        if not self._when.every_minutes or jax.process_index() != 0:
            return False
        return time.monotonic() - self._last_time >= 60 * self._when.every_minutes

    def begin(self, leg: stage.Leg, state: step.State, leg_step: int, global_step: int) -> None:
        """Begins a checkpoint; one that is still being written is waited for first.

        Raises: OSError once too many saves in a row have failed.
        """
        self.finish()
        with self._ledger.spend("save"):
            self._watch.start("save")
            self._last_time = time.monotonic()
            meta = {**leg.identity, "stage": leg.name, "step": leg_step, "global_step": global_step}
            self._in_hand, self._refused = global_step, None
            cursor = leg.cursor(leg_step)
            try:
                self._series.save(
                    global_step, state.params, state.beside_params(), cursor=cursor, meta=meta, about=leg.about
                )
            except OSError as error:
                self._refused = error
        if jax.process_count() == 1 and self._refused:
            self.finish()

    def poll(self) -> None:
        """Takes note of a checkpoint that has been written meanwhile. Raises: OSError as `begin` does."""
        if self._in_hand is None or self._series.is_saving:
            return
        if jax.process_count() == 1:
            self.finish()
        else:
            self._watch.stop("save")  # how it went, all processes ask together when the next one is due

    def finish(self) -> None:
        """Waits for the checkpoint in hand. Raises: OSError as `begin` does."""
        if self._in_hand is None:
            return
        with self._ledger.spend("save"):
            problem, self._refused = self._refused, None
            try:
                if problem is None:
                    self._series.finish()
            except OSError as error:
                problem = error
            [has_failed] = interrupts.agree(lambda: (problem is not None,))()
            saved, self._in_hand = self._in_hand, None
            self._watch.stop("save")
            if has_failed:
                self._failed(problem or OSError("another host could not write its part"))
            else:
                self.last_good, self._num_failures = saved, 0

    def insist(self, leg: stage.Leg, state: step.State, leg_step: int, global_step: int) -> None:
        """Saves now, and waits; where it fails, again until it may not be tried any more.

        Raises: OSError as `begin` does.
        """
        self.finish()
        while self.last_good != global_step:
            if self._num_failures:
                time.sleep(RETRY_SECONDS)
            self.begin(leg, state, leg_step, global_step)
            self.finish()

    def _failed(self, error: OSError) -> None:
        self._num_failures += 1
        stands = "there is none yet" if self.last_good is None else f"that of step {self.last_good} stands"
        if self._num_failures >= self._when.max_failures:
            raise OSError(
                f"{self._num_failures} checkpoints in a row failed (config.checkpoints.max_failures), the last one as "
                f"{error}; {stands}: mend the disk, and the same command goes on"
            ) from error
        self._say(
            f"warning: no checkpoint ({self._num_failures} of {self._when.max_failures} failures in a row): {error}; "
            f"{stands}, and the next one is tried when it is due"
        )
