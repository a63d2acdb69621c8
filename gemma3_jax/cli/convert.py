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
        "of this program, a Hugging Face directory, a GGUF file, or an Orbax tree of the gemma library (nested or\n"
        "flat, per layer or stacked). The target appears whole or not at all.\n\n"
        "--format=gguf is a file that llama.cpp runs, with a Modelfile for Ollama beside it. --format=hf is a\n"
        "directory for Transformers; with --quant its weights are what they come back with from that format, and\n"
        "packed.safetensors beside them holds the few bits themselves, which convert and evaluate read.\n\n"
        "--quant rounds the matrices of attention and MLP; GGUF has no type for int4 and sfp8, so that the rounded\n"
        "weights are stored there as float32, exactly. A checkpoint that was trained for one format is best in it:\n"
        "another is warned of. Generation settings are not carried.",
        epilog="example:\n  python -m gemma3_jax convert --source=gemma-3-1b-pt --target=1b.orbax --format=orbax\n"
        "  python -m gemma3_jax convert --source=run --target=run.gguf --format=gguf --quant=q4_0",
    )
    flags.add_argument("--source", required=True, metavar="PATH", help="the checkpoint to read")
    flags.add_argument("--target", required=True, metavar="PATH", help="the checkpoint to write; must not exist")
    flags.add_argument("--format", required=True, choices=("orbax", "hf", "gguf"), help="the kind to write")
    flags.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of what is not quantised, and with --format=hf of what is (default: as stored; float32 beside --quant); "
        "float16 for gguf alone; norms in GGUF are float32",
    )
    flags.add_argument(
        "--quant",
        choices=("none", "int4", "q4_0", "sfp8", "q8_0"),
        default="none",
        help="format of the matrices, for gguf and hf (none)",
    )
    flags.add_argument(
        "--embedding",
        choices=("float32", "bfloat16", "float16", "q8_0"),
        help="format of the embedding, for gguf or beside --quant (default: as the other parameters; beside --quant "
        "what it was trained for, else float16)",
    )
    flags.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="a SentencePiece model, for gguf and hf (default: tokenizer.model in the source's directory, "
        "or beside it if the source was trained with that one)",
    )
    terminal.add_model_flag(flags)
    return flags


def _check(flags: argparse.Namespace) -> None:
    """Refuses flags that would mean nothing together."""
    is_quantised = flags.quant != "none"
    for is_wrong, problem in (
        (
            flags.format == "orbax" and is_quantised,
            "--quant is for --format=gguf and hf; an Orbax checkpoint holds the weights that training goes on from",
        ),
        (flags.format == "orbax" and flags.tokenizer, "--tokenizer is for --format=gguf and hf"),
        (
            flags.embedding and flags.format != "gguf" and not is_quantised,
            "--embedding is for --format=gguf, or beside --quant",
        ),
        (
            flags.dtype and flags.format == "gguf" and is_quantised,
            "--dtype is for what is not quantised; beside --quant, say --embedding",
        ),
        (flags.dtype == "float16" and flags.format != "gguf", "--dtype=float16 is for --format=gguf"),
    ):
        if is_wrong:
            raise ValueError(problem)


def run(flags: argparse.Namespace) -> None:
    from gemma3_jax import sharding
    from gemma3_jax.checkpoint import export
    from gemma3_jax.checkpoint import open as checkpoint_open

    _check(flags)
    source = checkpoint_open.open_checkpoint(pathlib.Path(flags.source), checkpoint_open.find_model(flags.model))
    path = pathlib.Path(os.path.abspath(flags.target))
    if path.is_relative_to(os.path.abspath(flags.source)):
        raise ValueError(f"--target {flags.target} is inside --source {flags.source}; choose a place outside of it")
    asked = export.ask(
        source,
        flags.format,
        quant=flags.quant,
        dtype=flags.dtype,
        embedding=flags.embedding,
        tokenizer=flags.tokenizer,
    )
    asked.check_new(path, source.shapes)
    notes = asked.check()
    terminal.say(f"reading {flags.source} ({source.kind}, {source.num_bytes() / 2**20:.1f} MiB)", *source.notes, *notes)
    started = time.monotonic()
    with terminal.bar("read", source.num_bytes(asked.load_dtype)) as bar:
        params = source.load(sharding.make_mesh(), asked.load_dtype, bar.update)
    with terminal.bar("write", asked.num_bytes(source.shapes) if flags.format != "orbax" else None) as bar:
        asked.write(path, params, bar.update)
    seconds = time.monotonic() - started
    files = [path] if path.is_file() else path.rglob("*")
    megabytes = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
    terminal.say(
        f"wrote {flags.target} ({flags.format}), {megabytes:.1f} MB in {seconds:.1f} s: {megabytes / seconds:.1f} MB/s"
    )
