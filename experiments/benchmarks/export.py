"""Speed of exporting a model, by file kind and format.

    python experiments/benchmarks/export.py [--layers=6] [--embed_dim=640]

Writes random float32 parameters of a small 270M (its dims, 6 layers, a vocabulary of 32,768) to a temporary directory.
Prints a JSON line for each kind and format: seconds, megabytes written, and megabytes per second, of the file and of
the parameters. Time grows with the parameters; Gemma's vocabulary adds some seconds to a GGUF file.
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile
import time

import jax

from gemma3_jax import sharding
from gemma3_jax.checkpoint import encoding, export, tensor_source
from gemma3_jax.data.prepare import builtin
from gemma3_jax.model import config, parameters
from gemma3_jax.tokenizer import training, vocabulary

EXPORTS = (
    ("hf", None),
    ("hf", encoding.StoragePlan("int4", "float16")),
    ("hf", encoding.StoragePlan("sfp8", "float16")),
    ("gguf", encoding.StoragePlan("float32", "float32")),
    ("gguf", encoding.StoragePlan("q4_0", "float16")),
    ("gguf", encoding.StoragePlan("q4_0", "q8_0")),
    ("gguf", encoding.StoragePlan("q8_0", "q8_0")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--embed_dim", type=int, default=640)
    parser.add_argument("--vocabulary", type=int, default=32_768)
    flags = parser.parse_args()
    model = dataclasses.replace(
        config.SIZES["270m"], num_layers=flags.layers, embed_dim=flags.embed_dim, vocab_size=flags.vocabulary
    )
    params = parameters.init(model, jax.random.key(0), sharding.make_mesh())
    megabytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e6
    texts = [row["text"] for file in builtin.files()[:16] for row in builtin.rows(file)]
    tokenizer = vocabulary.Tokenizer(training.train(texts, 1_024))
    for kind, plan in EXPORTS:
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / f"model.{kind}"
            started = time.perf_counter()
            export.Export(kind, model, plan, tokenizer=tokenizer).write(path, tensor_source.from_params(model, params))
            seconds = time.perf_counter() - started
            files = [path] if path.is_file() else path.rglob("*")
            written = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
        line = {"benchmark": "export", "kind": kind, "matrices": plan.matrices if plan else "float32"}
        line |= {"embedding": plan.table if plan else "float32", "seconds": round(seconds, 2)}
        line |= {"megabytes": round(written, 1), "megabytes_per_second": round(written / seconds, 1)}
        line["parameter_megabytes_per_second"] = round(megabytes / seconds, 1)
        print(json.dumps(line | {"jax": jax.__version__}), flush=True)


if __name__ == "__main__":
    main()
