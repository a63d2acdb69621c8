"""`convert`: writes a checkpoint as another kind."""

import argparse
import os
import pathlib
import time

from gemma3_jax.cli import terminal


def parser() -> terminal.Parser:
    flags = terminal.Parser(
        prog="python -m gemma3_jax convert",
        description="Writes a checkpoint as another kind. The kind of the source is recognised: an Orbax checkpoint\n"
        "of this program, a Hugging Face directory, or an Orbax tree of the gemma library (nested or flat, per\n"
        "layer or stacked). The target appears whole or not at all. Parameters and the model's shape are carried;\n"
        "tokenizer and generation settings are not.",
        epilog="example:\n  python -m gemma3_jax convert --source=gemma-3-1b-pt --target=1b.orbax --format=orbax",
    )
    flags.add_argument("--source", required=True, metavar="DIR", help="the checkpoint to read")
    flags.add_argument("--target", required=True, metavar="DIR", help="the checkpoint to write; must not exist")
    flags.add_argument("--format", required=True, choices=("orbax", "hf"), help="the kind to write")
    flags.add_argument("--dtype", choices=("float32", "bfloat16"), help="of what is written (default: as stored)")
    terminal.add_model_flag(flags)
    return flags


def run(flags: argparse.Namespace) -> None:
    import numpy as np

    from gemma3_jax import sharding
    from gemma3_jax.checkpoint import convert, hf_config, target
    from gemma3_jax.model import execution

    dtype = np.dtype(execution.DTYPES[flags.dtype]) if flags.dtype else None
    source = convert.open_checkpoint(pathlib.Path(flags.source), convert.find_model(flags.model))
    path = pathlib.Path(os.path.abspath(flags.target))
    if path.is_relative_to(os.path.abspath(flags.source)):
        raise ValueError(f"--target {flags.target} is inside --source {flags.source}; choose a place outside of it")
    target.check_new(path, source.num_bytes(dtype))
    if flags.format == "hf":
        hf_config.write(source.model, "float32")  # refuses what config.json cannot say, before anything is read
    terminal.say(f"reading {flags.source} ({source.kind}, {source.num_bytes() / 2**20:.1f} MiB)", *source.notes)
    started = time.monotonic()
    with terminal.bar("read", source.num_bytes(dtype)) as bar:
        params = source.load(sharding.make_mesh(), dtype, bar.update)
    with terminal.bar("write", source.num_bytes(dtype) if flags.format == "hf" else None) as bar:
        convert.write(path, flags.format, source.model, params, bar.update)
    terminal.say(f"wrote {flags.target} ({flags.format}) in {time.monotonic() - started:.1f} s")
