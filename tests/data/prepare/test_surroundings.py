"""What merely looks like personal data, on a page and in numbers; and what is personal wherever it stands."""

import datetime
import hashlib
import ipaddress
import pathlib
import random
import uuid

import phonenumbers
import pytest
from stdnum import luhn

from gemma3_jax.data.prepare import personal_data
from tests import texts

PAGE = (pathlib.Path(__file__).parent / "harmless.txt").read_text()
FORMS_OF_TIME = [
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d %H",
    "%Y/%m/%d %H:%M:%S",
    "%Y.%m.%d %H:%M:%S.123",
    "%Y-%m-%dT%H:%M:%S+00:00",
    "%Y-%m-%d-%H-%M-%S",
    "%Y%m%d %H%M%S",
    "%d.%m.%Y %H:%M:%S",
    "%d-%m-%Y %H.%M.%S",
    "%m-%d-%Y %H:%M",
    "%d/%b/%Y:%H:%M:%S +0000",
    "%H:%M:%S %Y-%m-%d",
    "+%Y-%m-%d %H:%M",
    "%Y-%m-%d 1589",
]


def finds(text: str, region: str = "US") -> list[tuple[str, str]]:
    return [(kind, text[start:end]) for start, end, kind in personal_data.find(text, phone_region=region)]


@pytest.mark.parametrize("line", [line for line in PAGE.splitlines() if line and not line.startswith("# ")])
def test_a_line_of_code_logs_or_prose_holds_nothing_personal(line):
    assert finds(line) == []


@pytest.mark.parametrize(("region", "most"), [("US", 0), ("GB", 1), ("DE", 8), ("FR", 3)])
def test_the_page_holds_little_that_is_a_number_somewhere_else(region, most):
    """Outside of +1 the digits of a number are grouped as people like."""
    assert len(finds(PAGE, region)) <= most


def digits(draw: random.Random, count: int) -> str:
    return "".join(draw.choice("0123456789") for _ in range(count))


def book(draw: random.Random) -> str:
    first = digits(draw, 9)
    check = -sum((10 - place) * int(digit) for place, digit in enumerate(first)) % 11
    return f"{first[0]}-{first[1:4]}-{first[4:]}-{'X' if check == 10 else check}"


