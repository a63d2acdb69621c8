"""The flags that say which model is to run, on what, and how; and the model, read with a bar."""

import argparse
import pathlib

from gemma3_jax.cli import terminal


def add_flags(parser: terminal.Parser, axis: str) -> None:
    """`axis`: of the mesh, that takes all devices if nothing is said."""
    parser.add_argument("--checkpoint", metavar="PATH", help="of any kind that convert reads")
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="a SentencePiece model (default: tokenizer.model in the checkpoint's place)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of activations and parameters (float32)")
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        help=f"axes replica, data, seq, model, on the first N * ... devices (default: {axis}=every device)",
    )
    terminal.add_model_flag(parser)


def sampler(flags: argparse.Namespace, *, axis: str, context: int):
    """The model that the flags name, ready to write; on all devices along `axis` if they name no mesh.

    `context` 0: as many tokens as it was trained for.
    Raises: ValueError if they name no checkpoint, or nothing that is one.
    """
    import jax

    from gemma3_jax.checkpoint import open as checkpoint_open
    from gemma3_jax.inference import open_sampler

    if not flags.checkpoint:
        raise ValueError("--checkpoint is missing; name a checkpoint of any kind that convert reads")
    if flags.dtype != "bfloat16":
        jax.config.update("jax_default_matmul_precision", "highest")  # TPUs and GPUs round the factors otherwise
    return open_sampler.open_sampler(
        pathlib.Path(flags.checkpoint),
        model=checkpoint_open.find_model(flags.model),
        tokenizer=flags.tokenizer,
        mesh=terminal.mesh(flags.mesh or f"{axis}={jax.device_count()}"),
        dtype=flags.dtype or "float32",
        context=context,
        say=terminal.say,
        bar=terminal.bar,
    )
