"""Incremental decoding: the text of the ids so far, as much of it as later ids cannot change, and stop strings."""

from collections.abc import Sequence

from gemma3_jax.tokenizer import vocabulary

REPLACEMENT = "\ufffd"  # SentencePiece's text for bytes that are not, or not yet, a character
MAX_INCOMPLETE = 3  # bytes of a character whose fourth is missing


class Detokenizer:
    """Text of one sequence. `add` returns new text; an incomplete character or stop string is held back for later."""

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
        stop_positions = [position for position in map(self.text.find, self._stop) if position >= 0]
        if stop_positions:
            self.text, self.is_stopped = self.text[: min(stop_positions)], True
            return self._show(len(self.text))
        return self._show(len(self.text) - self._num_uncertain())

    def flush(self) -> str:
        """The text that was held back."""
        return self._show(len(self.text))

    def _show(self, end: int) -> str:
        start, self._num_shown = self._num_shown, max(self._num_shown, end)
        return self.text[start:end]

    def _num_uncertain(self) -> int:
        """Characters at the end that may still change, or may be the start of a stop string."""
        num_incomplete = len(self.text) - len(self.text.rstrip(REPLACEMENT))
        stop_starts = (
            size for string in self._stop for size in range(1, len(string)) if self.text.endswith(string[:size])
        )
        return max(min(num_incomplete, MAX_INCOMPLETE), max(stop_starts, default=0))
