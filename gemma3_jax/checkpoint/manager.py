"""The checkpoints of a run: a directory with one for each saved step, of which the newest intact one counts.

A checkpoint holds `params`, `state` (everything else that a step changes), `cursor` (the position in the data) and
`meta` (what the run was). It opens like any other checkpoint of this program. Orbax writes it in the background under a
temporary name.
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
from orbax.checkpoint import v1 as ocp

from gemma3_jax import hosts, renamed
from gemma3_jax.checkpoint import orbax
from gemma3_jax.durable import atomic

CHECKPOINTS = "checkpoints"  # directory of a run's checkpoints, in the run's directory
DAMAGED = "damaged"  # directory beside it, for checkpoints that cannot be read
UNFINISHED = ".orbax-checkpoint-tmp"  # ends the name of a checkpoint that Orbax has not written whole
STATE, CURSOR, META = "state", "cursor", "meta"
# Replicas share the writing of what they all hold, except small vectors: cutting those took longer than writing them.
MIN_SLICE_BYTES = 1 << 20
# Errors of the disk or of this process that say nothing about the checkpoint.
NOT_DAMAGE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT)
NOT_DAMAGE_STATUS = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNAUTHENTICATED")


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read. `cursor`, `meta` and the parts of `state` have today's names."""

    step: int
    params: dict
    state: dict
    cursor: dict
    meta: dict


class Damaged(Exception):
    """A checkpoint cannot be read, or is not what was written."""


