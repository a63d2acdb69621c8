"""The words that two texts are compared by: NFKC, lower case, no punctuation.

Scripts that are written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) give a word per character, with
the marks that belong to it.
"""

import re
import unicodedata

import regex

_ASCII = re.compile(r"[a-z0-9]+")
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_ANY = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}]]+", regex.VERSION1)
_CLUSTER = regex.compile(r"\P{M}\p{M}*|\p{M}+")


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    if text.isascii():
        return _ASCII.findall(text.lower())
    return _ANY.findall(unicodedata.normalize("NFKC", text).lower())


def spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each of `words(text)` in it, in characters."""
    if text.isascii():
        return [match.span() for match in _ASCII.finditer(text.lower())]
    normal, places = [], []  # places: for each character of the normal form, the cluster of the text it came from
    for cluster in _CLUSTER.finditer(text):
        part = unicodedata.normalize("NFKC", cluster[0]).lower()
        normal.append(part)
        places += [cluster.span()] * len(part)
    return [(places[m.start()][0], places[m.end() - 1][1]) for m in _ANY.finditer("".join(normal))]
