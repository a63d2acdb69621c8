"""A SentencePiece model as this program uses it: text <-> ids, and the ids of control tokens.

BOS and EOS are added as ids and never parsed from text. Text that spells a control token, as a document about chat
templates does, is encoded as plain text, unless the caller says that the text is a template.
"""

import hashlib
import pathlib
import re
from collections.abc import Iterable

import numpy as np
import sentencepiece

SPACE = "\u2581"  # SentencePiece's spelling of a space; it decodes this character to a space
A_TOKENIZER = "a tokenizer is a SentencePiece model file, a tokenizer.json, or a directory with one"
START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"
START_OF_IMAGE, END_OF_IMAGE = "<start_of_image>", "<end_of_image>"
# User-defined pieces that are not text. SentencePiece would parse all of them. HTML tags and runs of newlines, spaces
# and tabs are user-defined, too, but are text.
_CONTROL = re.compile(
    r"<(?:pad|eos|bos|unk|mask|unused\d+|start_of_turn|end_of_turn|start_of_image|end_of_image|image_soft_token)>"
    r"|\[multimodal\]"
)
# Control tokens of other families: <|im_start|>, [INST], [/INST], <<SYS>>. They count if the model has such pieces.
_OTHER_CONTROL = re.compile(r"<\|.+\|>|\[/?[A-Z_]{2,}\]|<</?[A-Z]+>>")


def is_control_name(piece: str) -> bool:
    """Whether a piece of this name is a control token, by the names of Gemma and of other families."""
    return bool(_CONTROL.fullmatch(piece) or _OTHER_CONTROL.fullmatch(piece))


class Tokenizer:
    """Any SentencePiece model. The ids of Gemma's control tokens are looked up by name, and are None if it has none.

    They are `pad`, `eos`, `bos`, `start_of_turn`, `end_of_turn`, `start_of_image` and `end_of_image`. The last one has
    no name in Gemma 3's file: it is the id after `<start_of_image>`, and is inserted by id only.
    Source: Gemma 3 report, section 2.2; ids from google-deepmind/gemma gm/text/_tokenizer.py.
    """

    def __init__(self, model: bytes):
        self.model = model
        self.digest = hashlib.sha256(model).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.size = self._processor.get_piece_size()
        self.pad, self.eos, self.bos = (
            token if token >= 0 else None
            for token in (self._processor.pad_id(), self._processor.eos_id(), self._processor.bos_id())
        )
        self.unk = self._processor.unk_id()  # every model has it
        self.start_of_turn, self.end_of_turn = self._find(START_OF_TURN), self._find(END_OF_TURN)
        self.start_of_image, self.end_of_image = self._find(START_OF_IMAGE), self._find(END_OF_IMAGE)
        if self.end_of_image is None and self.start_of_image is not None and self.start_of_image + 1 < self.size:
            self.end_of_image = self.start_of_image + 1
        # A dummy prefix belongs at the start of a text, not where it is cut. Concatenated protocol buffers are merged:
        # this one has normalizer_spec (3) with add_dummy_prefix (3) false.
        self._inner = sentencepiece.SentencePieceProcessor(model_proto=model + b"\x1a\x02\x18\x00")
        others = filter(_OTHER_CONTROL.fullmatch, (self._processor.id_to_piece(token) for token in range(self.size)))
        patterns = [_CONTROL.pattern, *map(re.escape, sorted(others, key=len, reverse=True))]
        self.is_control = re.compile("|".join(patterns)).fullmatch
        self._special = re.compile("|".join([*patterns, SPACE]))
        self._space_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self._spells_bytes = self._processor.is_byte(self._space_ids[0])

    def __reduce__(self):
        return Tokenizer, (self.model,)

    def _find(self, piece: str) -> int | None:
        token = self._processor.piece_to_id(piece)
        return None if self._processor.is_unknown(token) else token

    def encode(self, text: str, *, parse_control: bool = False) -> list[int]:
        """Returns the ids of a text, without BOS or EOS. If the model has byte fallback, `decode` reverses it.

        `parse_control` is for templates only: text that spells a user-defined control token becomes that token.
        """
        special = re.compile(SPACE) if parse_control else self._special
        if not special.search(text):
            return self._processor.encode(text)
        ids: list[int] = []
        start, processor = 0, self._processor
        for match in special.finditer(text):
            if match[0] == SPACE and self._spells_bytes:  # otherwise it would be decoded to a space
                ids += [*processor.encode(text[start : match.start()]), *self._space_ids]
                start, processor = match.end(), self._inner
            elif match[0] != SPACE:  # cut after its first character: neither half is a control token
                ids += processor.encode(text[start : match.start() + 1])
                start, processor = match.start() + 1, self._inner
        return ids + processor.encode(text[start:])

    def decode(self, ids: Iterable) -> str:
        """Returns the text of ids; pad, eos and bos have none."""
        return self._processor.decode([int(token) for token in ids])

    def document(self, text: str) -> np.ndarray:
        """Returns BOS, the ids of the text and EOS, int32[T], as a model is pre-trained on them.

        Raises: ValueError if the model has no bos or eos.
        """
        if self.bos is None or self.eos is None:
            raise ValueError("the tokenizer has no <bos> or no <eos>, which start and end every document")
        return np.asarray([self.bos, *self.encode(text), self.eos], np.int32)

    def has_turns(self) -> bool:
        """Whether the model has the control tokens of a chat."""
        return None not in (self.bos, self.start_of_turn, self.end_of_turn)

    def check_has_turns(self) -> None:
        """Raises: ValueError if the model lacks a control token of a chat."""
        if not self.has_turns():
            raise ValueError("the tokenizer has no <bos>, <start_of_turn> or <end_of_turn>; chats need all three")

    def piece(self, token: int) -> str:
        """Returns the piece as SentencePiece spells it."""
        return self._processor.id_to_piece(token)

    def num_bytes(self) -> np.ndarray:
        """Returns the bytes of UTF-8 text that each id stands for, int32[V]; 0 for control tokens."""
        processor, counts = self._processor, np.zeros(self.size, np.int32)
        for token in range(self.size):
            if processor.is_byte(token):
                counts[token] = 1
            elif not processor.is_control(token) and not processor.is_unknown(token):
                piece = processor.id_to_piece(token)
                counts[token] = 0 if self.is_control(piece) else len(piece.replace(SPACE, " ").encode())
        return counts


def load(file: pathlib.Path) -> Tokenizer:
    """Returns the tokenizer in a SentencePiece file. Raises: ValueError if there is none."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist; {A_TOKENIZER}")
    if not (content := file.read_bytes()):  # SentencePiece would load it as a tokenizer without pieces
        raise ValueError(f"{file} is not a SentencePiece model; it is empty")
    try:
        return Tokenizer(content)
    except (RuntimeError, UnicodeDecodeError) as error:  # the latter for a piece that is not UTF-8
        raise ValueError(f"{file} is not a SentencePiece model") from error


def check_same(got: str, expected: str, *, got_from: str, expected_from: str) -> None:
    """Raises: ValueError naming two things that were made with different tokenizers, by their digests."""
    if got != expected:
        raise ValueError(
            f"{got_from} was made with tokenizer {got[:12]}, but {expected_from} with {expected[:12]}; "
            "use data and checkpoints of one tokenizer"
        )
