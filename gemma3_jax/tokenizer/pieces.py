"""A SentencePiece model as a list of pieces with scores and kinds, for engines without SentencePiece.

The file is a protocol buffer, read here because the classes that SentencePiece ships need a protobuf that Beam refuses.
Source: sentencepiece_model.proto; ggml-org/llama.cpp src/llama-vocab.cpp and gguf-py/gguf/constants.py (TokenType).
"""

import dataclasses
import enum
import struct
from collections.abc import Iterator

from gemma3_jax.tokenizer import vocabulary


class PieceKind(enum.IntEnum):
    """The kind of a piece, in the numbers that SentencePiece and GGUF share."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # parsed in text only on request
    USER_DEFINED = 4  # parsed in any text, before merging
    UNUSED = 5
    BYTE = 6


@dataclasses.dataclass(frozen=True)
class VocabularyPiece:
    text: str
    score: float
    kind: PieceKind


def listed(tokenizer: vocabulary.Tokenizer) -> list[VocabularyPiece]:
    """Returns the pieces by their ids, for an engine that parses user-defined ones first: it encodes as `encode` does.

    Three things differ from the file. Control tokens that SentencePiece would parse in any text are of kind CONTROL;
    runs of spaces are spelled with spaces; and the id of `<end_of_image>` has this name, which Gemma 3's file lacks.
    """
    pieces = []
    for token, message in enumerate(content for number, content in _fields(tokenizer.model) if number == 1):
        fields = dict(_fields(message))
        text, kind = fields[1].decode(), PieceKind(fields.get(3, PieceKind.NORMAL))
        if token == tokenizer.end_of_image:
            text = vocabulary.END_OF_IMAGE
        if kind == PieceKind.USER_DEFINED:
            kind = PieceKind.CONTROL if tokenizer.is_control(text) else kind
            text = text.replace(vocabulary.SPACE, " ")
        (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
        pieces.append(VocabularyPiece(text, score, kind))
    return pieces


def adds_space_prefix(tokenizer: vocabulary.Tokenizer) -> bool:
    """Whether text is encoded as if it started with a space."""
    _, normalizer = _settings(tokenizer)
    return bool(normalizer.get(3, 1))


def check_merges_alone(tokenizer: vocabulary.Tokenizer) -> None:
    """Refuses a model that does more than merge pairs of pieces by their scores, and spell the rest in bytes.

    llama.cpp spells whatever has no piece in bytes, and crashes if there are none.
    Raises: ValueError saying what the model does.
    """
    trainer, normalizer = _settings(tokenizer)
    for is_true, problem in (
        (trainer.get(3, 1) != 2, "is no BPE model (it may be a unigram one)"),
        (bool(normalizer.get(2)), "normalizes text by a table of characters"),
        (bool(normalizer.get(4, 1)), "removes extra spaces"),
        (bool(trainer.get(24, 0)), "puts the space behind a word"),
        (not trainer.get(35, 0), "has no pieces for bytes"),
    ):
        if is_true:
            raise ValueError(f"the tokenizer {problem}; an engine without SentencePiece would encode in another way")


def _settings(tokenizer: vocabulary.Tokenizer) -> tuple[dict, dict]:
    """Returns trainer_spec and normalizer_spec by field number; several messages of one kind are merged."""
    specs: tuple[dict, dict] = {}, {}
    for number, content in _fields(tokenizer.model):
        if number in (2, 3):
            specs[number - 2].update(_fields(content))
    return specs


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields the fields of a protocol buffer with their numbers: varints as int, all others as bytes."""
    offset = 0

    def varint() -> int:
        nonlocal offset
        value = shift = 0
        while True:
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
        yield number, message[offset : offset + size]
        offset += size
