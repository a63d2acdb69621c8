"""A tokenizer trained here has Gemma's settings and Gemma's ids."""

import pytest
import sentencepiece

from gemma3_jax.tokenizer import training, vocabulary
from tests import texts


def test_control_ids_are_in_gemmas_places():
    tokenizer = texts.tokenizer()
    expected = {
        **{0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>", 5: "[multimodal]"},
        **{6: "<unused0>", 104: "<unused98>", 105: "<start_of_turn>", 106: "<end_of_turn>"},
        **{107: "\n", 108: "\n\n", 137: "\n" * 31, 138: "\u2581" * 2, 167: "\u2581" * 31},
        **{168: "<table>", 237: "</footer>", 238: "<0x00>", 493: "<0xFF>"},
    }
    assert {token: tokenizer.piece(token) for token in expected} == expected
    size = texts.TOKENIZER_SIZE
    assert tokenizer.size == size
    assert [tokenizer.piece(token) for token in (size - 33, size - 3)] == ["\t", "\t" * 31]
    assert (tokenizer.start_of_image, tokenizer.end_of_image) == (size - 2, size - 1)
    assert training.NUM_FIXED == 494


def test_the_tail_of_the_full_vocabulary_is_gemmas():
    tail = training.last_pieces(training.GEMMA_SIZE)
    ids = dict(enumerate(tail, start=training.GEMMA_LEARNED_END))
    assert (ids[255_968], ids[255_998], ids[255_999]) == ("\t", "\t" * 31, "<start_of_image>")
    assert (ids[256_000], ids[262_143], len(tail)) == ("<unused99>", "<unused6242>", 262_144 - 255_968)


def test_pieces_follow_gemmas_settings():
    tokenizer = texts.tokenizer()
    pieces = lambda text: [tokenizer.piece(token) for token in tokenizer.encode(text)]  # noqa: E731
    assert pieces("12345") == list("12345")
    assert pieces("  ") == ["\u2581\u2581"] and pieces("\n\n\n") == ["\n\n\n"] and pieces("\t\t") == ["\t\t"]
    assert pieces("\u6f22") == ["<0xE6>", "<0xBC>", "<0xA2>"]  # byte fallback
    assert pieces("<table>") == ["<table>"]
    assert not pieces("a")[0].startswith("\u2581")  # no dummy prefix
    assert tokenizer.decode(tokenizer.encode("\ufb01 \u00bd")) == "\ufb01 \u00bd"  # identity normalization


def test_the_same_texts_give_the_same_file():
    assert training.train(iter(texts.library()[:16]), texts.TOKENIZER_SIZE) == texts.tokenizer_model()


def test_the_file_is_one_that_sentencepiece_reads_and_counts():
    processor = sentencepiece.SentencePieceProcessor(model_proto=texts.tokenizer_model())
    assert processor.get_piece_size() == texts.TOKENIZER_SIZE


def test_digits_are_never_joined():
    years = ["year 2024 and 2025, 2024 again " * 50]
    tokenizer = vocabulary.Tokenizer(training.train([*years, *texts.library()[:4]], 700))
    assert all(sum(map(str.isdigit, tokenizer.piece(token))) <= 1 for token in range(494, 700 - 33))


def test_long_texts_and_texts_with_a_character_the_trainer_reserves_are_learned_from():
    word = "quokkaquokka"
    model = training.train([f"\u2585{word} " * 2_000, "abc " * 10], 545)
    tokenizer = vocabulary.Tokenizer(model)
    assert len(tokenizer.encode(word)) <= 2


@pytest.mark.parametrize(
    ("given", "size", "problem"),
    [
        ([], 600, "there is no text to train a tokenizer on"),
        (["a b"], 527, "of 527 pieces has no room beside the 527 fixed ones"),
        (["".join(map(chr, range(300, 400)))], 540, "their characters alone need 6"),
        (["a b"], 5_000, "no tokenizer of 5000 pieces can be trained on these texts: they fill 532 at most"),
    ],
)
def test_what_cannot_be_trained_is_refused(given, size, problem):
    with pytest.raises(ValueError, match=problem):
        training.train(given, size)
