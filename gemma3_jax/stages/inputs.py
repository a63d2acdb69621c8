"""What a stage reads: its data, its teacher, and the parameters that it begins with."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gemma3_jax import settings
from gemma3_jax.checkpoint import export, hf_config
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.data import dataset, order
from gemma3_jax.data.targets import reader as targets_reader
from gemma3_jax.model import config as model_config
from gemma3_jax.tokenizer import vocabulary


@dataclasses.dataclass(frozen=True)
class StageData:
    """The data set of a stage, its tokenizer, and the order of its rows."""

    dataset: dataset.Dataset
    tokenizer: vocabulary.Tokenizer
    rows: order.Order


def open_data(config: settings.StageConfig) -> StageData:
    """Opens the data of a stage.

    Raises: ValueError if it does not fit the model.
    """
    if not config.data:
        raise ValueError("data is empty, as config.data is; name the directory that prepare wrote: --config.data=DIR")
    data = dataset.open_dataset(pathlib.Path(config.data))
    tokenizer = data.tokenizer()
    if tokenizer.size > config.model.vocab_size:
        raise ValueError(
            f"the tokenizer of {config.data} has {tokenizer.size} pieces, config.model.vocab_size is "
            f"{config.model.vocab_size}; the second must be at least the first"
        )
    return StageData(data, tokenizer, find_order(config, data))


def find_order(config: settings.StageConfig, data: dataset.Dataset) -> order.Order:
    """Returns the order of a stage's rows. Raises: ValueError as `order.find` does."""
    return order.find(
        data,
        seq_len=config.seq_len,
        batch_size=config.batch_size,
        seed=config.seed,
        buckets=config.mixture or None,
    )


@dataclasses.dataclass(frozen=True)
class TeacherSource:
    """Where the targets of a stage come from: a directory of stored ones, or a teacher that runs in every step."""

    digest: str = "none"
    stored: targets_reader.StoredTargets | None = None
    model: model_config.Config | None = None  # of the teacher that runs in every step
    load: Callable[[Mesh, str], dict] | None = None  # (mesh, dtype) -> its parameters


def open_targets(
    config: settings.StageConfig,
    data: StageData,
    *,
    load_initial: Callable[[Mesh, str], dict],
    warn: Callable[..., None],
) -> TeacherSource:
    """Opens what a stage distills from, if it does. `load_initial` reads the parameters that the stage began with.

    Raises: ValueError if targets or teacher do not fit the stage.
    """
    if config.loss != "distill":
        return TeacherSource()
    if config.targets:
        stored = targets_reader.open_targets(pathlib.Path(config.targets)).for_stage(
            data.rows,
            data.tokenizer.digest,
            config.samples,
            vocab_size=config.model.vocab_size,
            num_rows=config.num_steps * config.batch_size,
        )
        return TeacherSource(stored.teacher, stored=stored)
    if config.teacher == settings.START:
        if config.first_step == 0 and not config.init_from:
            warn(f"warning: the teacher of {config.name} is the fresh parameters that the run begins with")
        return TeacherSource(settings.START, model=config.model, load=load_initial)
    checkpoint = open_teacher(config, data.tokenizer.digest, warn)

    def load(mesh: Mesh, dtype: str) -> dict:
        mib = checkpoint.num_bytes() / 2**20
        warn(f"reading teacher {checkpoint.path} ({checkpoint.kind}, {mib:.1f} MiB)", *checkpoint.notes)
        params = checkpoint.load(mesh, dtype)
        check_finite(params, f"teacher {checkpoint.path}")
        return params

    return TeacherSource(checkpoint.fingerprint(), model=checkpoint.model, load=load)


def open_teacher(config: settings.StageConfig, tokenizer: str, warn: Callable[..., None]) -> checkpoint_open.Checkpoint:
    """Opens the checkpoint that is the teacher of a stage. `tokenizer`: digest of that of the stage's data.

    Raises: ValueError if the config names none, or if its vocabulary is another.
    """
    path = config.teacher
    if not path:
        raise ValueError(
            "loss is distill, and teacher is empty, as config.teacher is; name a checkpoint: --config.teacher=DIR, or "
            f"what teach wrote: --config.stages.{config.name}.targets=DIR"
        )
    if path == settings.START:
        raise ValueError("teacher is start, which exists in a run alone; name a checkpoint")
    checkpoint = checkpoint_open.open_checkpoint(pathlib.Path(path))
    if checkpoint.model.vocab_size != config.model.vocab_size:
        raise ValueError(
            f"teacher {path} has {checkpoint.model.vocab_size} ids, config.model.vocab_size is "
            f"{config.model.vocab_size}; both must have one tokenizer{_notes(checkpoint)}"
        )
    if checkpoint.tokenizer:
        vocabulary.check_same(
            tokenizer, checkpoint.tokenizer, got_from=f"the data of {config.name}", expected_from=f"teacher {path}"
        )
    else:
        warn(f"warning: teacher {path} does not say which tokenizer it was trained with")
    return checkpoint


