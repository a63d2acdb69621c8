"""Near-duplicates by MinHash against the Jaccard similarity of all pairs."""

import random

import numpy as np
import pytest

from gemma3_jax.data import duplicates, words


def jaccard(one, other):
    grams = [
        {tuple(tokens[i : i + 5]) for i in range(len(tokens) - 4)} for tokens in (words.words(one), words.words(other))
    ]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def edited(text, draw, num_edits):
    tokens = text.split()
    for _ in range(num_edits):
        tokens[draw.randrange(len(tokens))] = f"w{draw.randrange(10**6)}"
    return " ".join(tokens)


@pytest.fixture(scope="module")
def corpus():
    """40 texts of 400 words, each with copies that have 0 to 60 of their words changed."""
    draw = random.Random(0)
    found = []
    for _ in range(40):
        text = " ".join(f"w{draw.randrange(10**6)}" for _ in range(400))
        found += [text, *(edited(text, draw, draw.choice([0, 1, 3, 12, 30, 60])) for _ in range(4))]
    draw.shuffle(found)
    return found


def test_what_is_found_is_what_all_pairs_say(corpus):
    signatures = np.stack([duplicates.signature(text, seed=0) for text in corpus])
    found = duplicates.find(signatures, 0.8)
    for later, text in enumerate(corpus):
        similar = max((jaccard(corpus[earlier], text) for earlier in range(later)), default=0.0)
        if similar > 0.9:
            assert later in found
        elif similar < 0.7:  # three standard errors of the estimate away from 0.8, on both sides
            assert later not in found
    assert 60 < len(found) < 140


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


def test_the_bound_is_met_exactly():
    signatures = np.zeros((2, 128), np.uint64)
    signatures[1, 64:] = 1
    assert duplicates.within_band(signatures, 0.5) == [(1, 0)]
    assert duplicates.within_band(signatures, 0.51) == []


def test_case_and_punctuation_do_not_hide_a_copy():
    text = "It was the best of times, it was the worst of times."
    same = duplicates.signature(text, 0) == duplicates.signature(text.upper().replace(",", " --"), 0)
    assert same.all()


def test_short_texts_are_one_gram_and_texts_without_words_have_no_signature():
    assert (duplicates.signature("two words", 0) == duplicates.signature("Two words!", 0)).all()
    assert duplicates.signature("... !", 0) is None


def test_bands_cut_a_signature():
    signature = np.arange(128, dtype=np.uint64)
    bands = dict(duplicates.bands(signature))
    assert len(bands) == 25 and np.frombuffer(bands[3], np.uint64).tolist() == [15, 16, 17, 18, 19]


def test_long_texts_are_hashed_in_chunks_of_bounded_memory(monkeypatch):
    text = " ".join(f"w{number}" for number in range(3_000))
    whole = duplicates.signature(text, 0)
    monkeypatch.setattr(duplicates, "_CHUNK", 100)
    assert (duplicates.signature(text, 0) == whole).all()
