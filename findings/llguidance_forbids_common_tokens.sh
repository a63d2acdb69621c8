#!/usr/bin/env bash
# Where a grammar leaves only one continuation, llguidance forbids tokens that cut it in another way.
#
# Natural guess: the mask allows every token whose bytes the grammar allows, so a model writes forced text in the tokens
#   that it prefers.
# Version: llguidance 1.9.1
# Seen: a schema whose only key is "a", and a tokenizer with the pieces 'a', '"' and 'a"'. After '{"' the mask allows:
#   as it is: ['a']
#   with no_forcing: ['a', 'a"']
# Here: gemma3_jax/inference/tools/constrained.py puts %llguidance {"no_forcing": true} before every grammar. Otherwise
#   forced bytes must be split as the tokenizer's __call__ splits them, so it has to be the model's tokenizer.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check llguidance==1.9.1 numpy==2.4.6
cd "$work"
venv/bin/python -I - <<'PYTHON'
import json

import llguidance
import numpy as np

PIECES = [*(bytes([byte]) for byte in range(256)), b'a"', b"<end>"]
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}


class Tokenizer:
    is_tokenizer_wrapper, bos_token_id, eos_token_id = True, None, len(PIECES) - 1
    tokens, special_token_ids = PIECES, [len(PIECES) - 1]

    def __call__(self, text):
        return list(text.encode() if isinstance(text, str) else text)


def allowed(head):
    matcher = llguidance.LLMatcher(
        llguidance.LLTokenizer(Tokenizer()), f"{head}start: %json {json.dumps(SCHEMA)}", log_level=0
    )
    assert matcher.consume_tokens(list(b'{"'))
    bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
    return [piece.decode() for piece, bit in zip(PIECES, bits) if bit]


forced, free = allowed(""), allowed('%llguidance {"no_forcing": true}\n')
print(f"as it is: {forced}\nwith no_forcing: {free}")
if (forced, free) != (["a"], ["a", 'a"']):
    raise SystemExit("changed: the mask within forced text allows other tokens")
PYTHON
