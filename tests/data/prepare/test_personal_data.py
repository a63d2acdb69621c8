"""What is personal is found, what merely looks like it is not."""

import pytest

from gemma3_jax.data.prepare import personal_data

PRIVATE_KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("mail jane.doe+x@example.co.uk!", "mail [EMAIL]!"),
        ("(a@b.org)", "([EMAIL])"),
        ("4111 1111 1111 1111 12/27 and 4111 1111 1111 1111 123 now", "[CARD] 12/27 and [CARD] 123 now"),
        ("Jane,4111111111111111,12/27", "Jane,[CARD],12/27"),
        ("Order1234 4111 1111 1111 1111", "Order1234 [CARD]"),
        ("refAB12 GB82 WEST 1234 5698 7654 32", "refAB12 [IBAN]"),
        ("room1 650-253-0000", "room1 [PHONE]"),
        ("amex 3782 822463 10005.", "amex [CARD]."),
        ("SSN 536-90-4399 555 x", "SSN [SSN] 555 x"),
        ("x,jane@example.org,(212) 736-5000", "x,[EMAIL],[PHONE]"),
        ("BE68 5390 0754 7034 BIC and ES91 2100 0418 4502 0005 1332 BANK", "[IBAN] BIC and [IBAN] BANK"),
        (
            "an unfinished -----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqh\nand prose",
            "an unfinished [SECRET]\nand prose",
        ),
        ("call +1 415-555-2671, (212) 736-5000", "call [PHONE], [PHONE]"),
        ("London: +44 20 7946 0958.", "London: [PHONE]."),
        ("card 4111 1111 1111 1111, 5500-0000-0000-0004", "card [CARD], [CARD]"),
        ("IBAN DE89 3704 0044 0532 0130 00 or GB82WEST12345698765432", "IBAN [IBAN] or [IBAN]"),
        ("my number is 536-22-1234", "my number is [SSN]"),
        ("from 8.8.8.8 to 2001:4860:4860::8888", "from [IP] to [IP]"),
        ("AKIAIOSFODNN7EXAMPLE", "[SECRET]"),
        ("token ghp_" + "a1B2" * 9, "token [SECRET]"),
        (f"before {PRIVATE_KEY} after", "before [SECRET] after"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "[SECRET]"),
    ],
)
def test_personal_data_is_masked(text, masked):
    assert personal_data.mask(text, personal_data.find(text)) == masked


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112 fails Luhn's check",
        "id_4111 1111 1111 1111, x4111111111111111 and 0.4111111111111111 are parts of something else",
        "DE89 3704 0044 0532 0130 01 has a wrong check sum",
        "000-12-3456 was never issued",
        "192.168.0.1, 127.0.0.1 and 10.0.0.1 belong to nobody; version 1.2.3.4.5; 999.1.1.1",
        "std::a::b::c x[::2] a::b 12:30:45",
        "on 2021-11-20 12:30, 1234567890 and 3.14159265358979 and 20211120",
        "@decorator def f(x) -> a @ b",
        "d41d8cd98f00b204e9800998ecf8427e a_very_long_name_of_a_function_in_a_module",
        "",
    ],
)
def test_what_only_looks_personal_is_left_alone(text):
    assert personal_data.find(text) == []


def test_kinds_can_be_chosen():
    text = "a@b.org 8.8.8.8"
    assert [kind for *_, kind in personal_data.find(text, ("ip",))] == ["ip"]


def test_local_numbers_are_those_of_the_region():
    text = "ring 020 7946 0958"
    assert personal_data.find(text, phone_region="US") == []
    assert personal_data.mask(text, personal_data.find(text, phone_region="GB")) == "ring [PHONE]"


def test_finds_do_not_overlap_and_are_in_order():
    text = "call +1 415-555-2671 or a@b.org or 4111 1111 1111 1111, 8.8.8.8"
    found = personal_data.find(text)
    assert found == sorted(found) and len(found) == 4
    assert all(first[1] <= second[0] for first, second in zip(found, found[1:], strict=False))


@pytest.mark.parametrize("text", ["1." * 40_000, "a@b.org " * 8_000, "1:" * 40_000, "9" * 60_000, "-" * 60_000])
def test_no_text_takes_forever(text):
    """Time grows with the length: these took minutes or would have, with a pattern that looks ahead again and again."""
    personal_data.find(text)
