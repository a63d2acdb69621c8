"""The head of a GGUF file, written here byte by byte."""

import struct

import pytest

from gemma3_jax.checkpoint import gguf_header

F32, Q4_0 = 0, 2
UINT8, UINT32, STRING, ARRAY = 0, 4, 8, 9


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)


def head(keys=(), tensors=(), version=3) -> bytes:
    content = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join([*keys, *tensors])
    return content + bytes(-len(content) % 32)


def read(tmp_path, content: bytes):
    (tmp_path / "a.gguf").write_bytes(content)
    return gguf_header.read(tmp_path / "a.gguf")


def test_keys_and_places_are_read(tmp_path):
    keys = [
        key("a", UINT8, b"\x07"),
        key("b", STRING, text("caf\u00e9")),
        key("c", ARRAY, struct.pack("<IQ", STRING, 2) + text("x") + text("yz")),
        key("d", ARRAY, struct.pack("<IQ3I", UINT32, 3, 1, 2, 3)),
    ]
    content = head(keys, [tensor("t", (2, 3), F32, 0), tensor("u", (1, 64), Q4_0, 32)])
    metadata, places = read(tmp_path, content + bytes(32 + 36))
    strings, numbers = metadata.pop("c"), metadata.pop("d")
    assert metadata == {"a": 7, "b": "caf\u00e9"}
    assert (strings.length, gguf_header.array_values(strings)) == (2, [b"x", b"yz"])
    assert (numbers.length, gguf_header.array_values(numbers).tolist()) == (3, [1, 2, 3])
    file = tmp_path / "a.gguf"
    assert places == {
        "t": gguf_header.TensorInfo("F32", (2, 3), file, len(content), 24),
        "u": gguf_header.TensorInfo("Q4_0", (1, 64), file, len(content) + 32, 36),
    }


def test_an_alignment_of_its_own_is_kept(tmp_path):
    keys = [key("general.alignment", UINT32, struct.pack("<I", 64))]
    content = head(keys, [tensor("t", (2,), F32, 0), tensor("u", (2,), F32, 64)])
    content += bytes(-len(content) % 64)
    assert read(tmp_path, content + bytes(72))[1]["u"].start == len(content) + 64


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "cannot mmap an empty file"),
        (b"GGML" + bytes(40), "it is not GGUF"),
        (head(version=1), "it is of version 1; this program reads 2 and 3"),
        (head(version=3 << 24), "it is big-endian; convert it with the gguf package: gguf-convert-endian FILE little"),
        (head()[:23], "it ends in the middle of its header"),
        (head([key("a", UINT8, b"\1")] * 2), "key a occurs twice"),
        (head([key("a", 13, b"\1")]), "a value has the unknown type 13"),
        (head([key("a", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "an array is of type 9, which this program does not"),
        (head([key("a", ARRAY, struct.pack("<IQ", UINT8, 2**62))]), "it ends in the middle of its header"),
        (head([key("a", ARRAY, struct.pack("<IQ", STRING, 2**62))]), "it ends in the middle of its header"),
        (head([key("a", STRING, struct.pack("<Q", 1) + b"\xff")]), "the string at byte 45 is not UTF-8: .* byte 0xff"),
        (head([key("a\nb", UINT8, b"\1")]), r"the name at byte 24 is 'a\\nb'; it must be printable"),
        (head([], [tensor("\x1b[2J", (2,), F32, 0)]), r"the name at byte 24 is '\\x1b\[2J'; it must be printable"),
        (
            head([key("general.alignment", UINT32, struct.pack("<I", 48))]),
            "general.alignment is 48; it must be a power",
        ),
        (head([], [tensor("t", (2,), F32, 0)] * 2), "tensor t occurs twice"),
        (head([], [tensor("t", (1,) * 5, F32, 0)]), "tensor t has 5 dims; there may be 4"),
        (head([], [tensor("t", (), F32, 0)]), r"tensor t of type F32 has shape \(\); its rows must be of whole blocks"),
        (head([], [tensor("t", (2, 33), Q4_0, 0)]), r"tensor t of type Q4_0 has shape \(2, 33\); its rows must be of"),
        (head([], [tensor("t", (2,), 99, 0)]), "tensor t is of type 99, which this program does not know"),
        (head([], [tensor("t", (2,), F32, 32)]) + bytes(40), "tensor t has offset 32; it must be 0"),
        (head([], [tensor("t", (2,), F32, 0)]) + bytes(7), "it ends in the middle of tensor t"),
        (head([], [tensor("t", (2**40, 2**40), F32, 0)]), "it ends in the middle of tensor t"),
    ],
)
def test_what_cannot_be_is_named(content, problem, tmp_path):
    with pytest.raises(ValueError, match=rf"a\.gguf is damaged or cut short: .*{problem}"):
        read(tmp_path, content)
