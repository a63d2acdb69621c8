"""Protocol buffers as fields by number: SentencePiece's own classes need a protobuf that Beam refuses.

Source: protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields the fields of a message with their numbers: varints as int, all others as bytes.

    Raises: ValueError if it is damaged, which a library that skips what it does not know may not notice.
    """
    offset = 0

    def varint() -> int:
        nonlocal offset
        value = shift = 0
        while True:
            if offset >= len(message):
                raise ValueError("the tokenizer is a damaged protocol buffer")
            byte = message[offset]
            offset += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while offset < len(message):
        number, wire_type = divmod(varint(), 8)
        if wire_type == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}.get(wire_type) or varint()
        if wire_type not in (1, 2, 5) or offset + size > len(message):
            raise ValueError("the tokenizer is a damaged protocol buffer")
        yield number, message[offset : offset + size]
        offset += size


def field(number: int, content: int | bytes) -> bytes:
    """Returns a field of a message: a varint, or bytes with their length."""
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