class CheckpointManager:
    """Saves checkpoints into `directory` and restores them.

    All processes of a run call the same methods in the same order.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        keep_last: int,
        keep_every_steps: int,
        keep_steps: Sequence[int],
        say: Callable[[str], None],
    ):
        """Keeps the newest `keep_last` checkpoints, those of every n-th step (0: none), and those of `keep_steps`."""
        self._directory, self._say = directory.absolute(), say
        policies = ocp.training.preservation_policies
        preserved = [policies.LatestN(keep_last), policies.CustomSteps(list(keep_steps))]
        preserved += [policies.EveryNSteps(keep_every_steps)] if keep_every_steps else []
        self._preservation_policy = policies.AnyPreservationPolicy(preserved)
        self._checkpointer: ocp.training.Checkpointer | None = None
        self._response: ocp.AsyncResponse[bool] | None = None  # of the checkpoint that is being saved

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, damaged ones included, newest first."""
        return steps(self._directory)

    def path(self, step: int) -> pathlib.Path:
        return self._directory / str(step)

    # --- saving ---

    def save(
        self, step: int, params: dict, state: dict, *, cursor: Mapping, meta: Mapping, checkpoint_metadata: Mapping
    ) -> None:
        """Starts to save a checkpoint, and returns once the arrays may be donated. `finish` waits for the rest.

        `checkpoint_metadata` has the model's columns and the tokenizer's digest, for readers of this checkpoint alone.
        Raises: OSError if saving cannot start.
        """
        meta = {**meta, "checksum": checksum(params, state)}
        items = {orbax.PARAMS: params, STATE: _named(state), CURSOR: dict(cursor), META: meta}
        custom = {orbax.METADATA_KEY: {"format": orbax.FORMAT, **checkpoint_metadata}}
        with self._saving(step):
            if self._checkpointer is None:
                self._checkpointer = self._open()
            self._response = self._checkpointer.save_checkpointables_async(
                step, items, force=True, custom_metadata=custom
            )

    def finish(self) -> None:
        """Waits for the checkpoint that is being saved. Raises: OSError if it failed; earlier ones are unchanged."""
        response, self._response = self._response, None
        with self._saving(None):
            if response is not None:
                response.result()  # ends its thread and closes its files, which `wait` does not
            if self._checkpointer is not None:
                self._checkpointer.wait()

    @property
    def is_saving(self) -> bool:
        return self._checkpointer is not None and self._checkpointer.is_saving_in_progress()

    def _open(self) -> ocp.training.Checkpointer:
        if jax.process_index() == 0:  # what a killed process left, or a failed save that may still be writing
            atomic.remove_matching(self._directory, re.compile(rf".*{re.escape(UNFINISHED)}(\..*)?").fullmatch)
        # Orbax's default policies save continuously and keep everything. Here the caller decides.
        never = ocp.training.save_decision_policies.SpecificStepsPolicy(())
        context = ocp.Context()
        context.array.saving.min_slice_bytes_for_replica_parallel = MIN_SLICE_BYTES
        # Else a thread waits for directories that cannot be made, and the process does not end.
        context.asynchronous.create_directories_asynchronously = False
        return ocp.training.Checkpointer(
            self._directory,
            context=context,
            save_decision_policy=never,
            preservation_policy=self._preservation_policy,
        )

    @contextlib.contextmanager
    def _saving(self, step: int | None) -> Iterator[None]:
        """Raises an OSError for whatever Orbax and tensorstore raise over a disk, and opens a new checkpointer next."""
        try:
            yield
        except (ValueError, OSError, RuntimeError) as error:
            self._checkpointer = None  # it counts the failed step as saved
            path = self._directory if step is None else self.path(step)
            raise OSError(f"{path} cannot be written: {orbax.first_line(orbax.first_cause(error))}") from error

    # --- restoring ---

    def restore(self, check: Callable[[int, dict, dict], tuple[dict, dict]]) -> Restored | None:
        """Returns the newest intact checkpoint, or None if there are none. Damaged ones are reported and moved away.

        `check(step, cursor, meta)` raises ValueError if the checkpoint is of another run. It returns the parameters
        and the state to read, as shapes, dtypes and shardings.
        Raises: ValueError also if the state has another form, or if no checkpoint is intact.
        """
        damaged: dict[int, object] = {}
        for step in self.steps():
            restored, parts, problem = None, {}, None
            try:
                restored, parts = self._read(step, check)
            except Damaged as error:
                problem = error
            if hosts.any_host(problem is not None):
                problem = problem or "another host cannot read its part"
            elif (found := checksum(restored.params, restored.state)) != restored.meta.get("checksum"):
                problem = f"its checksum is {found}, and was {restored.meta.get('checksum')} when it was written"
            if not problem:
                self._set_aside(damaged)
                state = {part: restored.state[stored] for part, stored in parts.items()}
                return dataclasses.replace(restored, state=state)
            damaged[step] = problem
        if damaged:  # More likely the disk or this program is at fault than every checkpoint: leave them in place.
            raise ValueError(
                f"none of the {len(damaged)} checkpoints in {self._directory} can be read (step {max(damaged)}: "
                f"{damaged[max(damaged)]}); find out why, or start a new run in another --workdir"
            )
        return None

    def _read(
        self, step: int, check: Callable[[int, dict, dict], tuple[dict, dict]]
    ) -> tuple[Restored, dict[str, str]]:
        """Returns a checkpoint with the state as stored, and the stored name of each of today's parts of it.

        The checksum weighs the leaves by their order, which the stored names decide.
        """
        cursor, meta = map(renamed.current, self._read_notes(step))
        params, state = check(step, cursor, meta)
        forms = self._read_forms(step)
        parts = renamed.stored_parts(state, {name.partition("/")[0] for name in forms})
        state = {parts[part]: tree for part, tree in state.items()}
        self._check_forms(step, forms, state)
        return Restored(step, *self._read_arrays(step, params, state), cursor, meta), parts

    def _read_notes(self, step: int) -> tuple[dict, dict]:
        with _reading():
            custom = ocp.checkpointables_metadata(self.path(step)).custom_metadata
            notes = ocp.load_checkpointables(self.path(step), {CURSOR: None, META: None})
        # Orbax returns nothing for files that it cannot parse. `open_checkpoint` needs what `checkpoint_metadata` says.
        if orbax.METADATA_KEY not in (custom or {}) or not all(
            isinstance(notes[name], dict) for name in (CURSOR, META)
        ):
            raise Damaged("its notes are not readable")
        return notes[CURSOR], notes[META]

    def _read_forms(self, step: int) -> dict[str, tuple]:
        """Returns the shape and dtype of every stored leaf of the state."""
        with _reading():
            stored = ocp.checkpointables_metadata(self.path(step)).metadata[STATE]
            return {name: (tuple(leaf.shape), jnp.dtype(leaf.dtype)) for name, leaf in stored.items()}

    def _check_forms(self, step: int, stored: Mapping[str, tuple], state: dict) -> None:
        expected = {name: (leaf.shape, leaf.dtype) for name, leaf in _named(state).items()}
        for name in sorted(stored.keys() | expected.keys()):
            if stored.get(name) != expected.get(name):
                was, is_ = (_form(forms.get(name)) for forms in (stored, expected))
                part, *rest = name.split("/")
                name = "/".join([renamed.STATE.get(part, part), *rest])
                raise ValueError(
                    f"{self.path(step)} was saved by another optimizer: {name} is {was} there and {is_} now; restore "
                    "config.stages.NAME.optimizer and ema_decay, or start from its parameters in another --workdir "
                    "with --config.init_from"
                )

    def _read_arrays(self, step: int, params: dict, state: dict) -> tuple[dict, dict]:
        names, tree = list(_named(state)), jax.tree.structure(state)
        with _reading():
            arrays = ocp.load_checkpointables(self.path(step), {orbax.PARAMS: params, STATE: _named(state)})
        return arrays[orbax.PARAMS], jax.tree.unflatten(tree, [arrays[STATE][name] for name in names])

    def _set_aside(self, damaged: Mapping[int, object]) -> None:
        """Moves damaged checkpoints (step -> problem) away, so that their steps can be saved again."""
        aside = self._directory.with_name(DAMAGED)
        for step, problem in damaged.items():
            self._say(
                f"warning: {self.path(step)} is damaged ({problem}); it is moved to {aside} and the one before is used"
            )
            if jax.process_index() == 0:
                aside.mkdir(exist_ok=True)
                shutil.rmtree(aside / str(step), ignore_errors=True)  # moved there by an earlier start
                self.path(step).rename(aside / str(step))
        if damaged:
            hosts.wait_for_all()  # for the first process, which moves them


def steps(directory: pathlib.Path) -> list[int]:
    """Returns the steps that a directory has checkpoints of, newest first."""
    if not directory.is_dir():
        return []
    return sorted((int(path.name) for path in directory.iterdir() if re.fullmatch(r"\d+", path.name)), reverse=True)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Raises Damaged for whatever Orbax raises over damaged files, and other errors as they are."""
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


def _named(tree: dict) -> dict:
    """Returns the leaves of a tree of any classes by their paths, which is how the state is stored."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def checksum(params: dict, state: dict) -> str:
    """Returns a checksum of every bit, the same on any mesh: integers may be summed in any order.

    Any flipped bit changes it.
    """
    return f"{int(jax.device_get(_sum_of_bits((params, state)))):08x}"


@jax.jit
def _sum_of_bits(tree: tuple[dict, dict]) -> jax.Array:
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        words = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)
        total += jnp.sum(words, dtype=jnp.uint32) * jnp.uint32(2 * number + 1)
    return total
