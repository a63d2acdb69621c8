"""A SentencePiece model as this program uses it: text <-> ids, and the ids that mean something.

BOS and EOS are added as ids, once, and never parsed from text. Text that spells a control token (a document about chat
templates does) is encoded as the plain text it is, unless the caller says that the text is a template.
"""

import hashlib
import pathlib
import re
from collections.abc import Iterable

import numpy as np
import sentencepiece

SPACE = "\u2581"  # SentencePiece writes a space so, and reads this character back as a space
START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"
START_OF_IMAGE, END_OF_IMAGE = "<start_of_image>", "<end_of_image>"
# User-defined pieces that are no text: SentencePiece would parse all of them. HTML tags, runs of newlines, of spaces
# and of tabs are user-defined too, and are text.
_CONTROL = re.compile(
    r"<(?:pad|eos|bos|unk|mask|unused\d+|start_of_turn|end_of_turn|start_of_image|end_of_image|image_soft_token)>"
    r"|\[multimodal\]"
)
# Control tokens of other families: <|im_start|>, [INST], [/INST], <<SYS>>. Looked for among a model's own pieces.
_OTHER_CONTROL = re.compile(r"<\|.+\|>|\[/?[A-Z_]{2,}\]|<</?[A-Z]+>>")


class Tokenizer:
    """Any SentencePiece model; Gemma's control tokens are found by their names, and are None where it has none.

    Ids: `pad`, `eos`, `bos`, `start_of_turn`, `end_of_turn`, `start_of_image`, `end_of_image`. The last one has no name
    in Gemma 3's file: it is the id after `<start_of_image>`, and is inserted by id alone.
    Source: Gemma 3 report, section 2.2; ids from google-deepmind/gemma gm/text/_tokenizer.py.
    """

    def __init__(self, model: bytes):
        self.model = model
        self.digest = hashlib.sha256(model).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.size = self._processor.get_piece_size()
        self.pad, self.eos, self.bos = (
            found if found >= 0 else None
            for found in (self._processor.pad_id(), self._processor.eos_id(), self._processor.bos_id())
        )
        self.start_of_turn, self.end_of_turn = self._find(START_OF_TURN), self._find(END_OF_TURN)
        self.start_of_image, self.end_of_image = self._find(START_OF_IMAGE), self._find(END_OF_IMAGE)
        if self.end_of_image is None and self.start_of_image is not None and self.start_of_image + 1 < self.size:
            self.end_of_image = self.start_of_image + 1
        # A dummy prefix is for the start of a text, not for where it is cut. Two protocol buffers in a row are their
        # merger: normalizer_spec (3) with add_dummy_prefix (3) false.
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
        found = self._processor.piece_to_id(piece)
        return None if self._processor.is_unknown(found) else found

    def encode(self, text: str, *, parse_control: bool = False) -> list[int]:
        """The ids of a text, without BOS or EOS; `decode` gives the same text back where the model has byte fallback.

        `parse_control` turns text that spells a user-defined control token into that token: for templates alone.
        """
        special = re.compile(SPACE) if parse_control else self._special
        if not special.search(text):
            return self._processor.encode(text)
        ids: list[int] = []
        start, processor = 0, self._processor
        for match in special.finditer(text):
            if match[0] == SPACE and self._spells_bytes:  # else it would come back as a space
                ids += [*processor.encode(text[start : match.start()]), *self._space_ids]
                start, processor = match.end(), self._inner
            elif match[0] != SPACE:  # cut behind its first character: neither half is a control token
                ids += processor.encode(text[start : match.start() + 1])
                start, processor = match.start() + 1, self._inner
        return ids + processor.encode(text[start:])

    def decode(self, ids: Iterable) -> str:
        """The text of some ids; pad, eos and bos have none."""
        return self._processor.decode([int(token) for token in ids])

    def document(self, text: str) -> np.ndarray:
        """BOS, the ids of the text, EOS: what a model is pre-trained on. int32[T].

        Raises: ValueError if the model has no bos or eos.
        """
        if self.bos is None or self.eos is None:
            raise ValueError("the tokenizer has no <bos> or no <eos>, which every document starts and ends with")
        return np.asarray([self.bos, *self.encode(text), self.eos], np.int32)

    def has_turns(self) -> bool:
        """Whether the model has what a chat is written with."""
        return None not in (self.bos, self.start_of_turn, self.end_of_turn)

    def check_has_turns(self) -> None:
        """Raises: ValueError if the model has no markers of turns."""
        if not self.has_turns():
            raise ValueError("the tokenizer has no <bos>, <start_of_turn> or <end_of_turn>; chats need all three")

    def piece(self, token: int) -> str:
        """The piece as SentencePiece writes it."""
        return self._processor.id_to_piece(token)

    def num_bytes(self) -> np.ndarray:
        """int32[V]: bytes of UTF-8 text that each id stands for; control tokens 0. Bits per byte are counted by it."""
        processor, counts = self._processor, np.zeros(self.size, np.int32)
        for token in range(self.size):
            if processor.is_byte(token):
                counts[token] = 1
            elif not processor.is_control(token) and not processor.is_unknown(token):
                piece = processor.id_to_piece(token)
                counts[token] = 0 if self.is_control(piece) else len(piece.replace(SPACE, " ").encode())
        return counts


def load(path: pathlib.Path) -> Tokenizer:
    """The tokenizer in a SentencePiece file, or in a directory that holds `tokenizer.model`.

    Raises: ValueError if there is none.
    """
    file = path / "tokenizer.model" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{file} does not exist; a tokenizer is a SentencePiece model file, or a directory with one")
    if not (content := file.read_bytes()):  # SentencePiece makes a tokenizer of no pieces of it
        raise ValueError(f"{file} is not a SentencePiece model; it is empty")
    try:
        return Tokenizer(content)
    except RuntimeError as error:
        raise ValueError(f"{file} is not a SentencePiece model") from error


def check_same(got: str, expected: str, *, got_from: str, expected_from: str) -> None:
    """Refuses two things made with different tokenizers, by the digests they carry.

    Raises: ValueError that names both.
    """
    if got != expected:
        raise ValueError(
            f"{got_from} was made with tokenizer {got[:12]}, but {expected_from} with {expected[:12]}; "
            "use data and checkpoints of one tokenizer"
        )
