"""A SentencePiece model as engines without SentencePiece hold it: pieces with scores and kinds, merged best first.

The file is a protocol buffer. The generated classes that SentencePiece ships ask for a protobuf that Beam refuses.
Source: sentencepiece_model.proto; ggml-org/llama.cpp src/llama-vocab.cpp and gguf-py/gguf/constants.py (TokenType).
"""

import dataclasses
import enum
import struct
from collections.abc import Iterator

from gemma3_jax.tokenizer import vocabulary


class Kind(enum.IntEnum):
    """What a piece is, in the numbers that SentencePiece and GGUF share."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # found in text only by those who ask for it
    USER_DEFINED = 4  # found in any text, before all merging
    UNUSED = 5
    BYTE = 6


@dataclasses.dataclass(frozen=True)
class Piece:
    text: str
    score: float
    kind: Kind


def listed(tokenizer: vocabulary.Tokenizer) -> list[Piece]:
    """The pieces by their ids, so that an engine that looks for user-defined ones first encodes text as `encode` does.

    A control token that SentencePiece would find in any text is of kind CONTROL; a run of spaces is spelled with
    spaces, as it stands in text; `<end_of_image>`, whose id has another name in Gemma 3's file, goes by this one.
    """
    pieces = []
    for token, message in enumerate(content for number, content in _fields(tokenizer.model) if number == 1):
        fields = dict(_fields(message))
        text, kind = fields[1].decode(), Kind(fields.get(3, Kind.NORMAL))
        if token == tokenizer.end_of_image:
            text = vocabulary.END_OF_IMAGE
        if kind == Kind.USER_DEFINED:
            kind = Kind.CONTROL if tokenizer.is_control(text) else kind
            text = text.replace(vocabulary.SPACE, " ")
        (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
        pieces.append(Piece(text, score, kind))
    return pieces


def adds_space_prefix(tokenizer: vocabulary.Tokenizer) -> bool:
    """Whether text is encoded as if a space stood before it."""
    _, normalizer = _settings(tokenizer)
    return bool(normalizer.get(3, 1))


def check_merges_alone(tokenizer: vocabulary.Tokenizer) -> None:
    """Refuses a model that does more than to merge pairs of pieces by their scores, and to spell the rest in bytes.

    llama.cpp looks for the bytes of whatever has no piece, and stops where there are none.
    Raises: ValueError saying what it does.
    """
    trainer, normalizer = _settings(tokenizer)
    for is_so, what in (
        (trainer.get(3, 1) != 2, "is no BPE model (it may be a unigram one)"),
        (bool(normalizer.get(2)), "normalises text by a table of characters"),
        (bool(normalizer.get(4, 1)), "removes extra spaces"),
        (bool(trainer.get(24, 0)), "puts the space behind a word"),
        (not trainer.get(35, 0), "has no pieces for bytes"),
    ):
        if is_so:
            raise ValueError(f"the tokenizer {what}; an engine without SentencePiece would not encode as it does")


def _settings(tokenizer: vocabulary.Tokenizer) -> tuple[dict, dict]:
    """trainer_spec and normalizer_spec by their fields' numbers; two messages of one kind are their merger."""
    specs: tuple[dict, dict] = {}, {}
    for number, content in _fields(tokenizer.model):
        if number in (2, 3):
            specs[number - 2].update(_fields(content))
    return specs


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer with their numbers: whole numbers as such, all else as its bytes."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while place < len(message):
        number, wire_type = divmod(varint(), 8)
        if wire_type == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}.get(wire_type) or varint()
        yield number, message[place : place + size]
        place += size
