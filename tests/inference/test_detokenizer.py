"""Text that comes in pieces is the text that comes at once."""

import random

import pytest

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


def cut(text: str, stop) -> str:
    """The text before the stop string that is complete first, found one character at a time."""
    for end in range(len(text) + 1):
        if ended := [string for string in stop if text[:end].endswith(string)]:
            return text[: end - max(map(len, ended))]
    return text


def stream(ids, stop, rng) -> tuple[str, detokenizer.Detokenizer]:
    decoded, shown = detokenizer.Detokenizer(texts.tokenizer(), stop), []
    while ids and not decoded.is_stopped:
        size = rng.choice((1, 1, 1, 2, 5))
        shown.append(decoded.add(ids[:size]))
        ids = ids[size:]
    shown.append(decoded.flush())
    return "".join(shown), decoded


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("say 東京駅", ("京駅",), "say 東"),  # begins inside what one byte piece after the other spells
        ("say 東京塔", ("京駅",), "say 東京塔"),
        ("a😀😀b", ("😀b",), "a😀"),
        ("x京東京東y", ("京東y", "東京"), "x京"),
        ("abcd", ("abcd", "c"), "ab"),  # c is complete first
        ("abcd", ("bc", "c"), "a"),  # both are complete at once
        ("a京b", ("\ufffd",), "a京b"),  # 京 is that character until it has its third byte
        ("a\ufffdb", ("\ufffd",), "a"),
        ("ab\ufffd", ("b\ufffd",), "a"),  # what ends a text is in no doubt at its end
    ],
)
def test_a_stop_string_may_begin_inside_a_character_of_several_pieces(text, stop, expected):
    for seed in range(5):
        shown, decoded = stream(texts.tokenizer().encode(text), stop, random.Random(seed))
        assert shown == decoded.text == expected == cut(text, stop)
        assert decoded.is_stopped == (expected != text)


def test_what_is_shown_is_what_is_kept_for_any_stop_strings_over_any_pieces():
    tokenizer = texts.tokenizer()
    # Pieces of text, and bytes that make half, whole and no characters.
    sources = [tokenizer.encode(text) for text in ("東京駅京", "😀é\ufffd ", "ab ab", "京\n\n京")]
    bad_bytes = tokenizer.encode("駅")[-2:] + tokenizer.encode("😀")[:-1]
    for seed in range(1_000):
        rng = random.Random(seed)
        ids = [rng.choice(bad_bytes) if rng.random() < 0.1 else i for _ in range(6) for i in rng.choice(sources)]
        text = tokenizer.decode(ids)
        stop = []
        for _ in range(rng.randint(0, 3)):
            start = rng.randrange(len(text))
            string = text[start : start + rng.randint(1, 4)]
            stop.append(string if rng.random() < 0.7 else string + rng.choice("京a\ufffd😀"))
        shown, decoded = stream(ids, tuple(stop), rng)
        assert shown == decoded.text == cut(text, stop), (seed, stop)
