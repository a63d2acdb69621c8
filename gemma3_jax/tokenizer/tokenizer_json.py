"""A tokenizer as tokenizer.json, from which Hugging Face's `tokenizers` encodes text to the same ids.

Three things differ: a text's own U+2581 is a space there; text that spells a control token becomes that token; and
where two ways to merge the same characters overlap, the library does not always take the leftmost.
Source: huggingface/tokenizers; huggingface/transformers convert_slow_tokenizer.py (GemmaConverter).
"""

import json

from gemma3_jax.tokenizer import pieces, vocabulary

FILE = "tokenizer.json"


def write(tokenizer: vocabulary.Tokenizer) -> str:
    """Returns the content of the file. Raises: ValueError if BPE with byte fallback cannot express the tokenizer."""
    listed = pieces.listed(tokenizer)
    _check(tokenizer, listed)
    vocab = {_spelled(piece): token for token, piece in enumerate(listed)}
    if len(vocab) < len(listed):
        raise ValueError("two pieces of the tokenizer are alike; tokenizer.json tells pieces apart by their text")
    unknown = next(piece.text for piece in listed if piece.kind == pieces.PieceKind.UNKNOWN)
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(token, piece) for token, piece in enumerate(listed) if piece.kind in _ADDED],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": vocabulary.SPACE},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": _starts_with(tokenizer, listed),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": vocabulary.SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": _merges(listed),
        },
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"


def _check(tokenizer: vocabulary.Tokenizer, listed: list[pieces.VocabularyPiece]) -> None:
    pieces.check_merges_alone(tokenizer)
    if pieces.adds_space_prefix(tokenizer):
        raise ValueError("the tokenizer puts a space before a text; GemmaTokenizer of Transformers does not")
    if any(piece.kind == pieces.PieceKind.UNUSED for piece in listed):
        raise ValueError("the tokenizer has unused pieces, which SentencePiece splits again; `tokenizers` does not")
    characters = {piece.text: piece.kind for piece in listed if len(piece.text) == 1}
    for piece in listed:
        kinds = {characters.get(character) for character in piece.text}
        # Neither program merges a user-defined piece with what is beside it.
        if piece.kind == pieces.PieceKind.NORMAL and None in kinds and pieces.PieceKind.USER_DEFINED not in kinds:
            raise ValueError(
                f"piece {piece.text!r} of the tokenizer has a character that is no piece; SentencePiece merges it, "
                "`tokenizers` spells it in bytes"
            )


_ADDED = (pieces.PieceKind.CONTROL, pieces.PieceKind.UNKNOWN, pieces.PieceKind.USER_DEFINED)


def _spelled(piece: pieces.VocabularyPiece) -> str:
    """Returns the text of a piece in the vocabulary, where spaces are U+2581."""
    return piece.text.replace(" ", vocabulary.SPACE)


def _added(token: int, piece: pieces.VocabularyPiece) -> dict:
    """Returns an entry that is parsed before anything is merged; runs of spaces in the text where spaces are U+2581."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": " " in piece.text}
    return {"id": token, "content": _spelled(piece), **flags, "special": piece.kind != pieces.PieceKind.USER_DEFINED}


def _starts_with(tokenizer: vocabulary.Tokenizer, listed: list[pieces.VocabularyPiece]) -> dict | None:
    """Returns the step that puts BOS before a text."""
    if tokenizer.bos is None:
        return None
    bos = listed[tokenizer.bos].text
    one = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    two = [{"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    tokens = {bos: {"id": bos, "ids": [tokenizer.bos], "tokens": [bos]}}
    return {"type": "TemplateProcessing", "single": one, "pair": one + two, "special_tokens": tokens}


def _merges(listed: list[pieces.VocabularyPiece]) -> list[tuple[str, str]]:
    """Returns every way to make a piece of two, in the order in which SentencePiece merges."""
    normal = [piece for piece in listed if piece.kind == pieces.PieceKind.NORMAL]
    texts = {piece.text for piece in normal}
    normal.sort(key=lambda piece: -piece.score)  # equal ones stay in the order of their ids
    return [
        (piece.text[:cut], piece.text[cut:])
        for piece in normal
        for cut in range(1, len(piece.text))
        if piece.text[:cut] in texts and piece.text[cut:] in texts
    ]
