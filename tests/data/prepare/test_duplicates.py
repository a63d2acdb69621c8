"""Near-duplicates by MinHash against the Jaccard similarity of all pairs."""

import random

import numpy as np
import pytest

from gemma3_jax.data.prepare import duplicates, words


def grams(text):
    tokens = words.words(text)
    return {tuple(tokens[start : start + 5]) for start in range(len(tokens) - 4)}


def jaccard(one, other):
    return len(grams(one) & grams(other)) / len(grams(one) | grams(other))


def edited(text, draw, num_edits):
    tokens = text.split()
    for _ in range(num_edits):
        tokens[draw.randrange(len(tokens))] = f"w{draw.randrange(10**6)}"
    return " ".join(tokens)


@pytest.fixture(scope="module")
def corpus():
    """40 texts of 400 words, each with copies that have 0 to 60 of their words changed."""
    draw = random.Random(0)
    documents = []
    for _ in range(40):
        text = " ".join(f"w{draw.randrange(10**6)}" for _ in range(400))
        documents += [text, *(edited(text, draw, draw.choice([0, 1, 3, 12, 30, 60])) for _ in range(4))]
    draw.shuffle(documents)
    return documents


def test_no_two_that_stay_are_alike_and_nothing_goes_that_is_not_like_another(corpus):
    signatures = np.stack([duplicates.signature(text, seed=0) for text in corpus])
    earlier_of = duplicates.find(signatures, 0.8)
    sets = [grams(text) for text in corpus]
    jaccard_of = lambda one, other: len(sets[one] & sets[other]) / len(sets[one] | sets[other])  # noqa: E731
    staying = [number for number in range(len(corpus)) if number not in earlier_of]
    # Three standard errors of the estimate away from 0.8, on both sides.
    assert max(jaccard_of(one, other) for one in staying for other in staying if one < other) < 0.9
    assert min(jaccard_of(later, earlier) for later, earlier in earlier_of.items()) > 0.7
    assert all(earlier < later for later, earlier in earlier_of.items()) and 60 < len(earlier_of) < 140


def test_many_alike_take_no_longer_than_as_many_that_are_not():
    """Against the first of them alone: all pairs of 20,000 would be 200 million."""
    signatures = np.zeros((20_000, 128), np.uint64)
    assert len(duplicates.within_band(signatures, 0.8)) == 19_999


def test_the_estimate_is_near_the_similarity(corpus):
    signatures = np.stack([duplicates.signature(text, seed=0) for text in corpus[:60]])
    errors = [
        (signatures[i] == signatures[j]).mean() - jaccard(corpus[i], corpus[j]) for i in range(60) for j in range(i)
    ]
    assert abs(np.mean(errors)) < 0.005 and np.max(np.abs(errors)) < 0.2


def test_the_earliest_that_resembles_is_named():
    signatures = np.zeros((3, 128), np.uint64)
    signatures[1] = np.arange(128)
    assert duplicates.find(signatures, 0.8) == {2: 0}
    assert duplicates.find(np.zeros((3, 128), np.uint64), 0.8) == {1: 0, 2: 0}


def test_the_earliest_is_named_whichever_band_finds_it_first():
    signatures = np.zeros((3, 128), np.uint64)
    signatures[0, 120:125] = 1  # the last band: there the third resembles the second alone
    signatures[1, :5] = 1  # the first band: there it resembles the first alone
    assert duplicates.find(signatures, 0.8) == {1: 0, 2: 0}


def test_the_order_of_words_counts():
    tokens = [f"w{number}" for number in range(300)]
    turned = [word for start in range(0, 300, 5) for word in reversed(tokens[start : start + 5])]
    one, other = (duplicates.signature(" ".join(words_), 0) for words_ in (tokens, turned))
    assert (one == other).mean() < 0.1


def test_the_bound_is_met_exactly():
    signatures = np.zeros((2, 128), np.uint64)
    signatures[1, 64:] = 1
    assert duplicates.within_band(signatures, 0.5) == [(1, 0)]
    assert duplicates.within_band(signatures, 0.51) == []


def test_case_and_punctuation_do_not_hide_a_copy():
    text = "It was the best of times, it was the worst of times."
    same = duplicates.signature(text, 0) == duplicates.signature(text.upper().replace(",", " --"), 0)
    assert same.all()


def test_short_earlier_ofare_one_gram_and_earlier_ofwithout_words_have_no_signature():
    assert (duplicates.signature("two words", 0) == duplicates.signature("Two words!", 0)).all()
    assert duplicates.signature("... !", 0) is None


def test_bands_cut_a_signature():
    signature = np.arange(128, dtype=np.uint64)
    bands = dict(duplicates.bands(signature))
    assert len(bands) == 25 and np.frombuffer(bands[3], np.uint64).tolist() == [15, 16, 17, 18, 19]


def test_long_texts_are_hashed_in_chunks_of_bounded_memory(monkeypatch):
    text = " ".join(f"w{number}" for number in range(3_000))
    whole = duplicates.signature(text, 0)
    monkeypatch.setattr(duplicates, "_CHUNK", 100)  # the text is short
    assert (duplicates.signature(text, 0) == whole).all()
