"""Incremental decoding: the text of the ids so far, as much of it as later ids cannot change, and stop strings."""

from collections.abc import Sequence

from gemma3_jax.tokenizer import vocabulary

REPLACEMENT = "\ufffd"  # SentencePiece's text for bytes that are not, or not yet, a character
MAX_INCOMPLETE = 3  # bytes of a character whose fourth is missing


class Detokenizer:
    """Text of one sequence. `add` returns new text; an incomplete character or stop string is held back until `flush`.

    What they return adds up to `text`, whatever the pieces are: the text before the stop string that is complete first,
    the longest of those that end there.
    """

    def __init__(self, tokenizer: vocabulary.Tokenizer, stop: Sequence[str] = ()):
        self._tokenizer, self._stop = tokenizer, stop
        self._ids: list[int] = []
        self._num_shown = 0
        self.text = ""  # all of it, without the stop string
        self.is_stopped = False

    def add(self, ids: Sequence[int]) -> str:
        """The text that is certain with these ids, and was not before."""
        if not ids:
            return ""
        self._ids += ids
        self.text = self._tokenizer.decode(self._ids)
        num_incomplete = len(self.text) - len(self.text.rstrip(REPLACEMENT))
        certain = self.text[: len(self.text) - min(num_incomplete, MAX_INCOMPLETE)]
        if self._cut_at_stop(certain):
            return self._show(len(self.text))
        return self._show(len(certain) - self._num_of_stop(certain))

    def flush(self) -> str:
        """The text that was held back; no ids come after it."""
        if not self.is_stopped:
            self._cut_at_stop(self.text)
        return self._show(len(self.text))

    def _cut_at_stop(self, text: str) -> bool:
        """Cuts `self.text` before a stop string in `text`, its beginning; returns whether there is one."""
        stops = [(start + len(string), start) for string in self._stop if (start := text.find(string)) >= 0]
        if stops:
            _, start = min(stops)
            self.text, self.is_stopped = text[:start], True
        return self.is_stopped

    def _num_of_stop(self, text: str) -> int:
        """Characters at the end of a text that may be the start of a stop string."""
        starts = (size for string in self._stop for size in range(1, len(string)) if text.endswith(string[:size]))
        return max(starts, default=0)

    def _show(self, end: int) -> str:
        start, self._num_shown = self._num_shown, max(self._num_shown, end)
        return self.text[start:end]