def open_initial(config: settings.StageConfig, checkpoints: pathlib.Path) -> checkpoint_open.Checkpoint:
    """Opens the run's checkpoint that a stage began with. Raises: ValueError if it is gone."""
    path = checkpoints / str(config.first_step)
    if not path.is_dir():
        raise ValueError(
            f"{path} is not there, which {config.name} began with; its teacher or its evaluation reads it: put it "
            "back, begin the stage again in another --workdir, or do without those"
        )
    base = pathlib.Path(config.init_from) if config.lora.rank else None  # which may have moved since
    return checkpoint_open.open_checkpoint(path, base=base)


def open_init_from(config: settings.StageConfig, files: Mapping[str, bytes]) -> checkpoint_open.Checkpoint:
    """Opens the checkpoint that `config.init_from` names. `files`: those of the stage, with the data's tokenizer.

    Raises: ValueError if it is of another model or tokenizer.
    """
    checkpoint = checkpoint_open.open_checkpoint(pathlib.Path(config.init_from))
    theirs, ours = dataclasses.asdict(checkpoint.model), dataclasses.asdict(config.model)
    if config.model.context_length or checkpoint.model.rope_scale != config.model.rope_scale:
        theirs["context_length"] = ours["context_length"]
    else:  # it would be lost in silence
        theirs["context_length"], ours["context_length"] = map(
            hf_config.context_length, (checkpoint.model, config.model)
        )
    for field in ours:
        if field != "rope_scale" and theirs[field] != ours[field]:  # an extension to longer sequences changes it
            raise ValueError(
                f"config.init_from {config.init_from} has {field} {theirs[field]}, config.model.{field} is "
                f"{ours[field]}; make them one{_notes(checkpoint) if field == 'vocab_size' else ''}"
            )
    _check_tokenizer(config, checkpoint, vocabulary.Tokenizer(files[dataset.TOKENIZER]))
    return checkpoint


def _check_tokenizer(
    config: settings.StageConfig, checkpoint: checkpoint_open.Checkpoint, ours: vocabulary.Tokenizer
) -> None:
    """Raises: ValueError if the ids of a stage's data mean something else to the checkpoint that it starts from.

    A run stores the digest of its tokenizer. Of another checkpoint the tokenizer beside it is compared by its pieces:
    the same ones make another digest in tokenizer.json than in tokenizer.model, and one may have tokens added behind
    them, or new names for those that no text has.
    """
    data, start = f"the data of {config.name}", f"config.init_from {config.init_from}"
    if checkpoint.tokenizer:
        vocabulary.check_same(ours.digest, checkpoint.tokenizer, got_from=data, expected_from=start)
        return
    theirs, _ = export.find_tokenizer(None, checkpoint)
    if theirs is None or theirs.digest == ours.digest:
        return
    for token in range(min(theirs.size, ours.size)):
        pieces = (ours.piece(token), theirs.piece(token))
        if pieces[0] != pieces[1] and not any(map(vocabulary.is_control_name, pieces)):
            raise ValueError(
                f"{data} was made with another tokenizer than that of {start}: id {token} is {pieces[0]!r} in the "
                f"first and {pieces[1]!r} in the second; prepare the data with --tokenizer={config.init_from}"
            )


def _notes(checkpoint: checkpoint_open.Checkpoint) -> str:
    """Returns the end of an error text: what may explain the size of a vocabulary."""
    return f" ({'; '.join(checkpoint.notes)})" if checkpoint.notes else ""


def check_finite(params: dict, source: str) -> None:
    """Raises: ValueError if a parameter that was read from `source` is NaN or infinite."""
    for path, is_finite in jax.tree_util.tree_leaves_with_path(jax.device_get(_are_finite(params))):
        if not is_finite:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{source} has numbers in {name} that are not finite; name a checkpoint without them")


@jax.jit
def _are_finite(params: dict) -> dict:
    return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), params)
