"""The elements of a JSON array in a file, one after the other: in memory are one element and a block of the file."""

import codecs
import json
import re
from collections.abc import Callable, Iterator

BLOCK = 1 << 20  # bytes
# Within so many characters of the end of what was read, an error may be that of a cut: -Infinity, \ud83d\ude00.
_CUT = 16
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


def elements(read: Callable[[int], bytes]) -> Iterator[object]:
    """Yields the elements of what `read` reads. Raises: ValueError, with the place, where it is no JSON array."""
    text = _Text(read)
    if (first := text.peek()) != "[":
        raise ValueError(f"{text.place()}: {_named(first)} where a JSON array begins with [")
    text.at += 1
    number = 0
    if text.peek() == "]":
        raise ValueError("it is an empty JSON array")
    while True:
        number += 1
        yield text.value(number)
        end = text.peek()
        if end == "]":
            break
        if end != ",":
            raise ValueError(f"{text.place()}: {_named(end)} where a comma or ] follows row {number}")
        text.at += 1
    text.at += 1
    if text.peek():
        raise ValueError(
            f"{text.place()}: more text after the JSON array; a file with a row on each line has no [ around them"
        )


def _named(character: str) -> str:
    return repr(character) if character else "the end of the file"


class _Text:
    """The text of a file from a position on; what lies before it is dropped with the next block."""

    def __init__(self, read: Callable[[int], bytes]):
        self._read_bytes, self._decode = read, codecs.getincrementaldecoder("utf-8-sig")().decode
        self.text, self.at, self.num_lines_before, self.is_whole = "", 0, 0, False

    def place(self, at: int | None = None) -> str:
        return f"line {self.num_lines_before + self.text.count(chr(10), 0, self.at if at is None else at) + 1}"

    def _read(self) -> None:
        """Reads as much as is there already, so that an element of any length is parsed a few times alone."""
        block = self._read_bytes(max(BLOCK, len(self.text) - self.at))
        try:
            more = self._decode(block, not block)
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 ({error.reason}), after {self.place(len(self.text))}") from error
        self.num_lines_before += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :] + more, 0
        self.is_whole = not block

    def peek(self) -> str:
        """Returns the next character that is no white space, and moves there; empty at the end of the file."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()
            if self.at < len(self.text) or self.is_whole:
                return self.text[self.at : self.at + 1]
            self._read()

    def value(self, number: int) -> object:
        """Returns the value that begins here, which is that of row `number`, and moves behind it."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
                if end < len(self.text) or self.is_whole:  # else a number may go on
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - _CUT
                if self.is_whole or not is_cut:
                    raise ValueError(f"row {number}, {self.place(error.pos)}: not JSON ({error.msg})") from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nested too deeply
                raise ValueError(f"row {number}, {self.place()}: not JSON that can be read ({error})") from error
            self._read()
