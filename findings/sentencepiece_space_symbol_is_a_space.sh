#!/usr/bin/env bash
# SentencePiece reads the character U+2581 in a text as a space, so a text about tokenizers does not round-trip.
#
# Natural guess: with the identity normalizer, byte fallback and escaped spaces, decode(encode(text)) is the text.
# Version: sentencepiece 0.2.3
# Seen: U+2581 is SentencePiece's internal symbol of a space, and it does not distinguish the two:
#   'a▁b' has the ids of 'a b': True; comes back as 'a b'
# Here: gemma3_jax/tokenizer/vocabulary.py encodes this character as its three byte pieces, which decode to it. A
#   tokenizer without byte pieces cannot encode it.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check sentencepiece==0.2.3
cd "$work"
venv/bin/python -I -X utf8 - <<'PYTHON'
import io

import sentencepiece

SPACE, model = "\u2581", io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 100),
    model_writer=model,
    model_type="bpe",
    vocab_size=350,
    hard_vocab_limit=False,
    byte_fallback=True,
    normalization_rule_name="identity",
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    minloglevel=2,
)
tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
text = f"a{SPACE}b"
ids = tokenizer.encode(text)
is_same, back = ids == tokenizer.encode("a b"), tokenizer.decode(ids)
print(f"{text!r} has the ids of 'a b': {is_same}; comes back as {back!r}")
if not is_same or back != "a b":
    raise SystemExit("changed: U+2581 is no longer read as a space")
by_bytes = [tokenizer.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
assert tokenizer.decode([*tokenizer.encode("a"), *by_bytes, *tokenizer.encode("b")]) == text
PYTHON
