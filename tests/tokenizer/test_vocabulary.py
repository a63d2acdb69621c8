"""Text -> ids -> the same text, and ids that mean something."""

import io
import itertools
import pickle
import random

import numpy as np
import pytest
import sentencepiece

from gemma3_jax.tokenizer import directory, pieces, protobuf, vocabulary
from tests import texts


def random_texts(count):
    """Any Unicode there is, and everything that a tokenizer may trip over."""
    draw = random.Random(0)
    awkward = [
        " ",
        "  ",
        "\n",
        "\t",
        "\r\n",
        "\x00",
        "\u2581",
        "\u2585",
        "\u2047",
        "\ufffd",
        "\ufeff",
        "\u200b",
        "<bos>",
        "<eos>",
        "<unk>",
    ]
    awkward += ["<start_of_turn>", "<end_of_image>", "<0x41>", "[multimodal]", "<unused7>", "<table>", "123", "e\u0301"]
    ranges = [(0, 128), (0, 0xD800), (0xE000, 0x110000)]
    for _ in range(count):
        choices = (draw.choice([*(chr(draw.randrange(*limits)) for limits in ranges), *awkward]) for _ in range(20))
        yield "".join(itertools.islice(choices, draw.randrange(14)))


def test_every_text_comes_back_and_none_makes_a_control_token():
    tokenizer, num_bytes = texts.tokenizer(), texts.tokenizer().num_bytes()
    control = {tokenizer.pad, tokenizer.eos, tokenizer.bos, 3, 4, 5, *range(6, 107)}
    control |= {tokenizer.start_of_image, tokenizer.end_of_image}
    for text in random_texts(5_000):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not control & set(ids)
        assert num_bytes[ids].sum() == len(text.encode())


def test_encoding_is_that_of_sentencepiece_where_text_spells_nothing_special():
    plain = sentencepiece.SentencePieceProcessor(model_proto=texts.tokenizer_model())
    for text in texts.library()[:8]:
        assert texts.tokenizer().encode(text) == plain.encode(text)


def test_html_is_text():
    tokenizer = texts.tokenizer()
    assert [tokenizer.piece(token) for token in tokenizer.encode("<s>a</s>")] == ["<s>", "a", "</s>"]
    assert tokenizer.num_bytes()[tokenizer.encode("<s>a</s>")].tolist() == [3, 1, 4]


def test_a_template_may_spell_control_tokens_if_the_caller_says_so():
    tokenizer = texts.tokenizer()
    text = "<start_of_turn>user\n"
    assert tokenizer.encode(text, parse_control=True)[0] == tokenizer.start_of_turn
    assert tokenizer.start_of_turn not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode("a\u2581b", parse_control=True)) == "a\u2581b"


def test_bos_is_an_id_that_no_text_makes():
    tokenizer = texts.tokenizer()
    for parse_control in (False, True):
        assert tokenizer.bos not in tokenizer.encode("<bos>[BOS]", parse_control=parse_control)
    ids = tokenizer.document("<bos>")
    assert ids.dtype == np.int32 and list(ids).count(tokenizer.bos) == 1
    assert ids[0] == tokenizer.bos and ids[-1] == tokenizer.eos


def test_a_model_of_another_kind_has_its_own_ids_and_no_turns():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts.library()[:4]), model_writer=model, vocab_size=400, model_type="unigram", pad_id=5,
        user_defined_symbols=["<start_of_image>"], minloglevel=2, max_sentence_length=1 << 20,
    )  # fmt: skip
    tokenizer = vocabulary.Tokenizer(model.getvalue())
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos) == (5, 1, 2)
    assert tokenizer.start_of_turn is None and tokenizer.end_of_turn is None
    assert tokenizer.end_of_image == tokenizer.start_of_image + 1


def test_a_model_with_a_dummy_prefix_and_other_markers_is_lossless_too():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts.library()[:8]), model_writer=model, vocab_size=700, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        user_defined_symbols=["<|im_start|>", "[INST]"], minloglevel=2, max_sentence_length=1 << 20,
    )  # fmt: skip
    tokenizer = vocabulary.Tokenizer(model.getvalue())
    for text in ("see <bos> here", "a\u2581b c", "say <|im_start|> or [INST] now", "[INST]"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert "<|im_start|>" not in map(tokenizer.piece, ids) and "[INST]" not in map(tokenizer.piece, ids)


def test_a_model_without_bos_makes_no_documents():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts.library()[:4]), model_writer=model, vocab_size=400, bos_id=-1, minloglevel=2,
        max_sentence_length=1 << 20,
    )  # fmt: skip
    tokenizer = vocabulary.Tokenizer(model.getvalue())
    assert tokenizer.bos is None
    with pytest.raises(ValueError, match="no <bos> or no <eos>"):
        tokenizer.document("a")


def test_a_tokenizer_is_sent_to_another_process_whole():
    tokenizer = texts.tokenizer()
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.digest == tokenizer.digest and copy.encode("a b") == tokenizer.encode("a b")


def test_a_file_or_its_directory_is_loaded(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(texts.tokenizer_model())
    assert directory.load(tmp_path).digest == vocabulary.load(tmp_path / "tokenizer.model").digest


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist; a tokenizer is a SentencePiece model file"):
        vocabulary.load(tmp_path / "none.model")
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match="tokenizer.model is not a SentencePiece model"):
        directory.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ValueError, match="tokenizer.model is not a SentencePiece model; it is empty"):
        directory.load(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda model: model[:-3],
        lambda model: model[:5000],
        lambda model: model + protobuf.field(1, protobuf.field(1, b"x\xff")),
        lambda model: model + protobuf.field(1, protobuf.field(1, b"<b>")),
        lambda model: model + protobuf.field(1, b""),
        lambda model: b"\x12\x00",
        lambda model: b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_a_damaged_model_is_named(damage, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(damage(texts.tokenizer_model()))
    with pytest.raises(ValueError, match=r"tokenizer\.model is not a SentencePiece model"):
        directory.load(tmp_path)


@pytest.mark.parametrize("extra", [b"\x43", b"\x43\x01\x02", b"\xff", b"\xfa"])
def test_what_sentencepiece_skips_at_the_end_is_read_or_refused(extra):
    """Groups and cut fields of numbers that it does not know."""
    try:
        tokenizer = vocabulary.Tokenizer(texts.tokenizer_model() + extra)
    except RuntimeError:
        return
    with pytest.raises(ValueError, match="the tokenizer is a damaged protocol buffer"):
        pieces.listed(tokenizer)


def test_a_piece_of_another_wire_type_is_none():
    tokenizer = vocabulary.Tokenizer(texts.tokenizer_model() + protobuf.field(1, 7))
    assert len(pieces.listed(tokenizer)) == tokenizer.size == texts.TOKENIZER_SIZE


def test_a_kind_that_nobody_knows_is_a_normal_piece():
    model = texts.tokenizer_model() + protobuf.field(1, protobuf.field(1, b"qqq") + protobuf.field(3, 9))
    assert pieces.listed(vocabulary.Tokenizer(model))[-1].kind == pieces.PieceKind.NORMAL


def test_two_tokenizers_are_told_apart():
    vocabulary.check_same("a" * 64, "a" * 64, got_from="x", expected_from="y")
    with pytest.raises(ValueError, match="the data was made with tokenizer aaaaaaaaaaaa, but the checkpoint with bbbb"):
        vocabulary.check_same("a" * 64, "b" * 64, got_from="the data", expected_from="the checkpoint")
