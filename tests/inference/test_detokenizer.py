"""Text that comes in pieces is the text that comes at once."""

import random

from gemma3_jax.inference import detokenizer
from tests import texts

TEXT = "def größe(x): return '😀' + x\n\n\nclass Ä:\n    STOP here"


def pieces(stop=(), seed=0) -> tuple[list[str], detokenizer.Detokenizer]:
    ids, rng = texts.tokenizer().encode(TEXT), random.Random(seed)
    decoded, shown = detokenizer.Detokenizer(texts.tokenizer(), stop), []
    while ids and not decoded.is_stopped:
        size = rng.randint(1, 4)
        shown.append(decoded.add(ids[:size]))
        ids = ids[size:]
    return [*shown, decoded.flush()], decoded


def test_pieces_add_up_and_no_half_character_is_shown():
    for seed in range(5):
        shown, decoded = pieces(seed=seed)
        assert "".join(shown) == decoded.text == TEXT
        assert not any(detokenizer.REPLACEMENT in piece for piece in shown)
        assert len([piece for piece in shown if piece]) > 5


def test_a_stop_string_ends_the_text_before_itself_however_it_is_cut():
    for seed in range(5):
        shown, decoded = pieces(("\n\n\n", "STOP"), seed)
        assert "".join(shown) == decoded.text == TEXT[: TEXT.index("\n\n\n")]
        assert decoded.is_stopped


def test_what_might_have_been_a_stop_string_is_shown_in_the_end():
    shown, decoded = pieces(("here and", "STAY"))
    assert "".join(shown) == TEXT and not decoded.is_stopped


def test_bytes_that_are_no_character_are_shown_in_the_end():
    tokenizer = texts.tokenizer()
    decoded = detokenizer.Detokenizer(tokenizer)
    half = tokenizer.encode("😀")[:2]
    assert decoded.add([*tokenizer.encode("a"), *half]) == "a"
    assert decoded.flush() == detokenizer.REPLACEMENT * len(decoded.text[1:]) != ""
