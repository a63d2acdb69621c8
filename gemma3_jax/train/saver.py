"""When to save, and what to do when the disk refuses."""

import time
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import jax

from gemma3_jax import hosts
from gemma3_jax.train import goodput, settings, stage_run, step, watchdog

RETRY_SECONDS = 1.0  # between attempts at a checkpoint that cannot wait for the next step


@runtime_checkable
class CheckpointWriter(Protocol):
    """What checkpoints are written with: `checkpoint.manager.CheckpointManager`."""

    def save(
        self, step: int, params: dict, state: object, *, cursor: Mapping, meta: Mapping, checkpoint_metadata: Mapping
    ) -> None: ...
    def finish(self) -> None: ...
    @property
    def is_saving(self) -> bool: ...


class Saver:
    """Saves in the background; a failed save leaves those before it alone, and is tried again when one is due."""

    def __init__(
        self,
        manager: CheckpointWriter,
        when: settings.Checkpoints,
        ledger: goodput.Ledger,
        hang_watchdog: watchdog.Watchdog,
        say: Callable[[str], None],
        *,
        last_good: int | None = None,
        check_directory: Callable[[], None] = lambda: None,  # raises OSError if there is no use in saving
    ):
        self._manager, self._when, self._ledger, self._watchdog, self._say = manager, when, ledger, hang_watchdog, say
        self._check_directory = check_directory
        self._last_time = time.monotonic()
        self._saving: int | None = None  # the step of the checkpoint that is being written
        self._save_error: OSError | None = None
        self._num_failures = 0
        self.last_good = last_good  # the newest step that is saved

    def is_due(self, global_step: int) -> bool:
        """Whether a checkpoint is due by the number of the step: the same answer in every process."""
        return bool(self._when.every_steps) and global_step % self._when.every_steps == 0

    def is_late(self) -> bool:
        """Whether one is due by the clock, which process 0 alone reads."""
        if not self._when.every_minutes or jax.process_index() != 0:
            return False
        return time.monotonic() - self._last_time >= 60 * self._when.every_minutes

    def save_async(self, stage: stage_run.StageRun, state: step.State, done: int, global_step: int) -> None:
        """Begins a checkpoint after `done` steps of the stage; waits first for one that is still being written.

        Raises: OSError once too many saves in a row have failed.
        """
        self.finish()
        self._check_directory()
        with self._ledger.spend("save"):
            self._watchdog.start("save")
            self._last_time = time.monotonic()
            meta = {**stage.compat_keys, "stage": stage.name, "step": done, "global_step": global_step}
            self._saving, self._save_error = global_step, None
            try:
                self._manager.save(
                    global_step,
                    state.params,
                    state.other_parts(),
                    cursor=stage.cursor(done),
                    meta=meta,
                    checkpoint_metadata=stage.checkpoint_metadata,
                )
            except OSError as error:
                self._save_error = error
        if jax.process_count() == 1 and self._save_error:
            self.finish()

    def poll(self) -> None:
        """Notices a checkpoint that has been written meanwhile. Raises: OSError as `save_async` does."""
        if self._saving is None or self._manager.is_saving:
            return
        if jax.process_count() == 1:
            self.finish()
        else:
            self._watchdog.stop("save")  # all processes ask together whether it succeeded when the next one is due

    def finish(self) -> None:
        """Waits for the checkpoint that is being written. Raises: OSError as `save_async` does."""
        if self._saving is None:
            return
        with self._ledger.spend("save"):
            problem, self._save_error = self._save_error, None
            try:
                if problem is None:
                    self._manager.finish()
            except OSError as error:
                problem = error
            has_failed = hosts.any_host(problem is not None)
            saved, self._saving = self._saving, None
            self._watchdog.stop("save")
            if has_failed:
                self._failed(problem or OSError("another host could not write its part"))
            else:
                self.last_good, self._num_failures = saved, 0

    def save_blocking(self, stage: stage_run.StageRun, state: step.State, done: int, global_step: int) -> None:
        """Saves and waits; tries again until it succeeds, or too many saves in a row have failed.

        Raises: OSError as `save_async` does.
        """
        self.finish()
        while self.last_good != global_step:
            if self._num_failures:
                time.sleep(RETRY_SECONDS)
            self.save_async(stage, state, done, global_step)
            self.finish()

    def _failed(self, error: OSError) -> None:
        self._num_failures += 1
        stands = "there is none yet" if self.last_good is None else f"that of step {self.last_good} stands"
        if self._num_failures >= self._when.max_failures:
            raise OSError(
                f"{self._num_failures} checkpoints in a row failed (config.checkpoints.max_failures), the last one as "
                f"{error}; {stands}: fix the disk, then run the same command to resume"
            ) from error
        self._say(
            f"warning: no checkpoint ({self._num_failures} of {self._when.max_failures} failures in a row): {error}; "
            f"{stands}, and the next one is tried when it is due"
        )
