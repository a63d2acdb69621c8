"""Overlap of a text with evaluation sets, by n-grams of words; exact, and cheap where there is none.

Only words that occur in an evaluation set have an id, so the n-grams worth a look-up are those of consecutive words
that all have one: rare in text that has nothing to do with it.
Source: 13-grams after GPT-3 (Brown et al. 2020, appendix C); the longest span after Singh et al. 2024 (ConTAM).
"""

import dataclasses
import itertools
from collections.abc import Iterable

from gemma3_jax.data.prepare import words

LONG, SHORT = 13, 8  # words; items of 8 to 12 words are found by their 8-grams, shorter ones cannot be


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Words first..last (excluded) of a text stand in a row in an item of an evaluation set, or in several of them."""

    first: int
    last: int
    item: str

    @property
    def num_words(self) -> int:
        return self.last - self.first


class Index:
    """The n-grams of evaluation items, given as (name, text)."""

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
        """What overlaps, in order; touching and overlapping finds are joined into one."""
        ids = [self._ids.get(word, -1) for word in words.words(text)]
        found: list[Overlap] = []
        start = 0
        for known, run in itertools.groupby(ids, key=lambda token: token >= 0):
            length = len(list(run))
            if known:
                found += self._find_in_run(ids[start : start + length], start)
            start += length
        return found

    def _find_in_run(self, ids: list[int], offset: int) -> list[Overlap]:
        found: list[Overlap] = []
        for start in range(len(ids) - SHORT + 1):
            for length in (LONG, SHORT):
                gram = tuple(ids[start : start + length])
                item = self._grams.get(gram) if len(gram) == length else None
                if item is None:
                    continue
                first, last = offset + start, offset + start + length
                if found and first <= found[-1].last:
                    previous = found.pop()
                    found.append(Overlap(previous.first, max(previous.last, last), previous.item))
                else:
                    found.append(Overlap(first, last, item))
                break
        return found


def excise(text: str, overlaps: list[Overlap], margin: int) -> str:
    """The text without what overlaps and `margin` characters on both sides; what is left is joined by newlines.

    Nothing is left of a text whose words cannot be placed.
    """
    spans = words.spans(text)
    if len(spans) != len(words.words(text)):  # letters that are composed across what is cut here: Hangul jamo, for one
        return ""
    kept, start = [], 0
    for overlap in overlaps:
        kept.append(text[start : max(start, spans[overlap.first][0] - margin)])
        start = min(len(text), max(start, spans[overlap.last - 1][1] + margin))
    return "\n".join(part for part in [*kept, text[start:]] if part)
