#!/usr/bin/env bash
# llguidance writes a comma after an object's last property, and then finds that no name may follow.
#
# Natural guess: a mask never leads into a dead end: what it allows can be continued to a document of the schema, and
#   a schema without documents is refused when it is compiled.
# Version: llguidance 1.9.1
# Seen: patternProperties that match no name besides those in properties, with additionalProperties false:
#   names ['a'], patterns ['^[ab]$']: the comma is allowed True, and can be continued True
#   names ['a'], patterns ['^a$']: the comma is allowed True, and can be continued False
#   names ['a'], patterns []: the comma is allowed False, and can be continued False
# Here: gemma3_jax/inference/tools/constrained.py walks an object that has all of its names, and refuses the schema if
#   nothing may follow a comma. Random walks of such a schema end in NoExtensionBias about every second time.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check llguidance==1.9.1 numpy==2.4.6
cd "$work"
venv/bin/python -I - <<'PYTHON'
import json

import llguidance

BYTES = llguidance.LLTokenizer("byte")


def look(names, patterns):
    schema = {
        "type": "object",
        "properties": {name: {"type": "null"} for name in names},
        "patternProperties": {pattern: {"type": "null"} for pattern in patterns},
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"},
    }
    matcher = llguidance.LLMatcher(BYTES, f"start: %json {json.dumps(schema)}", log_level=0)
    text = "{" + ",".join(f'"{name}":null' for name in names)
    assert matcher.consume_tokens(list(text.encode())), matcher.get_error()
    is_allowed = bool(matcher.compute_bitmask()[ord(",") // 8] >> (ord(",") % 8) & 1)
    matcher.consume_tokens([ord(",")])
    goes_on = not matcher.is_error() and bool(matcher.compute_bitmask()) and not matcher.is_error()
    print(f"names {names}, patterns {patterns}: the comma is allowed {is_allowed}, and can be continued {goes_on}")
    return is_allowed, goes_on


seen = look(["a"], ["^[ab]$"]), look(["a"], ["^a$"]), look(["a"], [])
if seen != ((True, True), (True, False), (False, False)):
    raise SystemExit("changed: a comma that llguidance allows can be continued")
PYTHON
