"""Text as it is written: what of the ids so far is certain, and whether it has come to a string that ends it."""

from collections.abc import Sequence

from gemma3_jax.tokenizer import vocabulary

HALF = "\ufffd"  # how SentencePiece writes bytes that are no character, or not yet
MOST_HALVES = 3  # of a character's four bytes


class Writing:
    """The text of one row. `take` gives what ids add, some of it later: half a character, half a stop string."""

    def __init__(self, tokenizer: vocabulary.Tokenizer, stop: Sequence[str] = ()):
        self._tokenizer, self._stop = tokenizer, stop
        self._ids: list[int] = []
        self._shown = 0
        self.text = ""  # all of it, without the stop string
        self.is_stopped = False

    def take(self, ids: Sequence[int]) -> str:
        """The text that these ids make certain."""
        if not ids:
            return ""
        self._ids += ids
        self.text = self._tokenizer.decode(self._ids)
        places = [place for place in map(self.text.find, self._stop) if place >= 0]
        if places:
            self.text, self.is_stopped = self.text[: min(places)], True
            return self._show(len(self.text))
        return self._show(len(self.text) - self._num_uncertain())

    def finish(self) -> str:
        """What was held back."""
        return self._show(len(self.text))

    def _show(self, end: int) -> str:
        start, self._shown = self._shown, max(self._shown, end)
        return self.text[start:end]

    def _num_uncertain(self) -> int:
        """Characters at the end that may still change, or belong to a stop string."""
        halves = len(self.text) - len(self.text.rstrip(HALF))
        begun = (size for string in self._stop for size in range(1, len(string)) if self.text.endswith(string[:size]))
        return max(min(halves, MOST_HALVES), max(begun, default=0))
