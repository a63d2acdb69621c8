"""Overlap of a text with evaluation sets, by n-grams of words; exact, and cheap where there is none.

Only words of the evaluation sets have an id, so only n-grams whose words all have one are looked up: few in unrelated
text.
Source: 13-grams after GPT-3 (Brown et al. 2020, appendix C); the longest span after Singh et al. 2024 (ConTAM).
"""

import dataclasses
import itertools
from collections.abc import Iterable

from gemma3_jax.data.prepare import words

LONG, SHORT = 13, 8  # words; items of 8 to 12 words are detected by their 8-grams, shorter ones cannot be


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Words first..last (excluded) of a text that also occur in sequence in one or more evaluation items."""

    first: int
    last: int
    item: str

    @property
    def num_words(self) -> int:
        return self.last - self.first


class Index:
    """The n-grams of evaluation items, each of which is (name, text)."""

    def __init__(self, items: Iterable[tuple[str, str]]):
        self._ids: dict[str, int] = {}
        self._grams: dict[tuple[int, ...], str] = {}
        self.num_items = self.num_too_short = 0
        for name, text in items:
            ids = [self._ids.setdefault(word, len(self._ids)) for word in words.words(text)]
            length = LONG if len(ids) >= LONG else SHORT
            self.num_items += 1
            self.num_too_short += len(ids) < SHORT
            for start in range(len(ids) - length + 1):
                self._grams.setdefault(tuple(ids[start : start + length]), name)

    def find(self, text: str) -> list[Overlap]:
        """Returns the overlaps of a text, in order; those that touch are joined into one."""
        ids = [self._ids.get(word, -1) for word in words.words(text)]
        overlaps: list[Overlap] = []
        start = 0
        for known, run in itertools.groupby(ids, key=lambda token: token >= 0):
            length = len(list(run))
            if known:
                overlaps += self._find_in_run(ids[start : start + length], start)
            start += length
        return overlaps

    def _find_in_run(self, ids: list[int], offset: int) -> list[Overlap]:
        overlaps: list[Overlap] = []
        for start in range(len(ids) - SHORT + 1):
            for length in (LONG, SHORT):
                gram = tuple(ids[start : start + length])
                item = self._grams.get(gram) if len(gram) == length else None
                if item is None:
                    continue
                first, last = offset + start, offset + start + length
                if overlaps and first <= overlaps[-1].last:
                    previous = overlaps.pop()
                    overlaps.append(Overlap(previous.first, max(previous.last, last), previous.item))
                else:
                    overlaps.append(Overlap(first, last, item))
                break
        return overlaps


def excise(text: str, overlaps: list[Overlap], margin: int) -> str:
    """Returns the text without the overlaps and `margin` characters on both sides, joined by newlines.

    The result is empty if the positions of the words are unknown.
    """
    spans = words.spans(text)
    if len(spans) != len(words.words(text)):  # characters that compose across clusters, such as Hangul jamo
        return ""
    parts, start = [], 0
    for overlap in overlaps:
        parts.append(text[start : max(start, spans[overlap.first][0] - margin)])
        start = min(len(text), max(start, spans[overlap.last - 1][1] + margin))
    return "\n".join(part for part in [*parts, text[start:]] if part)
