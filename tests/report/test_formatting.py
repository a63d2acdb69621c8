"""Numbers as text for people."""

import math

import pytest

from gemma3_jax.report import formatting


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (formatting.count(1_234), "1,234"),
        (formatting.count(65_536), "65.5K"),
        (formatting.count(1.5e12), "1.5T"),
        (formatting.scaled(999_600), "1M"),
        (formatting.scaled(0), "0"),
        (formatting.count(math.nan), "–"),
        (formatting.tokens(512), "512"),
        (formatting.tokens(131_072), "128K"),
        (formatting.number(4.68156), "4.682"),
        (formatting.number(0.0), "0"),
        (formatting.number(True), "True"),
        (formatting.number(math.inf), "–"),
        (formatting.number(None), "–"),
        (formatting.percent(0.4103), "41.0 %"),
        (formatting.size(196_608), "197 kB"),
        (formatting.size(6_979e6), "6.98 GB"),
        (formatting.duration(8.24), "8.2 s"),
        (formatting.duration(250), "4 min 10 s"),
        (formatting.duration(3_600 * 50), "2 d 2 h"),
        (formatting.duration(3_600 * 3 + 300), "3 h 05 min"),
    ],
)
def test_numbers_are_formatted(text, expected):
    assert text == expected
