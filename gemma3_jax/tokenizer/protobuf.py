"""Protocol buffers as fields by number: SentencePiece's own classes need a protobuf that Beam refuses.

Source: protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields the fields of a message with their numbers: varints as int, all others as bytes.

    Raises: ValueError if it is damaged, which a library that skips what it does not know may not notice.
    """
    offset = 0
    while offset < len(message):
        key, offset = _read_varint(message, offset)
        number, wire_type = divmod(key, 8)
        if wire_type == 0:
            value, offset = _read_varint(message, offset)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(wire_type)
        if size is None:
            size, offset = _read_varint(message, offset)
        if wire_type not in (1, 2, 5) or offset + size > len(message):
            raise ValueError("the tokenizer is a damaged protocol buffer")
        yield number, message[offset : offset + size]
        offset += size


def _read_varint(message: bytes, offset: int) -> tuple[int, int]:
    """Returns the varint at `offset`, and where the next thing begins."""
    value = shift = 0
    while True:
        if offset >= len(message):
            raise ValueError("the tokenizer is a damaged protocol buffer")
        byte = message[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
        shift += 7


def field(number: int, content: int | bytes) -> bytes:
    """Returns a field of a message: a varint, or bytes with their length."""
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
