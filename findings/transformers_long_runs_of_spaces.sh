#!/usr/bin/env bash
# From 32 spaces in a row on, Transformers gives other ids than SentencePiece, from the same Gemma tokenizer file.
#
# Natural guess: Transformers converts tokenizer.model to its own form and encodes all text as SentencePiece does.
# Version: transformers 5.23.0, tokenizers 0.23.3, sentencepiece 0.2.3, protobuf 7.36.1
# Seen: Gemma has pieces for 2 to 31 spaces. SentencePiece takes the longest piece from the left; Transformers merges
#   pairs of pieces by rank. Spaces per piece, in runs of:
#   31: SentencePiece [31], Transformers [31]
#   32: SentencePiece [31, 1], Transformers [16, 16]
#   62: SentencePiece [31, 31], Transformers [16, 16, 30]
# Here: gemma3_jax/tokenizer/vocabulary.py encodes with SentencePiece. Through Transformers, deeply indented code and
#   tables reach a model as ids that it did not see in training.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  transformers==5.23.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.1
cd "$work"
TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1 venv/bin/python -I - <<'PYTHON'
import pathlib

import sentencepiece
import transformers

SPACE = "\u2581"
pathlib.Path("toy").mkdir()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 100),
    model_prefix="toy/tokenizer",
    model_type="bpe",
    vocab_size=400,
    hard_vocab_limit=False,
    byte_fallback=True,
    normalization_rule_name="identity",
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    split_by_whitespace=False,
    user_defined_symbols=[SPACE * count for count in range(2, 32)],  # as Gemma has them
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    minloglevel=2,
)
processor = sentencepiece.SentencePieceProcessor(model_file="toy/tokenizer.model")
converted = transformers.GemmaTokenizer.from_pretrained("toy")
differ = []
for count in (2, 31, 32, 33, 62):
    text = " " * count
    original = [len(piece) for piece in processor.encode(text, out_type=str)]
    merged = [len(piece) for piece in converted.tokenize(text)]
    print(f"{count}: SentencePiece {original}, Transformers {merged}")
    if original != merged:
        differ.append(count)
if differ != [32, 33, 62]:
    raise SystemExit("changed: Transformers splits long runs of spaces as SentencePiece does, or short ones otherwise")
PYTHON
