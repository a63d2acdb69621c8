"""Numbers as people read them."""

import math

import pytest

from gemma3_jax.report import quantities


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (quantities.count(1_234), "1,234"),
        (quantities.count(65_536), "65.5K"),
        (quantities.count(1.5e12), "1.5T"),
        (quantities.scaled(999_600), "1M"),
        (quantities.scaled(0), "0"),
        (quantities.count(math.nan), "–"),
        (quantities.tokens(512), "512"),
        (quantities.tokens(131_072), "128K"),
        (quantities.number(4.68156), "4.682"),
        (quantities.number(0.0), "0"),
        (quantities.number(True), "True"),
        (quantities.number(math.inf), "–"),
        (quantities.number(None), "–"),
        (quantities.share(0.4103), "41.0 %"),
        (quantities.size(196_608), "197 kB"),
        (quantities.size(6_979e6), "6.98 GB"),
        (quantities.duration(8.24), "8.2 s"),
        (quantities.duration(250), "4 min 10 s"),
        (quantities.duration(3_600 * 50), "2 d 2 h"),
        (quantities.duration(3_600 * 3 + 300), "3 h 05 min"),
    ],
)
def test_a_number_is_said(said, expected):
    assert said == expected
