#!/usr/bin/env bash
# The gguf package's reader makes four numpy arrays for each piece of the vocabulary: a million for Gemma's header.
#
# Natural guess: GGUFReader maps the file, so opening one to look at a few keys is quick, whatever else is in it.
# Version: gguf 0.19.0, numpy 2.4.6
# Seen: a file with Gemma's 262,144 pieces, scores and types, and no tensors at all (on a loaded machine):
#   5.9 MB, 1048599 numpy arrays, 15 s, 667 MB more memory; struct reads the pieces in 0.1 s
# Here: gemma3_jax/checkpoint/gguf_header.py reads headers with struct, and of long arrays only the length.
#   gemma3_jax/checkpoint/gguf_file.py uses the package's writer and its block formats.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
cd "$work"
venv/bin/python -I - <<'PYTHON'
import pathlib
import resource
import struct
import time

import gguf

PIECES = 262_144
path = pathlib.Path("header.gguf")
writer = gguf.GGUFWriter(path, "gemma3")
writer.add_token_list([f"t{number}" for number in range(PIECES)])
writer.add_token_scores([-float(number) for number in range(PIECES)])
writer.add_token_types([1] * PIECES)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()


def tokens_by_struct(content):
    """The strings of the first array, whose key is known."""
    place = content.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens")
    _, _, count = struct.unpack_from("<IIQ", content, place)
    place, tokens = place + 16, []
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", content, place)
        tokens.append(content[place + 8 : place + 8 + length])
        place += 8 + length
    return tokens


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


started = time.monotonic()
assert len(tokens_by_struct(path.read_bytes())) == PIECES
by_struct, started, before = time.monotonic() - started, time.monotonic(), peak()
reader = gguf.GGUFReader(path)
seconds, arrays = time.monotonic() - started, sum(len(field.parts) for field in reader.fields.values())
print(
    f"{path.stat().st_size / 1e6:.1f} MB, {arrays} numpy arrays, {seconds:.0f} s, {peak() - before} MB more memory; "
    f"struct reads the pieces in {by_struct:.1f} s"
)
if arrays < 4 * PIECES:
    raise SystemExit("changed: the reader no longer makes an array for every piece, score and type")
PYTHON
