#!/usr/bin/env bash
# A ConfigDict field that was None once accepts any type from then on.
#
# Natural guess: ConfigDict is type-safe: a field keeps the type of its default, and None means "not set".
# Version: ml_collections 1.1.0
# Seen: fields that begin as steps = 4 and mesh = {'data': 4, 'seq': 2}:
#   steps, set to 'ten': TypeError
#   steps, set to None, then 'ten': 'ten'
#   steps, set to True: True
#   mesh, set to {'data': 8}: {'data': 8}, without seq
# Here: gemma3_jax/cli/configs.py checks the whole config against the types in gemma3_jax/settings.py after everything
#   is set. Do not use None for "not set" in a ConfigDict that others override.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check ml_collections==1.1.0
cd "$work"
venv/bin/python -I - <<'PYTHON'
import ml_collections


def look(field, *values):
    config = ml_collections.ConfigDict({"steps": 4, "mesh": {"data": 4, "seq": 2}})
    try:
        for value in values:
            config[field] = value
        result = repr(config.to_dict()[field])
    except TypeError as error:
        result = type(error).__name__
    print(f"{field}, set to {', then '.join(map(repr, values))}: {result}")
    return result


seen = look("steps", "ten"), look("steps", None, "ten"), look("steps", True), look("mesh", {"data": 8})
if seen != ("TypeError", "'ten'", "True", "{'data': 8}"):
    raise SystemExit("changed: a field keeps its type through None, or its fields through an update")
PYTHON
