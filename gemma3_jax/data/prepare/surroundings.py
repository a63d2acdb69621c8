"""What stands around a candidate for personal data, and shows that it is a time, a version, a name or a count instead.

Every function takes a text and the span of a candidate in it. They look at most 40 characters around.
"""

import ipaddress
import re

_BEFORE = 40  # characters
# An identifier goes on over a hyphen: "a716-4155-552671", "4155-5526-71x1". A count before a number ("ref2-"), and an
# expiry date, a code or cents after it ("-12/27", "-123", ".50") are no part of it.
_JOINED_BEFORE = re.compile(r"(?:\A|[\W_])(?=[A-Fa-f]*\d)[\dA-Fa-f]{3,}[-_]\Z")
_JOINED_AFTER = re.compile(r"[-_](?:(?!(?:0[1-9]|1[0-2])\d\d(?![\w-]))\d{4}|(?=\w*\d)\w*[A-Za-z])|\.\d{3}")
_FRACTION = re.compile(r"\d[.,]\Z")
_SIXTIETHS = re.compile(r"[0-5]\d(?!\d)")
# "T10:" and "10:" begin a time, "line2:" does not.
_TIME_BEFORE, _TIME_AFTER = re.compile(r"(?<![A-SU-Za-z_\d])\d{1,2}:\Z"), re.compile(r":[0-5]\d(?!\d)")
_YEAR, _MONTH, _DAY = r"(?:19|20)\d\d", r"(?:0?[1-9]|1[0-2])", r"(?:0?[1-9]|[12]\d|3[01])"
_DATE = re.compile(
    rf"(?<!\d)(?:{_YEAR}([-/. ]){_MONTH}\1{_DAY}|{_DAY}([-/.]){_MONTH}\2{_YEAR}|{_MONTH}([-/.]){_DAY}\3{_YEAR})(?!\d)"
)
_DECIMAL = re.compile(r"\A\d+\.\d+\Z")
_THOUSANDS = re.compile(r"[1-9]\d{0,2}([ .])\d{3}(?:\1\d{3}){2,}\Z")
_BOOK = re.compile(r"(?:97[89]([- ]))?\d{1,5}([- ])\d+\2\d+\2\d\Z")
_QUAD = re.compile(r"\A(?!0\d)\d{1,3}(?:\.(?!0\d)\d{1,3}){3}\Z")
# Numbers with a name of their own. "Fax" and "phone" are none of them.
_LABEL = re.compile(
    r"\b(?:ISBN|ISSN|EAN|UPC|GTIN|DOI|PMID|CVE|RFC|ORCID|VIN|SKU|commit)"
    r"(?:[- ]?1[03])?(?: ?(?:no|number|#))?[.:#= \"']*\Z",
    re.IGNORECASE,
)
# Chrome/120.0.0.0 is a product; in https://host/8.8.8.8 a host with dots stands before.
_PRODUCT = r"(?:\A|[\s\"'(;,])[A-Za-z][\w+-]*/"
_VERSION = re.compile(
    r"(?:(?:versions?|\b(?:v|ver|release|released|firmware|driver|oid))\b[\"']?[.:=(\s]*[\"'v]?"
    r"|[\w\])](?:==|>=|<=|~=|!=))\Z",
    re.IGNORECASE,
)
# What stands after these is as often an address, so that its numbers have to look like a version too.
_PERHAPS_VERSION = re.compile(
    _PRODUCT
    + r"\Z|(?:\b(?:build|revision|rev|patch|upgraded|upgrade|update|sections?|chapter|clause)\b[\"']?[.:=(\s]*[\"'v]?"
    r"|[A-Za-z]-)\Z",
    re.IGNORECASE,
)
_HOST = re.compile(
    r"(?:\b|_)(?:ip|ipv4|addr|address|host|hostname|server|remote|client|peer|node|src|dst|source|destination|tcp|udp)"
    r"[-_/=!<>~]{1,2}\Z",
    re.IGNORECASE,
)
_PREFIX_LENGTH = re.compile(r"/(?:[1-9]|[12]\d|3[01])(?!\d)")  # of more addresses than one
# Most versions are below 20.20.20.100, and one in 5,000 addresses is.
_MOST_VERSIONS = (20, 20, 20, 100)
# Most versions after a name are below 30.100.100 or have a zero in the middle, and so has one in 35 addresses.
_MOST_NAMED_VERSIONS = (30, 100, 100)

_LOGINS = ("git", "hg", "svn", "cvs", "anoncvs")  # of servers of code, for everybody
_SHELL = re.compile(r"\bssh\b[^@]*\Z")  # ssh://git@host, ssh -T git@host
_PATH = re.compile(r"[:/](?! )")
_KEYWORDS = ("this", "super", "return", "break", "continue")  # with a label: return@name.method, in Kotlin
_FILES = re.compile(
    r"(?:png|jpe?g|gif|svg|webp|bmp|ico|tiff?|tar|tgz|gz|bz2|xz|jsx?|tsx?|mjs|cjs|css|scss|html?|json|xml|ya?ml|toml"
    r"|txt|csv|log|exe|dll|jar|java|cpp|hpp|patch|diff|whl|deb|rpm)\Z",
    re.IGNORECASE,
)

