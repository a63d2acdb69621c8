"""Detection and masking of personal data in a text.

Patterns find candidates; libraries that implement the standards decide: phonenumbers (numbering plans), python-stdnum
(IBAN, card and social security checks), ipaddress, detect-secrets (formats of access keys). A timestamp passes for a
telephone number by itself, so a candidate that they take is then looked at in its surroundings.
"""

import bisect
import functools
import importlib
import ipaddress
import re
import string
from collections.abc import Iterator, Sequence

from gemma3_jax.data.prepare import surroundings

KINDS = ("email", "secret", "iban", "card", "ssn", "ip", "phone")

# A scan of gigabytes spends its time where there is nothing to find. So a pattern is tried only where the shape of the
# text allows it, or begins with rare characters, and never with a look-behind.
_DOMAIN = re.compile(r"@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,24}\b")
_LOCAL = re.compile(r"[\w.%+-]+\Z")
_IBAN = re.compile(r"[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(r"(?:\d{4}([ -]?)\d{4}\1\d{4}\1\d{4}|\d{4}([ -]?)\d{6}\2\d{5}|\d{13,19})(?![^\W_])")
# Lengths and first digits of the issuers (ISO/IEC 7812): a fifth of the numbers of 16 digits that pass Luhn's check.
_ISSUER = re.compile(
    r"4\d{12}(?:\d{3}(?:\d{3})?)?"  # Visa
    r"|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|3(?:0[0-5]|[689]\d)\d{11}"  # Diners Club
    r"|35(?:2[89]|[3-8]\d)\d{12}"  # JCB
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}"  # Discover
    r"|62\d{14,17}"  # UnionPay
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{9,15}"  # Maestro
)
_SSN = re.compile(r"-\d{2}-\d{4}(?![\w-])")
_PHONE = re.compile(r"\d(?:[ ().\-/]{0,2}\d){6,16}(?!\w)")
_THREE_DOTS = re.compile(r"\.\d{1,3}\.\d{1,3}\.\d{1,3}(?!\.?\w)")
_BYTE = re.compile(r"(?<![\w.])\d{1,3}\Z")
_TWO_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]*(?!\w)")
_HEX = re.compile(r"[0-9A-Fa-f]{1,4}\Z")
_KEY_CHARACTERS = string.ascii_letters + string.digits + "_+/=.-"
_KEY_SHAPE = bytes(120 if chr(code) in _KEY_CHARACTERS else 32 for code in range(256))  # x or a space
_NUMBER_SHAPE = bytes(
    100 if 48 <= code < 58 else 85 if 65 <= code < 91 else 32 for code in range(256)
)  # d, U or a space
_DIGIT = re.compile(r"\d")
_BEGIN, _END = r"-----BEGIN [A-Z ]*PRIVATE KEY-----", r"-----END [A-Z ]*PRIVATE KEY-----"
_PRIVATE_KEY = re.compile(rf"{_BEGIN}(?:[^-]{{0,16384}}{_END}|(?:\s+[A-Za-z0-9+/=]{{16,}})*)")
# Formats with a distinctive prefix. The detectors left out go by entropy or by the word before, and match prose and
# code.
_SECRETS = (
    "aws:AWSKeyDetector",
    "azure_storage_key:AzureStorageKeyDetector",
    "discord:DiscordBotTokenDetector",
    "github_token:GitHubTokenDetector",
    "gitlab_token:GitLabTokenDetector",
    "jwt:JwtTokenDetector",
    "mailchimp:MailchimpDetector",
    "openai:OpenAIDetector",
    "pypi_token:PypiTokenDetector",
    "sendgrid:SendGridDetector",
    "slack:SlackDetector",
    "square_oauth:SquareOAuthDetector",
    "stripe:StripeDetector",
)


def find(text: str, kinds: Sequence[str] = KINDS, phone_region: str = "US") -> list[tuple[int, int, str]]:
    """Returns (start, end, kind) of each find, in order and without overlap; earlier KINDS take precedence."""
    finds: list[tuple[int, int, str]] = []
    for kind in KINDS:
        if kind in kinds:
            for start, end in _FINDERS[kind](text, phone_region):
                index = bisect.bisect_left(finds, (start, end, kind))
                if (index == 0 or finds[index - 1][1] <= start) and (index == len(finds) or end <= finds[index][0]):
                    finds.insert(index, (start, end, kind))
    return finds


def mask(text: str, finds: Sequence[tuple[int, int, str]]) -> str:
    """Returns the text with each find replaced by its kind: `[EMAIL]`."""
    parts, start = [], 0
    for begin, end, kind in finds:
        parts += [text[start:begin], f"[{kind.upper()}]"]
        start = end
    return "".join([*parts, text[start:]])


def _is_start(text: str, start: int) -> bool:
    """Whether a number may begin here: not inside a word, nor after the point or comma of a number."""
    before = text[max(0, start - 2) : start]
    in_word = before[-1:].isalnum() or before[-1:] == "_"
    return not in_word and not (before[-1:] in (".", ",") and before[:1].isdigit())


def _shaped(text: str, shape: bytes) -> bytes:
    """Returns a byte for each character: its class."""
    return text.encode("ascii", errors="replace").translate(shape)


