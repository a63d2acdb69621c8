"""tokenizer.json: the library that reads it encodes as SentencePiece does."""

import io
import json

import pytest
import sentencepiece
import tokenizers

from gemma3_jax.tokenizer import pieces, tokenizer_json, vocabulary
from tests import texts

SPACES = [" " * length for length in (1, 2, 31, 32, 33, 70)]
PAGES = [*texts.library()[40:46], "", "\n" * 40, "\t" * 33, "a  \n  b", *SPACES, *(f"a{run}b" for run in SPACES)]
CHAT = "<start_of_turn>user\nWho are you?<end_of_turn>\n<start_of_turn>model\n<table><b>bold</b> <unused7> [multimodal]"


def library(tokenizer=None) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tokenizer_json.write(tokenizer or texts.tokenizer()))


def train(**options) -> vocabulary.Tokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts.library()[:4]), model_writer=model, minloglevel=2,
        max_sentence_length=1 << 20, **({"vocab_size": 400} | options),
    )  # fmt: skip
    return vocabulary.Tokenizer(model.getvalue())


def test_its_ids_are_ours_behind_bos():
    reader, tokenizer = library(), texts.tokenizer()
    for page in [*PAGES, CHAT]:
        assert reader.encode(page).ids == [2, *tokenizer.encode(page, parse_control=True)], page[:40]
    for page in PAGES:
        assert reader.decode(tokenizer.encode(page)) == page
    assert reader.get_vocab_size() == tokenizer.size


def test_an_answer_is_decoded_without_its_control_tokens():
    reader, tokenizer = library(), texts.tokenizer()
    ids = [2, *tokenizer.encode("A  model.\n<b>Two</b>"), tokenizer.end_of_turn, 1]
    assert reader.decode(ids, skip_special_tokens=True) == "A  model.\n<b>Two</b>"
    added = {token["content"]: token for token in json.loads(tokenizer_json.write(tokenizer))["added_tokens"]}
    assert [name for name in ("<b>", "\n", "<start_of_turn>", "<pad>") if added[name]["special"]] == [
        "<start_of_turn>",
        "<pad>",
    ]


def piece(text, kind=pieces.PieceKind.NORMAL):
    return pieces.VocabularyPiece(text, 0.0, kind)


@pytest.mark.parametrize(
    ("tokenizer", "problem"),
    [
        (lambda: train(model_type="unigram"), "is no BPE model"),
        (lambda: train(model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False), "bytes"),
        (
            lambda: train(
                model_type="bpe",
                byte_fallback=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                vocab_size=700,
            ),
            "puts a space before a text",
        ),
        (lambda: changed(piece("x\u6f22")), r"piece 'x\u6f22' .* has a character that is no piece"),
        (lambda: changed(piece("[PAD]", pieces.PieceKind.UNUSED)), "has unused pieces"),
    ],
)
def test_what_the_library_would_encode_otherwise_is_refused(tokenizer, problem):
    with pytest.raises(ValueError, match=problem):
        tokenizer_json.write(tokenizer())


def test_a_piece_that_neither_merges_may_have_such_a_character():
    tokenizer = changed(piece("\u6f22\n"))
    assert library(tokenizer).encode("\u6f22\n").ids[1:] == tokenizer.encode("\u6f22\n")


def changed(new: pieces.VocabularyPiece) -> vocabulary.Tokenizer:
    return vocabulary.Tokenizer(pieces.replaced(texts.tokenizer_model(), {texts.TOKENIZER_SIZE: new}))
