"""Evaluation text of the demo, which its models do not train on: modules of jax and numpy.

    python experiments/demo_documents.py data/documents.jsonl

A few seconds, no network: 3 long modules of each library, as installed.
"""

import json
import pathlib
import sys

import jax
import numpy

NUM_MODULES, MIN_CHARACTERS, MAX_CHARACTERS = 3, 20_000, 40_000  # over 4,096 tokens of the demo's tokenizer


def main(output: str) -> None:
    rows = []
    for library in (jax, numpy):
        root = pathlib.Path(library.__file__).parent
        texts = (file.read_text(encoding="utf-8") for file in sorted(root.rglob("*.py")))
        long = [text for text in texts if MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS]
        rows += [{"source": library.__name__, "text": text} for text in long[:: len(long) // NUM_MODULES][:NUM_MODULES]]
    file = pathlib.Path(output)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    partial.replace(file)
    print(f"{file}: {len(rows)} documents")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
