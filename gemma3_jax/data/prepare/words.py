"""The words by which two texts are compared: NFKC, lower case, no punctuation.

Scripts written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) give one word per character, with the
marks that belong to it.
"""

import re
import unicodedata

import regex

_ASCII = re.compile(r"[a-z0-9]+")
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_ANY = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}]]+", regex.VERSION1)
_CLUSTER = regex.compile(r"\P{M}\p{M}*|\p{M}+")


def words(text: str) -> list[str]:
    """Returns the words of a text, in order."""
    if text.isascii():
        return _ASCII.findall(text.lower())
    return _ANY.findall(unicodedata.normalize("NFKC", text).lower())


def spans(text: str) -> list[tuple[int, int]]:
    """Returns (start, end) of each of `words(text)`, in characters of the text."""
    if text.isascii():
        return [match.span() for match in _ASCII.finditer(text.lower())]
    normal, origins = [], []  # origins: for each character of the normal form, the span of its cluster in the text
    for cluster in _CLUSTER.finditer(text):
        part = unicodedata.normalize("NFKC", cluster[0]).lower()
        normal.append(part)
        origins += [cluster.span()] * len(part)
    return [(origins[m.start()][0], origins[m.end() - 1][1]) for m in _ANY.finditer("".join(normal))]
