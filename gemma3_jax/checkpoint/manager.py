"""The checkpoints of a run: a directory with one for each saved step, of which the newest that is whole counts.

A checkpoint holds `params`, `state` (all else that a step changes), `cursor` (where the data is) and `meta` (what the
run was), and opens like any checkpoint of ours. Orbax writes it in the background under another name first.
"""

import contextlib
import dataclasses
import errno
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from gemma3_jax.checkpoint import orbax

CHECKPOINTS = "checkpoints"  # the directory, in that of a run
STATE, CURSOR, META = "state", "cursor", "meta"
# Replicas share the writing of what they all hold, but not of vectors: cutting those took longer than writing them.
LEAST_SLICE_BYTES = 1 << 20
# What a disk or this process may suffer from while what is on the disk is well.
NOT_DAMAGE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT)
NOT_DAMAGE_STATUS = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNAUTHENTICATED")
DAMAGED = "damaged"  # directory beside that of the checkpoints, for those that cannot be read


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read."""

    step: int
    params: dict
    state: object
    cursor: dict
    meta: dict


class Damaged(Exception):
    """A checkpoint that cannot be read, or is not what was written."""


class Series:
    """Saves into `directory` and restores from it. All processes of a run call the same methods in the same order."""

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        keep_last: int,
        keep_every_steps: int,
        keep_steps: Sequence[int],
        say: Callable[[str], None],
    ):
        """Kept are the last ones, those of every n-th step (0: none), and those of the steps named."""
        self._directory, self._say = directory.absolute(), say
        policies = ocp.training.preservation_policies
        kept = [policies.LatestN(keep_last), policies.CustomSteps(list(keep_steps))]
        kept += [policies.EveryNSteps(keep_every_steps)] if keep_every_steps else []
        self._preserved = policies.AnyPreservationPolicy(kept)
        self._checkpointer: ocp.training.Checkpointer | None = None

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, newest first; damaged ones too."""
        return steps(self._directory)

    def path(self, step: int) -> pathlib.Path:
        return self._directory / str(step)

    # --- saving ---

    def save(self, step: int, params: dict, state: object, *, cursor: Mapping, meta: Mapping, about: Mapping) -> None:
        """Begins a checkpoint; returns once the arrays may be given away. `finish` says how it went.

        `about`: the model's columns and the tokenizer's digest, for whoever opens the checkpoint by itself.
        Raises: OSError if it cannot even begin.
        """
        meta = {**meta, "checksum": _checksum(params, state)}
        items = {orbax.PARAMS: params, STATE: _named(state), CURSOR: dict(cursor), META: meta}
        custom = {orbax.METADATA_KEY: {"format": orbax.FORMAT, **about}}
        with self._saving(step):
            if self._checkpointer is None:
                self._checkpointer = self._open()
            self._checkpointer.save_checkpointables_async(step, items, force=True, custom_metadata=custom)

    def finish(self) -> None:
        """Waits for the checkpoint in hand. Raises: OSError if it failed; those before it are as they were."""
        if self._checkpointer is not None:
            with self._saving(None):
                self._checkpointer.wait()

    @property
    def is_saving(self) -> bool:
        return self._checkpointer is not None and self._checkpointer.is_saving_in_progress()

    def _open(self) -> ocp.training.Checkpointer:
        # Its own defaults save continuously and keep everything. Here the caller says when.
        never = ocp.training.save_decision_policies.SpecificStepsPolicy(())
        context = ocp.Context()
        context.array.saving.min_slice_bytes_for_replica_parallel = LEAST_SLICE_BYTES
        return ocp.training.Checkpointer(
            self._directory,
            context=context,
            save_decision_policy=never,
            preservation_policy=self._preserved,
            cleanup_tmp_directories=True,  # of a process that was killed, or of a save that failed
        )

    @contextlib.contextmanager
    def _saving(self, step: int | None) -> Iterator[None]:
        """Makes an OSError of whatever Orbax and tensorstore raise over a disk, and starts anew after it."""
        try:
            yield
        except (ValueError, OSError, RuntimeError) as error:
            self._checkpointer = None  # it takes the failed one for written; the next one sweeps up
            place = self._directory if step is None else self.path(step)
            raise OSError(f"{place} cannot be written: {orbax.first_line(orbax.first_cause(error))}") from error

    # --- restoring ---

    def restore(self, check: Callable[[int, dict, dict], tuple[dict, object]]) -> Restored | None:
        """The newest checkpoint that is whole; None if there are none. What is damaged is named and set aside.

        `check(step, cursor, meta)` raises ValueError if the run is another, and returns the parameters and the state to
        read, as shapes, dtypes and places.
        Raises: ValueError if the optimizer's state is of another form, too, or if no checkpoint that is there is whole.
        """
        damaged: dict[int, object] = {}
        for step in self.steps():
            found, problem = None, None
            try:
                found = self._read(step, check)
            except Damaged as error:
                problem = error
            if _anywhere(problem is not None):
                problem = problem or "another host cannot read its part"
            elif (checksum := _checksum(found.params, found.state)) != found.meta.get("checksum"):
                problem = f"its check sum is {checksum}, and was {found.meta.get('checksum')} when it was written"
            if not problem:
                self._set_aside(damaged)
                return found
            damaged[step] = problem
        if damaged:  # rather something about the disk, or this program, than about all of them: nothing is touched
            raise ValueError(
                f"none of the {len(damaged)} checkpoints in {self._directory} can be read (step {max(damaged)}: "
                f"{damaged[max(damaged)]}); find out why, or begin anew in another --workdir"
            )
        return None

    def _read(self, step: int, check: Callable[[int, dict, dict], tuple[dict, object]]) -> Restored:
        cursor, meta = self._read_notes(step)
        params, state = check(step, cursor, meta)
        self._check_form(step, state)
        return Restored(step, *self._read_arrays(step, params, state), cursor, meta)

    def _read_notes(self, step: int) -> tuple[dict, dict]:
        with _reading():
            custom = ocp.checkpointables_metadata(self.path(step)).custom_metadata
            notes = ocp.load_checkpointables(self.path(step), {CURSOR: None, META: None})
        # Of files it cannot parse Orbax returns nothing. Who opens the checkpoint by itself needs what `about` says.
        if orbax.METADATA_KEY not in (custom or {}) or not all(
            isinstance(notes[name], dict) for name in (CURSOR, META)
        ):
            raise Damaged("its notes are not readable")
        return notes[CURSOR], notes[META]

    def _check_form(self, step: int, state: object) -> None:
        with _reading():
            stored = ocp.checkpointables_metadata(self.path(step)).metadata[STATE]
            stored = {name: (tuple(leaf.shape), jnp.dtype(leaf.dtype)) for name, leaf in stored.items()}
        asked = {name: (leaf.shape, leaf.dtype) for name, leaf in _named(state).items()}
        for name in sorted(stored.keys() | asked.keys()):
            if stored.get(name) != asked.get(name):
                was, is_ = (_form(forms.get(name)) for forms in (stored, asked))
                raise ValueError(
                    f"{self.path(step)} was saved by another optimizer: {name} is {was} there and {is_} now; restore "
                    "config.stages.NAME.optimizer and ema_decay, or start from its parameters in another --workdir "
                    "with --config.init_from"
                )

    def _read_arrays(self, step: int, params: dict, state: object) -> tuple[dict, object]:
        names, tree = list(_named(state)), jax.tree.structure(state)
        with _reading():
            found = ocp.load_checkpointables(self.path(step), {orbax.PARAMS: params, STATE: _named(state)})
        return found[orbax.PARAMS], jax.tree.unflatten(tree, [found[STATE][name] for name in names])

    def _set_aside(self, damaged: Mapping[int, object]) -> None:
        """Moves checkpoints out of the way of those that will have their steps. Given what is wrong with each."""
        aside = self._directory.with_name(DAMAGED)
        for step, problem in damaged.items():
            self._say(
                f"warning: {self.path(step)} is damaged ({problem}); it is moved to {aside} and the one before is used"
            )
            if jax.process_index() == 0:
                aside.mkdir(exist_ok=True)
                shutil.rmtree(aside / str(step), ignore_errors=True)  # of an earlier time
                self.path(step).rename(aside / str(step))
        if damaged:
            _anywhere(False)  # all wait for the first process


