#!/usr/bin/env bash
# A Gemma tokenizer that Transformers reads from tokenizer.model alone adds no BOS.
#
# Natural guess: GemmaTokenizer puts <bos> before a text, as Gemma was trained with it before every text.
# Version: transformers 5.23.0, sentencepiece 0.2.3, protobuf 7.36.1
# Seen: it knows the token and does not add it; a key in tokenizer_config.json decides:
#   tokenizer.model alone: bos_token is <bos>, the first of 'the quick' is the
#   with {"add_bos_token": true}: bos_token is <bos>, the first of 'the quick' is <bos>
# Here: gemma3_jax/checkpoint/hf.py writes directories for Transformers. They need a tokenizer_config.json with
#   tokenizer_class and add_bos_token; without it put the id 2 before every prompt.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  transformers==5.23.0 sentencepiece==0.2.3 protobuf==7.36.1
cd "$work"
TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1 venv/bin/python -I - <<'PYTHON'
import json
import pathlib

import sentencepiece
import transformers

pathlib.Path("toy").mkdir()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 100),
    model_prefix="toy/tokenizer",
    model_type="bpe",
    vocab_size=350,
    hard_vocab_limit=False,
    byte_fallback=True,
    normalization_rule_name="identity",
    add_dummy_prefix=False,
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    pad_piece="<pad>",
    eos_piece="<eos>",
    bos_piece="<bos>",
    minloglevel=2,
)


def first(name):
    tokenizer = transformers.GemmaTokenizer.from_pretrained("toy")
    piece = tokenizer.convert_ids_to_tokens(tokenizer("the quick").input_ids[:1])[0]
    print(f"{name}: bos_token is {tokenizer.bos_token}, the first of 'the quick' is {piece}")
    return piece


alone = first("tokenizer.model alone")
config = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True}
pathlib.Path("toy/tokenizer_config.json").write_text(json.dumps(config))
configured = first('with {"add_bos_token": true}')
if alone == "<bos>" or configured != "<bos>":
    raise SystemExit("changed: whether <bos> is added no longer hangs on tokenizer_config.json")
PYTHON