# Countries without telephones of their own, and what is no country.
_TWO_LETTERS = ("aq", "bv", "eu", "gs", "hm", "pn", "su", "tf", "uk")
# The longer endings of most mail, of the 1,400 that are registered.
_LONGER = frozenset(
    "com org net edu gov mil int biz pro app dev xyz top icu fun cat tel info name mobi aero coop jobs museum travel"
    " asia online store site tech club shop cloud space world live agency digital company solutions email life group"
    " berlin london media network services center academy consulting foundation health science university".split()
)


def joins(text: str, start: int, end: int) -> bool:
    """Whether the candidate is a part of a longer number or identifier."""
    before = text[max(0, start - _BEFORE) : start]
    return bool(_JOINED_BEFORE.search(before) or _JOINED_AFTER.match(text[end : end + _BEFORE]))


def is_in_time(text: str, start: int) -> bool:
    """Whether the digits from here on are the minutes or seconds of a time."""
    return bool(_TIME_BEFORE.search(text[max(0, start - 4) : start]) and _SIXTIETHS.match(text[start : start + 3]))


def is_no_phone(text: str, start: int, end: int, region: str) -> bool:
    """Whether a valid telephone number is more likely a date, a count, a book or a part of something else."""
    import phonenumbers
    from stdnum import isbn

    candidate = text[start:end]
    before = text[max(0, start - _BEFORE) : start]
    if joins(text, start, end) or _FRACTION.search(before) or _TIME_AFTER.match(text[end : end + 4]):
        return True
    if candidate.startswith("+"):  # a country code: only a line that was added, as in +2010-10-12, looks like it
        return bool(_DATE.match(candidate, 1))
    if _LABEL.search(before) or any(pattern.search(candidate) for pattern in (_DATE, _DECIMAL, _QUAD)):
        return True
    if sum(map(str.isdigit, candidate)) < 7:  # the end of something else
        return True
    if _THOUSANDS.match(candidate) or (_BOOK.match(candidate) and isbn.is_valid(candidate)):
        return True
    # Outside of +1 people group the digits of a number as they like, libphonenumber says.
    strict = phonenumbers.country_code_for_region(region) == 1
    return (
        strict
        and not phonenumbers.PhoneNumberMatcher(candidate, region, phonenumbers.Leniency.STRICT_GROUPING).has_next()
    )


def is_no_address(text: str, start: int, end: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an IP address is more likely a version, a network or a section, or is not one of a host at all."""
    if address.version == 6:
        return address not in _HOSTS_6
    octets = address.packed
    has_others = len(set(octets)) > 1  # 8.8.8.8 is no version
    if address.is_multicast or octets[2:] == b"\0\0" or (has_others and _are_below(octets, _MOST_VERSIONS)):
        return True
    before = text[max(0, start - _BEFORE) : start]
    is_network = octets[3] == 0 and _PREFIX_LENGTH.match(text[end : end + 4])
    if is_network or _HOST.search(before):
        return bool(is_network)
    is_shaped = has_others and (_are_below(octets, _MOST_NAMED_VERSIONS) or 0 in octets[1:3])
    return bool(_VERSION.search(before) or (is_shaped and _PERHAPS_VERSION.search(before)))


def _are_below(octets: bytes, limits: tuple[int, ...]) -> bool:
    return all(octet < limit for octet, limit in zip(octets, limits, strict=False))


_HOSTS_6 = ipaddress.ip_network("2000::/3")  # all that are assigned to hosts


def is_no_mail(text: str, start: int, end: int) -> bool:
    """Whether what is written like an e-mail address is a login of a server, a file or code."""
    local, _, domain = text[start:end].partition("@")
    top = domain.rpartition(".")[2]
    calls = text[end : end + 1] == "("
    if _FILES.match(top) or (len(top) == 2 and not _is_top_level(top)):
        return True
    if local.lower() in _LOGINS:
        return bool(_PATH.match(text[end : end + 2])) or bool(_SHELL.search(text[max(0, start - _BEFORE) : start]))
    if local in _KEYWORDS:  # names of Kotlin have capitals, domains have none
        return calls or domain != domain.lower() or not _is_top_level(top)
    return calls and len(top) > 3 and not _is_top_level(top)  # a@b.transpose(): a product of matrices


def _is_top_level(name: str) -> bool:
    import phonenumbers

    name = name.lower()
    return name in _TWO_LETTERS or name.upper() in phonenumbers.SUPPORTED_REGIONS or name in _LONGER