def _anywhere(flag: bool) -> bool:
    """Whether any process says so: all have to ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def steps(directory: pathlib.Path) -> list[int]:
    """The steps that a directory has checkpoints of, newest first."""
    if not directory.is_dir():
        return []
    return sorted((int(path.name) for path in directory.iterdir() if re.fullmatch(r"\d+", path.name)), reverse=True)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Orbax wraps what tensorstore and json raise in exceptions of any class
        cause = orbax.first_cause(error)
        if isinstance(cause, MemoryError) or str(cause).startswith(NOT_DAMAGE_STATUS):
            raise cause from None
        if isinstance(cause, OSError) and cause.errno in NOT_DAMAGE:
            raise cause from None
        raise Damaged(orbax.first_line(cause)) from error


def _form(form: tuple | None) -> str:
    return "absent" if form is None else f"{form[1]}{list(form[0])}"


def _named(tree: object) -> dict:
    """The leaves by their paths: a tree of any classes as a dict, which is how it is stored."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _checksum(params: dict, state: object) -> str:
    """Of every bit, whatever the mesh: whole numbers may be summed in any order. One flipped bit changes it."""
    return f"{int(jax.device_get(_sum_of_bits((params, state)))):08x}"


@jax.jit
def _sum_of_bits(tree: object) -> jax.Array:
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        words = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)
        total += jnp.sum(words, dtype=jnp.uint32) * jnp.uint32(2 * number + 1)
    return total
