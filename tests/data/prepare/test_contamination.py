"""Overlap with evaluation sets: found exactly, and cut out."""

import pytest

from gemma3_jax.data.prepare import contamination, words

QUESTION = "A train leaves the station at noon and travels sixty miles in one hour; how far does it get by three?"
SHORT = "Which planet is known as the red one?"


@pytest.fixture
def index():
    return contamination.Index([("sums:1", QUESTION), ("quiz:7", SHORT), ("quiz:8", "Too short to tell")])


def test_an_item_is_found_whatever_its_case_and_punctuation(index):
    text = f"Some words before. {QUESTION.upper().replace(';', ' --')} And some after."
    [overlap] = index.find(text)
    assert (overlap.item, overlap.num_words) == ("sums:1", 21)


def test_a_part_of_thirteen_words_is_enough_and_of_twelve_is_not(index):
    words = QUESTION.split()
    assert index.find("xx " + " ".join(words[2:15]) + " xx")[0].num_words == 13
    assert index.find("xx " + " ".join(words[2:14]) + " xx") == []


def test_short_items_are_found_by_eight_words_and_shorter_ones_not_at_all(index):
    assert [found.item for found in index.find(f"Quiz: {SHORT} Mars.")] == ["quiz:7"]
    assert index.find("Too short to tell") == []
    assert (index.num_items, index.num_too_short) == (3, 1)


def test_text_of_the_same_words_in_another_order_is_not_an_overlap(index):
    assert index.find(" ".join(reversed(QUESTION.split()))) == []


def test_words_are_compared_after_nfkc_and_without_spaces_in_chinese():
    index = contamination.Index([("zh", "\u4e00\u4e01\u4e03\u4e07\u4e08\u4e09\u4e0a\u4e0b"), ("w", "\uff21 " * 8)])
    assert index.find("x \u4e00\u4e01\u4e03\u4e07\u4e08\u4e09\u4e0a\u4e0b\u3002")[0].item == "zh"
    assert index.find("a " * 8)[0].item == "w"


def test_excision_takes_the_overlap_and_a_margin(index):
    text = "a" * 300 + f" {QUESTION} " + "b" * 300
    assert contamination.excise(text, index.find(text), margin=100) == "a" * 201 + "\n" + "b" * 202
    assert contamination.excise(QUESTION, index.find(QUESTION), margin=10) == ""


def test_excision_of_two_overlaps_keeps_what_is_between(index):
    text = f"{QUESTION} {'between ' * 20} {SHORT} end"
    left = contamination.excise(text, index.find(text), margin=0)
    assert left.count("between") == 20 and "train" not in left and "planet" not in left and left.endswith("end")


def test_finds_that_touch_are_one(index):
    [overlap] = index.find(f"Quiz: {SHORT} {QUESTION}")
    assert (overlap.num_words, overlap.item) == (8 + 21, "quiz:7")


def test_accents_and_scripts_are_one_way_or_the_other_the_same_words():
    items = [
        "one two three four five six seven ne\u0301e",
        "\u0939\u093f\u0928\u094d\u0926\u0940 " * 8,
        "\u0e44\u0e17\u0e22" * 4,
    ]
    index = contamination.Index([(str(number), item) for number, item in enumerate(items)])
    text = "X one two three four five six seven n\u00e9e Y"
    assert [found.item for found in index.find(text)] == ["0"]
    assert contamination.excise(text, index.find(text), margin=0) == "X \n Y"
    assert len(words.words(items[1])) == 8 and len(words.words(items[2])) == 12
    assert words.words("\ud55c\uad6d\uc5b4 \ub9d0") == ["\ud55c\uad6d\uc5b4", "\ub9d0"]
