"""A checkpoint of any kind, read and ready to write."""

import contextlib
import functools
import pathlib
from collections.abc import Callable

import jax

from gemma3_jax import sharding
from gemma3_jax.checkpoint import export, hf_config
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.inference import sampler
from gemma3_jax.model import config, execution, parameters
from gemma3_jax.quant import settings, view


def _nothing(*_) -> None: ...


@contextlib.contextmanager
def _no_bar(*_):
    class Silent:
        update = staticmethod(_nothing)

    yield Silent


def open_sampler(
    path: pathlib.Path,
    *,
    model: config.Config | None = None,
    tokenizer: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str = "float32",
    context: int = 0,
    say: Callable[..., None] = _nothing,
    bar: Callable = _no_bar,
) -> sampler.Sampler:
    """The model at `path`, read when it is first needed, and its tokenizer if it has one.

    `mesh`: None for all devices on axis `model`. `model` is for Orbax trees of the gemma library; `tokenizer` a
    SentencePiece file; `dtype` that of activations and parameters; `context` 0 for what the model was trained for. A
    run's weights are rounded as they were in training.
    Raises: ValueError if there is no such checkpoint or tokenizer.
    """
    execute = execution.Execution(dtype=dtype)
    found = checkpoint_open.open_checkpoint(path, model)
    words, notes = export.find_tokenizer(tokenizer, found)
    mesh = mesh or sharding.make_mesh(model=jax.device_count())
    say(*notes)
    return sampler.Sampler(
        found.model,
        functools.partial(load, found, mesh, dtype, say=say, bar=bar),
        words,
        mesh=mesh,
        execute=execute,
        context=context or hf_config.context_length(found.model),
    )


def load(
    found: checkpoint_open.Checkpoint,
    mesh: jax.sharding.Mesh,
    dtype: str | None,
    *,
    say: Callable[..., None] = _nothing,
    bar: Callable = _no_bar,
) -> dict:
    """The parameters, rounded as they were in training; `dtype` None: as stored."""
    say(f"reading {found.path} ({found.kind}, {found.num_bytes() / 2**20:.1f} MiB)", *found.notes)
    if mesh.size > 1:
        say(sharding.describe(found.shapes, parameters.shardings(found.model, mesh)))
    is_rounded = found.kind == "orbax" and bool(found.quant)
    with bar("read", found.num_bytes()) as shown:
        params = found.load(mesh, None if is_rounded else dtype, shown.update)
    if is_rounded:
        quant = settings.Quant(**found.quant)
        say(f"weights are rounded as they were in training: {quant.name}")
        rounded = view.make(quant, parameters.dims(found.model))
        params = jax.jit(lambda params: jax.tree.map(lambda x: x.astype(dtype or x.dtype), rounded(params)))(params)
    return params
