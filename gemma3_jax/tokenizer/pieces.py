"""A SentencePiece model as a list of pieces with scores and kinds, for engines without SentencePiece.

Source: sentencepiece_model.proto; ggml-org/llama.cpp src/llama-vocab.cpp and gguf-py/gguf/constants.py (TokenType).
"""

import dataclasses
import enum
import re
import struct
from collections.abc import Iterator, Mapping, Sequence

from gemma3_jax.tokenizer import protobuf, vocabulary


class PieceKind(enum.IntEnum):
    """The kind of a piece, in the numbers that SentencePiece and GGUF share."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # parsed in text only on request
    USER_DEFINED = 4  # parsed in any text, before merging
    UNUSED = 5
    BYTE = 6


is_byte_name = re.compile(r"<0x[0-9A-F]{2}>").fullmatch  # whether a piece is spelled as a byte
_KINDS = {int(kind): kind for kind in PieceKind}  # of others, a protocol buffer has the default


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
    for token, message in enumerate(content for number, content in _messages(tokenizer.model) if number == 1):
        fields = dict(protobuf.fields(message))
        text, kind = fields[1].decode(), _KINDS.get(fields.get(3), PieceKind.NORMAL)
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
    for number, content in _messages(tokenizer.model):
        if number in (2, 3):
            specs[number - 2].update(protobuf.fields(content))
    return specs


def _messages(model: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the fields of a model that are messages; SentencePiece skips what is of another type."""
    return ((number, content) for number, content in protobuf.fields(model) if isinstance(content, bytes))


def build(listed: Sequence[VocabularyPiece], *, bos: str, eos: str, pad: str, adds_space_prefix: bool = False) -> bytes:
    """Returns a SentencePiece model that merges pairs by their scores, with byte fallback and no change to spaces.

    `bos`, `eos` and `pad` are texts of pieces of kind CONTROL, or of none.
    Source: sentencepiece_model.proto (TrainerSpec, NormalizerSpec).
    """
    unknown = next(piece.text for piece in listed if piece.kind == PieceKind.UNKNOWN)
    ids = {piece.text: token for token, piece in enumerate(listed)}
    trainer = {3: 2, 4: len(listed), 35: 1, 40: ids[unknown], 45: unknown.encode()}
    for number, text in ((41, bos), (42, eos), (43, pad)):
        if text in ids:
            trainer |= {number: ids[text], number + 5: text.encode()}
    normalizer = {1: b"identity", 3: int(adds_space_prefix), 4: 0, 5: 1}
    specs = (b"".join(protobuf.field(*item) for item in spec.items()) for spec in (trainer, normalizer))
    return b"".join(map(_message, listed)) + b"".join(
        protobuf.field(2 + number, spec) for number, spec in enumerate(specs)
    )


def replaced(model: bytes, changes: Mapping[int, VocabularyPiece]) -> bytes:
    """Returns a SentencePiece model with other pieces at some ids; new ids follow the last one without a gap."""
    content, num_pieces = [], 0
    for number, value in _messages(model):
        is_changed = number == 1 and num_pieces in changes
        content.append(_message(changes[num_pieces]) if is_changed else protobuf.field(number, value))
        num_pieces += number == 1
    new = range(num_pieces, 1 + max([num_pieces - 1, *changes]))
    size = protobuf.field(2, protobuf.field(4, num_pieces + len(new)))
    return b"".join([*content, *(_message(changes[token]) for token in new), size])


def _message(piece: VocabularyPiece) -> bytes:
    score = b"\x15" + struct.pack("<f", piece.score)
    return protobuf.field(1, protobuf.field(1, piece.text.encode()) + score + protobuf.field(3, int(piece.kind)))