def _find_shape(text: str, shape: bytes) -> Iterator[int]:
    """Yields the positions of capitals and digits as in `shape`: UUdd."""
    shaped = _shaped(text, _NUMBER_SHAPE)
    position = shaped.find(shape)
    while position >= 0:
        yield position
        position = shaped.find(shape, position + 1)


def _emails(text: str, phone_region: str) -> Iterator[tuple[int, int]]:
    for domain in _DOMAIN.finditer(text):
        first = max(0, domain.start() - 64)  # the longest that a local part may be
        if local := _LOCAL.search(text[first : domain.start()]):
            start, end = first + local.start(), domain.end()
            if not surroundings.is_no_mail(text, start, end):
                yield start, end


def _ibans(text: str, phone_region: str) -> Iterator[tuple[int, int]]:
    from stdnum import iban

    for start in _find_shape(text, b"UUdd"):
        match = _IBAN.match(text, start) if _is_start(text, start) else None
        candidate = match[0] if match else ""
        while candidate:
            if iban.is_valid(candidate, check_country=False):  # not every country publishes its bank codes
                yield start, start + len(candidate)
                break
            candidate = candidate.rpartition(" ")[0]  # a word in capitals may follow


def _cards(text: str, phone_region: str) -> Iterator[tuple[int, int]]:
    from stdnum import luhn

    for start in _find_shape(text, b"dddd"):
        if _is_start(text, start) and (match := _CARD.match(text, start)):
            digits = re.sub(r"\D", "", match[0])
            is_card = _ISSUER.fullmatch(digits) and len(set(digits)) > 1 and luhn.is_valid(digits)
            if is_card and not surroundings.joins(text, *match.span()):
                yield match.span()


def _social_security_numbers(text: str, phone_region: str) -> Iterator[tuple[int, int]]:
    from stdnum.us import ssn

    for match in _SSN.finditer(text):
        start = match.start() - 3
        is_number = start >= 0 and _is_start(text, start) and ssn.is_valid(text[start : match.end()])
        if is_number and not surroundings.joins(text, start, match.end()):
            yield start, match.end()


def _phones(text: str, phone_region: str) -> Iterator[tuple[int, int]]:
    import phonenumbers

    run = _PHONE.search(text)
    while run:
        if surroundings.is_in_time(text, run.start()):
            run = _PHONE.search(text, run.start() + 1)
            continue
        # A "+" before the country code and a "(" before the area code belong to the number.
        start = run.start() - (text[run.start() - 1 : run.start()] in ("+", "("))
        start -= text[start - 1 : start] == "+"
        begins = _is_start(text, start)
        # A bare run of digits is more often a count than a telephone number.
        if begins and any(mark in text[start : run.end()] for mark in "+() -./"):
            for match in phonenumbers.PhoneNumberMatcher(text[start : run.end()], phone_region):
                span = start + match.start, start + match.end
                if not surroundings.is_no_phone(text, *span, phone_region):
                    yield span
        run = _PHONE.search(text, run.end() if begins else run.start() + 1)  # a number inside a word may hide another


def _addresses(text: str, phone_region: str) -> Iterator[tuple[int, int]]:
    for start, end in _address_like(text):
        try:
            address = ipaddress.ip_address(text[start:end])
        except ValueError:  # four numbers, but not an address
            continue
        # Private and documentation ranges identify nobody.
        if address.is_global and not surroundings.is_no_address(text, start, end, address):
            yield start, end


def _address_like(text: str) -> Iterator[tuple[int, int]]:
    for match in _THREE_DOTS.finditer(text):
        first = max(0, match.start() - 4)  # three digits, and the character that must not be before them
        if head := _BYTE.search(text[first : match.start()]):
            yield first + head.start(), match.end()
    for match in _TWO_COLONS.finditer(text):
        first = max(0, match.start() - 4)
        # "::2" is more often a slice, and "a::b" a name in a program, than an address.
        if (head := _HEX.search(text[first : match.start()])) and match[0].count(":") >= 3:
            yield first + head.start(), match.end()


def _secrets(text: str, phone_region: str) -> Iterator[tuple[int, int]]:
    if "PRIVATE KEY" in text:
        for match in _PRIVATE_KEY.finditer(text):
            yield match.span()
    for start, end in _key_like(text):
        run = text[start:end]
        if not _DIGIT.search(run):  # a name: a random key has a digit
            continue
        for pattern in _secret_patterns():
            if match := pattern.search(run):
                yield start + match.start(), end
                break


def _key_like(text: str) -> Iterator[tuple[int, int]]:
    """Yields runs of at least 20 characters that keys are made of."""
    shaped = _shaped(text, _KEY_SHAPE)
    start = shaped.find(b"x" * 20)
    while start >= 0:
        end = shaped.find(b" ", start)
        end = len(text) if end < 0 else end
        yield start, end
        start = shaped.find(b"x" * 20, end)


@functools.cache
def _secret_patterns() -> tuple[re.Pattern, ...]:
    names = (name.split(":") for name in _SECRETS)
    plugins = (getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), name) for module, name in names)
    return tuple(pattern for plugin in plugins for pattern in plugin.denylist)


_FINDERS = {
    "email": _emails,
    "secret": _secrets,
    "iban": _ibans,
    "card": _cards,
    "ssn": _social_security_numbers,
    "ip": _addresses,
    "phone": _phones,
}
