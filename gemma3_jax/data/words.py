"""The words that two texts are compared by: lower case, NFKC, no punctuation; each CJK character is a word."""

import re
import unicodedata

_ASCII = re.compile(r"[a-z0-9]+")
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_ANY = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    if text.isascii():
        return _ASCII.findall(text.lower())
    return [word.lower() if word.isascii() else _normal(word) for word in _ANY.findall(text)]


def spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each of `words(text)` in it, in characters."""
    lowered, pattern = (text.lower(), _ASCII) if text.isascii() else (text, _ANY)
    return [match.span() for match in pattern.finditer(lowered)]


def _normal(word: str) -> str:
    return unicodedata.normalize("NFKC", word).lower()