# A kind of text -> how to draw one, and how many of 300 may be taken for something personal.
KINDS = {
    "uuid": (lambda draw: str(uuid.UUID(int=draw.getrandbits(128), version=4)), 0),
    "hash": (lambda draw: hashlib.sha256(digits(draw, 9).encode()).hexdigest(), 0),
    "user agent": (
        lambda d: f"Mozilla/5.0 (X11) Chrome/{d.randrange(40, 130)}.0.{d.randrange(3)}.{d.randrange(200)}",
        0,
    ),
    "version": (lambda d: f"version {d.randrange(30)}.{d.randrange(60)}.{d.randrange(60)}.{d.randrange(250)}.", 0),
    "pin": (lambda d: f"package=={d.randrange(30)}.{d.randrange(60)}.{d.randrange(60)}.{d.randrange(250)}", 0),
    "tag": (lambda d: f"tag {d.randrange(20)}.{d.randrange(20)}.{d.randrange(20)}.{d.randrange(100)} is out", 0),
    "price": (lambda d: f"{d.randrange(1, 99)} {digits(d, 3)} {digits(d, 3)} {digits(d, 3)} EUR", 0),
    "decimal": (lambda d: f"{d.uniform(-180, 180):.7f} {d.uniform(0, 10):.9f}", 0),
    "book": (book, 0),
    "integers": (lambda d: " ".join(str(d.randrange(10 ** d.randrange(1, 6))) for _ in range(12)), 0),
    "pairs": (lambda d: " ".join(digits(d, 2) for _ in range(8)), 0),
    "table": (lambda d: "  ".join(digits(d, 3) for _ in range(6)), 0),
    "hunk": (lambda d: f"@@ -{d.randrange(2000)},{d.randrange(99)} +{d.randrange(2000)},{d.randrange(99)} @@", 0),
    "hardware": (lambda d: ":".join(f"{d.randrange(256):02x}" for _ in range(8)), 0),
    "pages": (lambda d: f"pp. {d.randrange(999)}-{d.randrange(999)} ({d.randrange(1950, 2025)})", 0),
    "years": (lambda d: f"{d.randrange(1900, 2025)}-{d.randrange(1900, 2025)} {d.randrange(99)}", 0),
    "part": (
        lambda d: f"P/N {digits(d, 3)}-{digits(d, 5)}-{digits(d, 2)}, {digits(d, 4)}-{digits(d, 2)}-{digits(d, 4)}",
        0,
    ),
    "paper": (lambda d: f"arXiv:{digits(d, 4)}.{digits(d, 5)} doi:10.{digits(d, 4)}/{digits(d, 7)}.{digits(d, 7)}", 0),
    "number of 16 digits": (lambda draw: f'"id": {digits(draw, 16)},', 12),  # a tenth pass Luhn's check
    **{
        form: (
            lambda draw, form=form: (
                datetime.datetime(1990, 1, 1) + datetime.timedelta(seconds=draw.randrange(1_500_000_000))
            ).strftime(form),
            0,
        )
        for form in FORMS_OF_TIME
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_few_of_300_are_taken_for_something_personal(kind):
    draw_one, most = KINDS[kind]
    draw = random.Random(0)
    wrong = [text for text in (draw_one(draw) for _ in range(300)) if finds(text)]
    assert len(wrong) <= most, wrong[:3]


AROUND_A_NUMBER = [
    "call {} now",
    "({})",
    '"phone": "{}"',
    "tel:{}",
    "Fax-{}",
    "x\n{}\ny",
    "2025-01-15 10:30 {}",
    "{}.",
    "line2:{}",
]
FORMS_OF_NUMBERS = [
    "{}-{}-{}",
    "({}) {}-{}",
    "({}){}-{}",
    "{}.{}.{}",
    "{} {} {}",
    "{}-{}{}",
    "1-{}-{}-{}",
    "1 ({}) {}-{}",
    "+1 {} {} {}",
    "+1-{}-{}-{}",
    "+1{}{}{}",
]


@pytest.mark.parametrize("form", FORMS_OF_NUMBERS)
def test_a_number_is_found_however_it_is_written(form):
    number = form.format("415", "555", "2671")
    for around in AROUND_A_NUMBER:
        text = around.format(number)
        assert [kind for kind, _ in finds(text)] == ["phone"], text


@pytest.mark.parametrize("region", ["AU", "BR", "DE", "ES", "FR", "GB", "GR", "IN", "IT", "JP", "MX", "NL", "PL", "SE"])
def test_numbers_of_other_regions_are_found_as_they_are_written_there(region):
    kinds = (phonenumbers.PhoneNumberType.FIXED_LINE, phonenumbers.PhoneNumberType.MOBILE)
    forms = (phonenumbers.PhoneNumberFormat.NATIONAL, phonenumbers.PhoneNumberFormat.INTERNATIONAL)
    numbers = [
        phonenumbers.format_number(phonenumbers.example_number_for_type(region, kind), form)
        for kind in kinds
        for form in forms
    ]
    for number in numbers:
        if any(mark in number for mark in "+() -./"):  # a bare run of digits is more often a count
            for around in AROUND_A_NUMBER:
                assert [kind for kind, _ in finds(around.format(number), region)] == ["phone"], around.format(number)


AROUND_AN_ADDRESS = [
    "from {} port 22",
    "http://{}/x",
    "https://ipinfo.io/{}",
    "{} - - [15/Jan/2025:10:30:00 +0000]",
    "root@{}",
    "X-Forwarded-For: {}, 10.0.0.1",
    "{}:443",
    "Received: from x ([{}])",
    "udp://{}",
    "{}/32",
]


def test_addresses_are_found_wherever_they_stand():
    draw = random.Random(0)
    addresses = [ipaddress.ip_address(draw.getrandbits(32)) for _ in range(40)]
    hosts = [address for address in addresses if address.is_global and not address.is_multicast]
    for address in [*hosts, "2a00:1450:4001:82a::200e", "18.27.40.0"]:
        for around in AROUND_AN_ADDRESS:
            text = around.format(address) if ":" not in str(address) else f"from {address} on"
            assert ("ip", str(address)) in finds(text), text


def test_mail_cards_and_social_security_numbers_are_found_wherever_they_stand():
    for address in ("jane.doe@example.co.uk", "gitte@web.de", "bob99@foo.photography", "a@b.io"):
        for around in ("mailto:{}", "<{}>", "{}:hunter2", "{}.", "email={}", "{};x", "{}/", "{} (Jane)"):
            assert ("email", address) in finds(around.format(address)), around.format(address)
    draw = random.Random(0)
    for first, length in (("4", 16), ("55", 16), ("2221", 16), ("37", 15), ("6011", 16), ("36", 14), ("3530", 16)):
        number = first + digits(draw, length - 1 - len(first))
        number += luhn.calc_check_digit(number)
        for around in ("card {} exp", "{},12/27", "{}:12/27", "cc={}", '"{}"', "Card-{}"):
            assert ("card", number) in finds(around.format(number)), around.format(number)
    for around in ("SSN {}", "{},x", "ssn={}", "ssn:{}", "SSN-{}"):
        assert ("ssn", "536-22-1234") in finds(around.format("536-22-1234")), around


# Kinds of personal data whose surroundings look like those of something else.
FOUND = {
    "mail at a domain of digits": ("email", ["wang@163.com", "a@126.com", "b@139.com", "x@9x.com", "p@247.ai"]),
    "mail of a person with a login's name": (
        "email",
        ["git@gmail.com", "write to svn@acme.org, please", "hg@web.de.", "git@acme.com: hello"],
    ),
    "mail of a person with a keyword's name": (
        "email",
        ["self@gmail.com", "this@acme.com", "super@acme.io", "break@a.info"],
    ),
    "mail before a bracket": (
        "email",
        ["john@example.info(home)", "a@b.name(work)", "jane@acme.email(2)", "a@b.com(x)"],
    ),
    "mail in a country without telephones of its own": ("email", ["u@station.aq", "u@land.gs", "u@shop.tf", "u@x.pn"]),
    "card with an expiry date": (
        "card",
        ["4111 1111 1111 1111-12/27", "4111111111111111-12/2027", "4111111111111111-1227", "4111111111111111-12-27"],
    ),
    "card with a code or an amount": (
        "card",
        ["4111111111111111-123", "4111-1111-1111-1111-123", "4111111111111111.50", "4111111111111111_1"],
    ),
    "card with a count": (
        "card",
        ["card-1-4111111111111111", "ref2-4111111111111111", "card-12-4111111111111111", "row17-4111 1111 1111 1111"],
    ),
    "social security number with a count": ("ssn", ["emp1-536-22-1234", "emp-1-536-22-1234", "536-22-1234.5"]),
    "address after a slash or a hyphen": (
        "ip",
        ["Server/52.14.22.111", "TCP/52.14.22.111", "Remote-52.14.22.111", "host-52.14.22.111", "peer-3.14.22.111"],
    ),
    "address after a word": (
        "ip",
        [
            "section 52.14.22.111",
            "upgrade: 52.14.22.111",
            "update 203.14.22.111",
            "ip.addr==52.14.22.111",
            "src!=3.14.22.111",
        ],
    ),
    "number that holds a date": ("phone", ["+49 30 2010-10-12", "+46 8 1999 10 10", "+49 30 2010.10.12"]),
    "number after a word": (
        "phone",
        [
            "build: +44 20 7946 0958",
            "version: +44 20 7946 0958",
            "for the build: 650-253-0000",
            "Serial number 650-253-0000",
            "version 2, 650-253-0000",
        ],
    ),
    "number with a count or cents": (
        "phone",
        [
            "ref2-650-253-0000",
            "650-253-0000.50",
            "row-1-+13032366319",
        ],
    ),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_is_personal_is_found_where_it_looks_like_something_else(what):
    kind, lines = FOUND[what]
    assert [line for line in lines if [found for found, _ in finds(line)] != [kind]] == []


@pytest.mark.parametrize(
    "line",
    [
        "git@github.com:",
        "ssh -T git@github.com",
        "git+ssh://git@example.com",
        "this@Activity.id, this@Outer.name, return@forEach.info",
        "4111111111111111-4111-1111, 9f86d081-4111111111111111, 4111-1111-1111-1111-5678, 4111111111111111-a1b2",
        "4111111111111111.123",
        "110-536-90-4399",
        "YaBrowser/24.1.0.80 Edg/120.0.2.91 curl/29.4.6.7 libx-22.33.44.55",
        "release 71.80.90.100, section 12.80.31.7, package==112.34.56.78",
        "+2010-10-12 10:30, +1999 10 10 1234",
    ],
)
def test_what_is_not_personal_is_still_told_apart(line):
    assert finds(line) == []


def card(draw: random.Random) -> str:
    first = draw.choice(["4", "51", "2221", "6011", "3530"])
    number = first + digits(draw, 15 - len(first))
    number += luhn.calc_check_digit(number)
    separator = draw.choice(["", " ", "-"])
    return separator.join(number[place : place + 4] for place in range(0, 16, 4))


def mail(draw: random.Random) -> str:
    local = draw.choice(["jane", "j.doe", "bob99", "X", "git", "anna-maria+x", "this", "info", "42"])
    domain = draw.choice(["163", "gmail", "acme", "uni-x", "mail.example", "9x", "4real"])
    return f"{local}@{domain}.{draw.choice(['com', 'org', 'de', 'co.uk', 'info', 'io', 'aq', 'photography'])}"


def host(draw: random.Random) -> str:
    while True:
        address = ipaddress.ip_address(draw.getrandbits(32))
        if address.is_global and not address.is_multicast:
            return str(address)


FRAMES = [
    "{}",
    "from {} on",
    "Jane,{},2025-01-15",
    '{{"id": 7, "value": "{}"}}',
    "ref2-{}",
    "field={};",
    "[{}](x)",
    "2025-01-15 10:30:00 INFO {} 200",
    "update: {}, thanks.",
    "build {}-12/27",
]


@pytest.mark.parametrize(("kind", "draw_one"), [("card", card), ("email", mail), ("ip", host)])
def test_most_of_300_are_found_in_every_surrounding(kind, draw_one):
    draw = random.Random(0)
    true = [draw_one(draw) for _ in range(300)]
    for frame in FRAMES:
        missed = [one for one in true if kind not in [found for found, _ in finds(frame.format(one))]]
        assert len(missed) <= 15, (frame, missed[:5])


def test_of_real_code_and_documentation_only_mail_addresses_are_taken():
    found = [find for text in texts.library()[:16] for find in finds(text)]
    assert {kind for kind, _ in found} <= {"email"}
