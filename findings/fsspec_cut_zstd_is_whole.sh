#!/usr/bin/env bash
# Of a .zst file that is cut off, fsspec reads what is there and ends; of a .gz file it raises.
#
# Natural guess: compression="infer" treats .zst as it treats .gz, so that half a download of a corpus is an error.
# Version: fsspec 2026.9.0, zstandard 0.25.0
# Seen: 1,024,000 bytes, compressed, without the last 9 bytes of the file; and whether lines can be read:
#   gz: EOFError, has readline
#   zst: 917504 of 1024000 bytes and no error, no readline
# Here: gemma3_jax/data/prepare/zstd.py reads frame by frame with decompressobj, which knows whether the last one ended.
#   Elsewhere compare what was read with the size that a frame states, where it states one.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check fsspec==2026.9.0 zstandard==0.25.0
cd "$work"
venv/bin/python -I - <<'PYTHON'
import gzip
import pathlib

import fsspec
import zstandard

LONG = bytes(range(256)) * 4_000


def read(name):
    with fsspec.open(name, "rb", compression="infer") as file:
        return file.read()


def cut(name, content):
    pathlib.Path(name).write_bytes(content[:-9])
    try:
        return f"{len(read(name))} of {len(LONG)} bytes and no error"
    except EOFError as error:
        return type(error).__name__


def has_readline(name):
    with fsspec.open(name, "rb", compression="infer") as file:
        try:
            file.readline()
        except OSError:
            return False
    return True


seen = {}
for ending, pack in (("gz", gzip.compress), ("zst", zstandard.compress)):
    name = f"cut.{ending}"
    seen[ending] = cut(name, pack(LONG)) + (", has readline" if has_readline(name) else ", no readline")
    print(f"{ending}: {seen[ending]}")
if "no error" not in seen["zst"]:
    raise SystemExit("changed: fsspec raises where a .zst file is cut off")
PYTHON
