"""`convert`: writes a checkpoint as another kind."""

import argparse
import os
import pathlib
import time

from gemma3_jax.cli import model_flags, terminal


def parser() -> terminal.Parser:
    flags = terminal.Parser(
        prog="python -m gemma3_jax convert",
        description="Converts a checkpoint to another format.\n\n"
        "The kind of the source is recognized. It may be a run directory, an Orbax checkpoint of this program, a\n"
        "Hugging Face directory, a directory of PEFT, a GGUF file (the first one of a split model), or an Orbax tree\n"
        "of the gemma library. The target appears complete or not at all.\n\n"
        "kinds of target:\n"
        "  orbax  a checkpoint of this program, to train from, sample from or evaluate\n"
        "  hf     a directory for Transformers, with the tokenizer, the chat template and where an answer ends; what\n"
        "         a Hugging Face source has of these is copied. With --quant its weights are rounded to that format,\n"
        "         and packed.safetensors beside them holds the codes, which convert and evaluate read.\n"
        "  gguf   a file for llama.cpp, with a Modelfile for Ollama beside it. GGUF has no type for int4 and sfp8:\n"
        "         the rounded weights are stored as float32, exactly.\n"
        "  peft   a directory of PEFT with the adapters of a run (config.lora), without their base. All other kinds\n"
        "         need --merge, which writes base and adapters as one model.\n"
        "  gemma  an Orbax tree for Google's gemma library (gm.ckpts.load_params), without a tokenizer\n\n"
        "--quant rounds the matrices of attention and MLP. A checkpoint that was trained for a format is best stored\n"
        "in it; convert warns about another one.\n\n"
        "Tensors are read and written one at a time: host memory in use is a few copies of the largest stored array.\n"
        "(An Orbax checkpoint stores the layers of a parameter as one array.) --format=orbax and gemma hold\n"
        "all parameters.",
        epilog="example:\n  python -m gemma3_jax convert --source=gemma-3-1b-pt --target=1b.orbax --format=orbax\n"
        "  python -m gemma3_jax convert --source=run --target=run.gguf --format=gguf --quant=q4_0",
    )
    flags.add_argument("--source", required=True, metavar="PATH", help="checkpoint to read")
    flags.add_argument("--target", required=True, metavar="PATH", help="checkpoint to write; must not exist")
    flags.add_argument(
        "--format", required=True, choices=("orbax", "hf", "gguf", "peft", "gemma"), help="kind of checkpoint to write"
    )
    flags.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of parameters that are not quantized, and with --format=hf of all (default: as stored; float32 "
        "with --quant). float16 is for gguf only. Norms in GGUF are always float32",
    )
    flags.add_argument(
        "--quant",
        choices=("none", "int4", "q4_0", "sfp8", "q8_0"),
        default="none",
        help="format of the matrices, for gguf and hf (default: none)",
    )
    flags.add_argument(
        "--embedding",
        choices=("float32", "bfloat16", "float16", "q8_0"),
        help="format of the embedding table, for gguf or with --quant (default: as the other parameters; with --quant "
        "the one that the checkpoint was trained for, else float16)",
    )
    flags.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="SentencePiece model or tokenizer.json, for gguf and hf (default: that of the source directory, or the "
        "tokenizer.model beside it if the source was trained with that one; of a GGUF file the one in it, or beside it "
        "the original of that)",
    )
    flags.add_argument("--merge", action="store_true", help="write the base of adapters with them merged into it")
    terminal.add_base_flag(flags)
    terminal.add_model_flag(flags)
    return flags


def _check(flags: argparse.Namespace) -> None:
    """Raises: ValueError for flags that have no meaning together."""
    is_quantized = flags.quant != "none"
    for is_wrong, problem in (
        (
            flags.format == "orbax" and is_quantized,
            "--quant is for --format=gguf and hf; an Orbax checkpoint holds the unrounded weights, to train from",
        ),
        (flags.tokenizer and flags.format not in ("gguf", "hf"), "--tokenizer is for --format=gguf and hf"),
        (
            flags.embedding and flags.format != "gguf" and not is_quantized,
            "--embedding is for --format=gguf, or with --quant",
        ),
        (
            flags.dtype and flags.format == "gguf" and is_quantized,
            "--dtype is for parameters that are not quantized; with --quant, use --embedding",
        ),
        (flags.dtype == "float16" and flags.format != "gguf", "--dtype=float16 is for --format=gguf"),
        (flags.format == "peft" and is_quantized, "--quant is for --format=gguf and hf; adapters are floats"),
        (
            flags.format == "gemma" and is_quantized,
            "--quant is for --format=gguf and hf; a gemma tree has floats",
        ),
        (flags.format == "peft" and flags.merge, "--merge is for the other kinds; --format=peft writes no base"),
    ):
        if is_wrong:
            raise ValueError(problem)


def run(flags: argparse.Namespace) -> None:
    from gemma3_jax.checkpoint import export

    _check(flags)
    checkpoint = model_flags.open_checkpoint(flags, pathlib.Path(flags.source))
    path = pathlib.Path(os.path.abspath(flags.target))
    if path.is_relative_to(os.path.abspath(flags.source)):
        raise ValueError(f"--target {flags.target} is inside --source {flags.source}; choose a path outside of it")
    options = export.resolve(
        checkpoint,
        flags.format,
        quant=flags.quant,
        dtype=flags.dtype,
        embedding=flags.embedding,
        tokenizer=flags.tokenizer,
        merge=flags.merge,
    )
    options.check_new(path, checkpoint.shapes)
    notes = dict.fromkeys(checkpoint.notes + options.check())  # both may read the tokenizer
    terminal.say(f"reading {flags.source} ({checkpoint.kind}, {checkpoint.num_bytes() / 2**20:.1f} MiB)", *notes)
    started = time.monotonic()
    with terminal.bar("convert", options.num_bytes(checkpoint.shapes)) as bar:
        options.write(path, checkpoint.source, bar.update)
    seconds = time.monotonic() - started
    files = [path] if path.is_file() else path.rglob("*")
    megabytes = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
    terminal.say(
        f"wrote {flags.target} ({flags.format}), {megabytes:.1f} MB in {seconds:.1f} s: {megabytes / seconds:.1f} MB/s"
    )
