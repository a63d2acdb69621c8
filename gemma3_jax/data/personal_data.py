"""Personal data in a text: where it is, and the text without it.

Patterns find candidates; libraries that follow the standards decide: phonenumbers (numbering plans), python-stdnum
(IBAN, card and social security checks), ipaddress, detect-secrets (formats of access keys).
"""

import bisect
import functools
import importlib
import ipaddress
import re
from collections.abc import Iterator, Sequence

KINDS = ("email", "secret", "iban", "card", "ssn", "ip", "phone")

# Patterns begin with what is rare, not with a look behind: it is what a scan of gigabytes spends its time on.
_DOMAIN = re.compile(r"@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,24}\b")
_LOCAL = re.compile(r"[\w.%+-]+\Z")
_IBAN = re.compile(r"[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(r"\d{4}([ -]?)\d{4}\1\d{4}\1\d{4}(?!\d)|\d{4}([ -]?)\d{6}\2\d{5}(?!\d)|\d{13,19}(?!\d)")
_SSN = re.compile(r"\d{3}-\d{2}-\d{4}(?![\w-])")
_PHONE = re.compile(r"\d(?:[ ().\-/]{0,2}\d){6,16}(?!\w)")
_THREE_DOTS = re.compile(r"\.\d{1,3}\.\d{1,3}\.\d{1,3}(?!\.?\w)")
_BYTE = re.compile(r"(?<![\w.])\d{1,3}\Z")
_TWO_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]*(?!\w)")
_HEX = re.compile(r"[0-9A-Fa-f]{1,4}\Z")
_LONG_RUN = re.compile(r"[A-Za-z0-9_+/=.\-]{20,}")
_DIGIT = re.compile(r"\d")
_BEGIN, _END = r"-----BEGIN [A-Z ]*PRIVATE KEY-----", r"-----END [A-Z ]*PRIVATE KEY-----"
_PRIVATE_KEY = re.compile(rf"{_BEGIN}(?:[^-]{{0,16384}}{_END}|(?:\s+[A-Za-z0-9+/=]{{16,}})*)")
# Formats with a prefix of their own. The detectors left out go by entropy or by the word before, and hit prose and
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
    """(start, end, kind) of what was found, in order and without overlap; what comes first in KINDS has precedence."""
    taken: list[tuple[int, int, str]] = []
    for kind in KINDS:
        if kind in kinds:
            for start, end in _FINDERS[kind](text, phone_region):
                place = bisect.bisect_left(taken, (start, end, kind))
                if (place == 0 or taken[place - 1][1] <= start) and (place == len(taken) or end <= taken[place][0]):
                    taken.insert(place, (start, end, kind))
    return taken


def mask(text: str, found: Sequence[tuple[int, int, str]]) -> str:
    """The text with each find replaced by its kind: `[EMAIL]`."""
    pieces, start = [], 0
    for begin, end, kind in found:
        pieces += [text[start:begin], f"[{kind.upper()}]"]
        start = end
    return "".join([*pieces, text[start:]])


def _is_start(text: str, start: int) -> bool:
    """Whether a number may begin here: not inside of a word, nor behind a number's point or comma."""
    before = text[max(0, start - 2) : start]
    in_word = before[-1:].isalnum() or before[-1:] == "_"
    return not in_word and not (before[-1:] in (".", ",") and before[:1].isdigit())


def _emails(text: str, phone_region: str) -> Iterator[tuple[int, int]]:
    for domain in _DOMAIN.finditer(text):
        first = max(0, domain.start() - 64)  # the longest a local part may be
        if local := _LOCAL.search(text[first : domain.start()]):
            yield first + local.start(), domain.end()


def _ibans(text: str, phone_region: str) -> Iterator[tuple[int, int]]:
    from stdnum import iban

    for match in _IBAN.finditer(text):
        candidate = match[0]
        while _is_start(text, match.start()) and candidate:
            if iban.is_valid(candidate, check_country=False):  # not every country publishes its banks
                yield match.start(), match.start() + len(candidate)
                break
            candidate = candidate.rpartition(" ")[0]  # a word in capitals may follow


def _cards(text: str, phone_region: str) -> Iterator[tuple[int, int]]:
    from stdnum import luhn

    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if _is_start(text, match.start()) and digits[0] in "3456" and len(set(digits)) > 1 and luhn.is_valid(digits):
            yield match.span()


def _social_security_numbers(text: str, phone_region: str) -> Iterator[tuple[int, int]]:
    from stdnum.us import ssn

    for match in _SSN.finditer(text):
        if _is_start(text, match.start()) and ssn.is_valid(match[0]):
            yield match.span()


def _phones(text: str, phone_region: str) -> Iterator[tuple[int, int]]:
    import phonenumbers

    for run in _PHONE.finditer(text):
        start = run.start() - (text[run.start() - 1 : run.start()] in ("+", "("))
        start -= text[start - 1 : start] == "+"
        number = text[start : run.end()]
        # A bare run of digits is more often a count than a telephone.
        if _is_start(text, start) and any(mark in number for mark in "+() -./"):
            for match in phonenumbers.PhoneNumberMatcher(number, phone_region):
                yield start + match.start, start + match.end


def _addresses(text: str, phone_region: str) -> Iterator[tuple[int, int]]:
    for start, end in _address_like(text):
        try:
            address = ipaddress.ip_address(text[start:end])
        except ValueError:  # four numbers, but not an address
            continue
        if address.is_global:  # private and documentation ranges belong to nobody
            yield start, end


def _address_like(text: str) -> Iterator[tuple[int, int]]:
    for match in _THREE_DOTS.finditer(text):
        first = max(0, match.start() - 4)  # three digits, and what must not be before them
        if head := _BYTE.search(text[first : match.start()]):
            yield first + head.start(), match.end()
    for match in _TWO_COLONS.finditer(text):
        first = max(0, match.start() - 4)
        # "::2" is a slice and "a::b" a name in some program more often than they are addresses.
        if (head := _HEX.search(text[first : match.start()])) and match[0].count(":") >= 3:
            yield first + head.start(), match.end()


def _secrets(text: str, phone_region: str) -> Iterator[tuple[int, int]]:
    if "PRIVATE KEY" in text:
        for match in _PRIVATE_KEY.finditer(text):
            yield match.span()
    for run in _LONG_RUN.finditer(text):
        if not _DIGIT.search(run[0]):  # a name: what is drawn at random has one
            continue
        for pattern in _secret_patterns():
            if match := pattern.search(run[0]):
                yield run.start() + match.start(), run.end()
                break


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
