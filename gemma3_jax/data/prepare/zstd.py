"""Files compressed with zstd, of any number of frames; one that is cut off is an error.

The library's reader ends without a word where a file is cut off, and has no `readline`.
"""

import io
from typing import IO


class ZstdFile(io.RawIOBase):
    """What is in a compressed file, from front to back."""

    CHUNK = 1 << 13  # bytes; a chunk may hold thirty thousand times as much

    def __init__(self, packed: IO[bytes]):
        import zstandard

        # Files of `zstd --long=31` need as large a window.
        self._new_frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._packed, self._frame = packed, None
        self._content, self._unused = memoryview(b""), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._content:
            chunk = self._unused or self._packed.read(self.CHUNK)
            if not chunk:
                if self._frame and not self._frame.eof:
                    raise EOFError("it ends in the middle of a frame")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._new_frame()
            self._content = memoryview(self._frame.decompress(chunk))
            self._unused = self._frame.unused_data
        size = min(len(buffer), len(self._content))
        buffer[:size] = self._content[:size]
        self._content = self._content[size:]
        return size


def open_zstd(packed: IO[bytes]) -> io.BufferedReader:
    return io.BufferedReader(ZstdFile(packed), 1 << 16)
