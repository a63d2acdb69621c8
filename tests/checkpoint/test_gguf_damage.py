"""Damaged GGUF files: read, or refused in one line that names the file; never much memory or time."""

import random
import struct
import tracemalloc

import pytest

from gemma3_jax.checkpoint import encoding, gguf_file, gguf_header, gguf_vocabulary
from tests.checkpoint import gguf_files


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return gguf_files.write(
        tmp_path_factory.mktemp("gguf") / "toy.gguf", plan=encoding.StoragePlan("q4_0", "float16")
    ).read_bytes()


def ends(path) -> tuple[int, list[int]]:
    """Where the tensors begin, and where each ends."""
    places = gguf_header.read(path)[1].values()
    return min(place.start for place in places), [place.start + place.num_bytes for place in places]


def test_a_file_cut_short_anywhere_is_named(content, tmp_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(content)
    start, last = ends(path)
    lengths = {*range(64), *range(64, start, 499), *(start - number for number in range(40))}
    lengths |= {end - 1 for end in last} | set(range(start, max(last), 99_991))
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.gguf is damaged or cut short: (it (ends in|is not)|cannot mmap)"):
            gguf_file.open_source(path)


def test_whatever_bit_of_the_head_is_wrong_the_file_is_read_or_named(content, tmp_path):
    path, draw = tmp_path / "wrong.gguf", random.Random(0)
    path.write_bytes(content)
    start, _ = ends(path)
    places = [*range(0, 400, 9), *(draw.randrange(start) for _ in range(20)), *range(start - 1500, start, 80)]
    num_named = 0
    for place in places:
        wrong = bytearray(content)
        wrong[place] ^= 1 << draw.randrange(8)
        path.write_bytes(wrong)
        try:
            gguf_file.open_source(path)
        except ValueError as error:
            assert str(error).startswith(str(path))
            num_named += 1
    assert num_named > 20


def replaced(content: bytes, start: int, new: bytes) -> bytes:
    return content[:start] + new + content[start + len(new) :]


def damages(content: bytes, start: int, draw: random.Random):
    """Forty files with a damaged head, which ends at `start`."""
    for number in range(40):
        place = draw.randrange(4, start - 8)
        value = draw.choice([0, 1, 2**31, 2**32, 2**40, 2**63, 2**64 - 1, draw.randrange(2**64)])
        yield (
            lambda place=place, value=value: replaced(content, place, struct.pack("<Q", value)),
            lambda place=place: replaced(content, place, draw.randbytes(draw.randrange(1, 40))),
            lambda place=place: content[:place] + content[place + draw.randrange(1, 9) :],  # bytes are missing
            lambda place=place: content[:place] + draw.randbytes(3) + content[place:],
            lambda place=place: content[:place] + bytes(len(content) - place),  # zeros, as a full disk leaves them
            lambda place=place: content[:place] + content[draw.randrange(start) :],
            lambda place=place: replaced(content, place, b"\x1b[2J\n\xff\x00"),
            lambda value=value: replaced(content, draw.choice((8, 16)), struct.pack("<Q", value)),  # the counts
        )[number % 8]()


def test_a_file_with_a_damaged_head_is_read_or_refused_in_one_line(content, tmp_path):
    path, draw, num_refused = tmp_path / "wrong.gguf", random.Random(18), 0
    path.write_bytes(content)
    start, _ = ends(path)
    for wrong in damages(content, start, draw):
        path.write_bytes(wrong)
        for read in (
            lambda: [tensor.read() for tensor in gguf_file.open_source(path).tensors.values()],
            lambda: gguf_vocabulary.read(path, gguf_files.MODEL.vocab_size),
        ):
            try:
                read()
            except ValueError as error:
                assert str(error).startswith(str(path)) and str(error).isprintable() and len(str(error)) < 1000
                num_refused += 1
    assert 40 < num_refused < 80


NUM_BYTES = 3 << 30  # of a file that takes no space


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        (struct.pack("<IQQ", 3, 1, 1 << 40), "it has 1099511627776 keys; there may be 65536"),
        (struct.pack("<IQQ", 3, 1 << 40, 0), "it has 1099511627776 tensors; there may be 65536"),
        (struct.pack("<IQQ", 3, 0, 2), "key  occurs twice"),
        (struct.pack("<IQQQ", 3, 0, 1, 2 << 30), "the string at byte 32 has 2147483648 bytes; it may have 65535"),
        (
            struct.pack("<IQQQcIQ", 3, 0, 1, 1, b"a", 8, 2 << 30),
            "the string at byte 45 has 2147483648 bytes; it may have 16777216",
        ),
        (
            struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"a", 9, 0, 2 << 30),
            "the array at byte 49 has 2147483648 bytes; it may have 268435456",
        ),
        (
            struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"a", 9, 8, 1 << 40),
            "an array has 1099511627776 strings; there may be 100",
        ),
    ],
)
def test_a_damaged_count_in_a_large_file_takes_no_memory(head, problem, monkeypatch, tmp_path):
    monkeypatch.setattr(gguf_header, "MAX_LENGTH", 100)  # instead of seconds of empty strings
    path = tmp_path / "large.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + head)
        file.truncate(NUM_BYTES)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"large\.gguf is damaged or cut short: {problem}"):
            gguf_file.open_source(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
