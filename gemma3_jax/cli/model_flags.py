"""The flags that choose a model, its mesh and its dtype; and the model they name, opened with a progress bar."""

import argparse
import functools
import pathlib

from gemma3_jax.cli import terminal


def add_flags(parser: terminal.Parser, axis: str) -> None:
    """Adds the flags. All devices are on the mesh axis `axis` by default."""
    parser.add_argument("--checkpoint", metavar="PATH", help="a checkpoint of any kind that convert reads")
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="SentencePiece model or tokenizer.json (default: the checkpoint's, in or beside it)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="dtype of activations and parameters (default: float32)"
    )
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        help="the device mesh: sizes of the axes replica, data, seq and model; it uses the first N * ... devices "
        f"(default: all devices along {axis})",
    )
    terminal.add_base_flag(parser)
    terminal.add_model_flag(parser)


def open_checkpoint(flags: argparse.Namespace, path: pathlib.Path):
    """The checkpoint at a path, as open.Checkpoint, with what --model and --base say of it. Raises: ValueError."""
    from gemma3_jax.checkpoint import open as checkpoint_open

    base = pathlib.Path(flags.base) if flags.base else None
    return checkpoint_open.open_checkpoint(path, checkpoint_open.find_model(flags.model), base=base)


def open_sampler(flags: argparse.Namespace, *, axis: str, context: int):
    """The checkpoint that the flags name, as an open_sampler.CheckpointSampler, on all devices along `axis` by default.

    `context` 0: the model's context length.
    Raises: ValueError if they name no checkpoint, or there is none at that path.
    """
    import jax

    from gemma3_jax.inference import open_sampler

    if not flags.checkpoint:
        raise ValueError("--checkpoint is missing; name a checkpoint of any kind that convert reads")
    if flags.dtype != "bfloat16":
        jax.config.update("jax_default_matmul_precision", "highest")  # TPUs and GPUs round the factors otherwise
    return open_sampler.open_sampler(
        pathlib.Path(flags.checkpoint),
        open_checkpoint=functools.partial(open_checkpoint, flags),
        tokenizer=flags.tokenizer,
        mesh=terminal.mesh(flags.mesh or f"{axis}={jax.device_count()}"),
        dtype=flags.dtype or "float32",
        context=context,
        say=terminal.say,
        bar=terminal.bar,
    )
