"""UniMax's invariants, and shares between buckets."""

import numpy as np
import pytest

from gemma3_jax.data import mixture, settings

CHARACTERS = {"en": 10_000, "de": 3_000, "fr": 900, "is": 50, "mi": 7}


@pytest.mark.parametrize("max_epochs", [1.0, 5.0, 10.0])
@pytest.mark.parametrize("budget", [10.0, 500.0, 4_000.0, 13_957.0, 1e6])
def test_unimax_keeps_its_invariants(budget, max_epochs):
    drawn = mixture.unimax(CHARACTERS, budget, max_epochs)
    assert list(drawn) == list(CHARACTERS)
    assert all(drawn[name] <= max_epochs * count + 1e-9 for name, count in CHARACTERS.items())
    uncapped = [drawn[name] for name, count in CHARACTERS.items() if drawn[name] < max_epochs * count - 1e-9]
    assert np.ptp(uncapped or [0]) < 1e-6
    assert sum(drawn.values()) == pytest.approx(min(budget, max_epochs * sum(CHARACTERS.values())))


def test_unimax_by_hand():
    assert mixture.unimax({"a": 10, "b": 100, "c": 1_000}, 300.0, 2.0) == {"a": 20, "b": 140, "c": 140}


def test_a_smaller_budget_is_more_even():
    shares = [mixture.unimax(CHARACTERS, budget, 1.0)["en"] / budget for budget in (100.0, 1_000.0, 10_000.0)]
    assert shares == sorted(shares) and shares[0] < shares[-1]


def test_an_empty_language_is_refused():
    with pytest.raises(ValueError, match="language is has no characters"):
        mixture.unimax({"en": 5, "is": 0}, 10.0, 1.0)


PARTS = {"text/en": 10_000, "text/is": 100, "code/py": 5_000, "parallel/en-is": 50}
ROWS = {"text/en": 200, "text/is": 10, "code/py": 80, "parallel/en-is": 4}


def test_without_buckets_every_row_is_as_likely():
    shares = mixture.weights(PARTS, ROWS, {})
    assert shares == pytest.approx({part: count / 294 for part, count in ROWS.items()})


def test_buckets_have_their_weights_and_parallel_text_is_one():
    buckets = {
        "text": settings.Bucket(weight=6.0, budget_characters=400, max_epochs=3.0),
        "code": settings.Bucket(weight=3.0),
        "parallel": settings.Bucket(weight=1.0),
    }
    shares = mixture.weights(PARTS, ROWS, buckets)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["text/en"] + shares["text/is"] == pytest.approx(0.6)
    assert (shares["code/py"], shares["parallel/en-is"]) == pytest.approx((0.3, 0.1))
    # UniMax gives both 200 characters: 2 epochs of Icelandic's rows, 1/50 of English's.
    assert shares["text/is"] / shares["text/en"] == pytest.approx((10 * 2) / (200 / 50))


def test_a_bucket_may_name_some_of_its_languages():
    shares = mixture.weights(PARTS, ROWS, {"text": settings.Bucket(languages=("is",))})
    assert shares == {"text/is": 1.0}


@pytest.mark.parametrize(
    ("buckets", "problem"),
    [
        ({"web": settings.Bucket()}, "names bucket web; the data has: code, parallel, text"),
        ({"text": settings.Bucket(languages=("xx",))}, "names xx; this bucket of the data has: en, is"),
    ],
)
def test_unknown_buckets_and_languages_are_refused(buckets, problem):
    with pytest.raises(ValueError, match=problem):
        mixture.weights(PARTS, ROWS, buckets)


def test_a_part_without_rows_is_refused():
    with pytest.raises(ValueError, match="text/is has no sequences; leave it out"):
        mixture.weights(PARTS, ROWS | {"text/is": 0}, {"text": settings.Bucket()})
