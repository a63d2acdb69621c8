#!/usr/bin/env bash
# llguidance requires an object's properties in the order of the schema, and accepts unlisted names twice.
#
# Natural guess: its grammar of a JSON schema accepts what a validator accepts: properties in any order, and each name
#   once.
# Version: llguidance 1.9.1, jsonschema 4.26.0
# Seen: properties a (required) and b, in this order; others allowed:
#   {"a":1,"b":2}: llguidance True, jsonschema True, names ['a', 'b']
#   {"b":2,"a":1}: llguidance False, jsonschema True, names ['b', 'a']
#   {"a":1,"c":3,"c":4}: llguidance True, jsonschema True, names ['a', 'c', 'c']
# Here: the docstring of `schema` in gemma3_jax/inference/tools/constrained.py warns of both. List first what a model
#   should write first ("reasoning" before "answer"), and set additionalProperties to false.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check llguidance==1.9.1 jsonschema==4.26.0 numpy==2.4.6
cd "$work"
venv/bin/python -I - <<'PYTHON'
import json

import jsonschema
import llguidance

PIECES = [*(bytes([byte]) for byte in range(256)), b"<end>"]
NUMBER = {"type": "integer"}
SCHEMA = {"type": "object", "properties": {"a": NUMBER, "b": NUMBER}, "required": ["a"]}


class Tokenizer:
    is_tokenizer_wrapper, bos_token_id, eos_token_id = True, None, len(PIECES) - 1
    tokens, special_token_ids = PIECES, [len(PIECES) - 1]

    def __call__(self, text):
        return list(text.encode() if isinstance(text, str) else text)


def look(text):
    matcher = llguidance.LLMatcher(
        llguidance.LLTokenizer(Tokenizer()), f"start: %json {json.dumps(SCHEMA)}", log_level=0
    )
    accepted = all(matcher.consume_tokens([byte]) for byte in text.encode()) and matcher.is_accepting()
    names = [name for name, _ in json.loads(text, object_pairs_hook=list)]
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(text))
    print(f"{text}: llguidance {accepted}, jsonschema {valid}, names {names}")
    return accepted, valid


seen = look('{"a":1,"b":2}'), look('{"b":2,"a":1}'), look('{"a":1,"c":3,"c":4}')
if seen != ((True, True), (False, True), (True, True)):
    raise SystemExit("changed: llguidance takes properties in another order, or refuses a name that comes twice")
PYTHON
