"""Trains a SentencePiece model with Gemma's settings, of any size.

The control ids are Gemma's: 0-3 pad, eos, bos, unk; 4, 5 `<mask>`, `[multimodal]`; 6-104 unused; 105, 106 turns;
107-137 runs of newlines; 138-167 runs of 2-31 spaces; 168-237 HTML tags; 238-493 bytes; then the learned pieces; and at
the end, as from 255,968 on in the vocabulary of 262,144: runs of tabs, `<start_of_image>`, and unused.
Source: trainer_spec of Gemma 3's tokenizer; Gemma 3 report, section 2.2.
"""

import io
import itertools
import re
from collections.abc import Iterable, Iterator

import sentencepiece

from gemma3_jax.tokenizer import protobuf, vocabulary

# The 70 tags are Gemma's, from <table> to </footer>; the order between those is not published.
_TAG_GROUPS = (
    ("table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td"),
    ("h1", "h2", "h3", "h4", "h5", "h6", "blockquote"),
    ("strong", "em", "b", "i", "u", "s", "sub", "sup", "code"),
    ("a", "html", "body", "img", "span", "bbox", "ruby", "rt", "rp", "aside", "footer"),
)
_TAGS = [f"<{slash}{tag}>" for group in _TAG_GROUPS for slash in ("", "/") for tag in group]
_HEAD = [
    "<mask>",
    "[multimodal]",
    *(f"<unused{number}>" for number in range(99)),
    vocabulary.START_OF_TURN,
    vocabulary.END_OF_TURN,
    *("\n" * length for length in range(1, 32)),
    *(vocabulary.SPACE * length for length in range(2, 32)),
    *_TAGS,
]
_TABS = ["\t" * length for length in range(1, 32)]
NUM_FIXED = 4 + len(_HEAD) + 256  # ids before the first learned piece
GEMMA_SIZE, GEMMA_LEARNED_END = 262_144, 255_968


def train(texts: Iterable[str], size: int) -> bytes:
    """Returns a SentencePiece model file, the same for the same texts in the same order. All texts are held in memory.

    Raises: ValueError if `size` is too small for the fixed pieces and the characters of the texts, or too large for the
    pieces that they have.
    """
    check_size(size)
    tail = last_pieces(size)
    texts = iter(texts)
    first = next(texts, None)
    if first is None:
        raise ValueError("there is no text to train a tokenizer on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(itertools.chain([first], texts)),
            model_writer=model,
            model_type="bpe",
            vocab_size=size - len(tail),
            split_digits=True,
            split_by_number=True,
            split_by_unicode_script=True,
            split_by_whitespace=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            max_sentencepiece_length=16,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            pad_piece="<pad>",
            eos_piece="<eos>",
            bos_piece="<bos>",
            unk_piece="<unk>",
            user_defined_symbols=_HEAD,
            max_sentence_length=1 << 30,  # longer ones would be dropped silently
            minloglevel=2,
        )
    except RuntimeError as error:
        most, least = (re.search(text, str(error)) for text in (r"too high .*<= (\d+)", r"smaller than .* vs (\d+)"))
        reason = f"they fill {int(most[1]) + len(tail)} at most" if most else str(error)
        reason = f"their characters alone need {int(least[1]) + len(tail)}" if least else reason
        raise ValueError(f"no tokenizer of {size} pieces can be trained on these texts: {reason}") from error
    return _append(model.getvalue(), tail)


def check_size(size: int) -> None:
    """Raises: ValueError if `size` has no room for learned pieces."""
    num_fixed = NUM_FIXED + len(last_pieces(size))
    if size <= num_fixed:
        raise ValueError(
            f"a tokenizer of {size} pieces has no room beside the {num_fixed} fixed ones (control, bytes, whitespace, "
            "HTML); make its size larger"
        )


def last_pieces(size: int) -> list[str]:
    """Returns the user-defined pieces after the learned ones; a small vocabulary has only one unused piece."""
    num_unused = GEMMA_SIZE - GEMMA_LEARNED_END - len(_TABS) - 1 if size == GEMMA_SIZE else 1
    return [*_TABS, vocabulary.START_OF_IMAGE, *(f"<unused{99 + number}>" for number in range(num_unused))]


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield text.replace(
            "\u2585", " "
        )  # the trainer's mark for unknown characters: it skips a text that contains one


def _append(model: bytes, pieces: list[str]) -> bytes:
    """Returns a model file with user-defined pieces appended. Concatenated protocol buffers are merged.

    Source: sentencepiece_model.proto (pieces = 1: piece = 1, type = 3; trainer_spec = 2: vocab_size = 4).
    """
    model += b"".join(protobuf.field(1, protobuf.field(1, piece.encode()) + protobuf.field(3, 4)) for piece in pieces)
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    return model + protobuf.field(2, protobuf.field(4, size))
