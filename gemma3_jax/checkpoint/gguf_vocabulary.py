"""A tokenizer as the metadata of a GGUF file, from which llama.cpp encodes text to the same ids.

There are two exceptions: llama.cpp takes U+2581 itself for a space, and where it parses control tokens it also parses
`<pad>`, `<eos>`, `<bos>` and `<end_of_image>`, which this program inserts by id only.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import gguf

from gemma3_jax.checkpoint import gguf_header
from gemma3_jax.tokenizer import pieces, templates, vocabulary

# Role -> the name of Gemma's piece, which counts: some files of instruct models name <end_of_turn> as the EOS.
_NAMES = {"unk": "<unk>", "bos": "<bos>", "eos": "<eos>", "pad": "<pad>"}
_TYPES = {
    "tokens": (gguf.GGUFValueType.STRING,),
    "scores": (gguf.GGUFValueType.FLOAT32,),
    "token_type": (gguf.GGUFValueType.INT32, gguf.GGUFValueType.UINT32),
}
_IDS = {"unk": "unknown_token_id", "bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id"}


def check(tokenizer: vocabulary.Tokenizer, vocab_size: int) -> None:
    """Raises: ValueError if the tokenizer is another model's, or if llama.cpp would encode text in another way."""
    if tokenizer.size > vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.size} pieces, the model's table {vocab_size} rows; it is another model's"
        )
    if tokenizer.bos is None or tokenizer.eos is None:
        raise ValueError(
            "the tokenizer has no <bos> or no <eos>; llama.cpp starts a text with <bos> and stops at <eos>"
        )
    pieces.check_merges_alone(tokenizer)


def write(tokenizer: vocabulary.Tokenizer, vocab_size: int, writer: gguf.GGUFWriter) -> None:
    """Adds the keys of a tokenizer that `check` has passed. Ids beyond its last get pieces that occur in no text."""
    listed = pieces.listed(tokenizer)
    filled = [
        pieces.VocabularyPiece(f"[PAD{token}]", -1000.0, pieces.PieceKind.UNUSED)
        for token in range(len(listed), vocab_size)
    ]
    listed += filled
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.text.encode() for piece in listed])
    writer.add_token_scores([piece.score for piece in listed])
    writer.add_token_types([int(piece.kind) for piece in listed])
    writer.add_bos_token_id(tokenizer.bos)
    writer.add_eos_token_id(tokenizer.eos)
    unknown = [token for token, piece in enumerate(listed) if piece.kind == pieces.PieceKind.UNKNOWN]
    writer.add_unk_token_id(unknown[0])  # every SentencePiece model has one
    if tokenizer.pad is not None:
        writer.add_pad_token_id(tokenizer.pad)
    if tokenizer.has_turns():
        writer.add_eot_token_id(tokenizer.end_of_turn)
        writer.add_chat_template(templates.JINJA)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(pieces.adds_space_prefix(tokenizer))


def read(path: pathlib.Path, vocab_size: int) -> vocabulary.Tokenizer:
    """Returns the tokenizer in a file, of at most `vocab_size` pieces, rebuilt as a SentencePiece model.

    Pieces that only fill the table are left out.
    Raises: ValueError naming the file if it holds no list of SentencePiece pieces. OSError.
    """
    metadata, _ = gguf_header.read(path)
    try:
        listed, roles = _listed(metadata, vocab_size)
        # Gemma's tokenizers add no space; Ollama's files do not say so.
        adds_space_prefix = metadata.get("tokenizer.ggml.add_space_prefix", False) is True
        names = {role: roles.get(role, "") for role in ("bos", "eos", "pad")}
        return vocabulary.Tokenizer(pieces.build(listed, **names, adds_space_prefix=adds_space_prefix))
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} holds no tokenizer that this program reads: {error}") from error


def _listed(metadata: Mapping[str, Any], vocab_size: int) -> tuple[list[pieces.VocabularyPiece], dict[str, str]]:
    """Returns the pieces, and which of them are unk, bos, eos and pad."""
    if (model := metadata.get("tokenizer.ggml.model")) != "llama":
        raise ValueError(f"tokenizer.ggml.model is {model!r:.40}; it must be llama, which is SentencePiece's BPE")
    texts, scores, kinds = _arrays(metadata)
    if len({score for score, kind in zip(scores, kinds, strict=True) if kind == pieces.PieceKind.NORMAL}) == 1:
        raise ValueError("tokenizer.ggml.scores are all alike, so the order of merges is not known")
    size = min(len(texts), vocab_size)
    while size and kinds[size - 1] == pieces.PieceKind.UNUSED and texts[size - 1] == f"[PAD{size - 1}]":
        size -= 1
    ids = {text: token for token, text in enumerate(texts[:size])}
    roles = {}
    for role, name in _NAMES.items():
        token = ids.get(name, metadata.get(f"tokenizer.ggml.{_IDS[role]}"))
        if type(token) is int and 0 <= token < size:
            roles[role] = texts[token]
    if "unk" not in roles:
        raise ValueError(f"no piece is {_NAMES['unk']}, and tokenizer.ggml.{_IDS['unk']} names none")
    listed = [
        pieces.VocabularyPiece(text.replace(" ", vocabulary.SPACE), score, _kind(text, kind, roles))
        for text, score, kind in zip(texts[:size], scores[:size], kinds[:size], strict=True)
    ]
    return listed, roles


def _arrays(metadata: Mapping[str, Any]) -> tuple[list[str], list[float], list[int]]:
    """Returns the texts, scores and kinds of all pieces."""
    values = []
    for key, types in _TYPES.items():
        array = metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(array, gguf_header.MetadataArray) or array.type not in types:
            raise ValueError(f"tokenizer.ggml.{key} is missing, or no list of {types[0].name}")
        values.append(gguf_header.array_values(array))
    tokens, scores, kinds = values
    if not len(tokens) == len(scores) == len(kinds):
        raise ValueError(f"it has {len(tokens)} tokens, {len(scores)} scores and {len(kinds)} types of tokens")
    texts = []
    for token, content in enumerate(tokens):
        try:
            texts.append(content.decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"token {token} is not UTF-8: {error}") from error
    if unknown := set(kinds.tolist()) - set(pieces.PieceKind):
        raise ValueError(
            f"tokenizer.ggml.token_type has {min(unknown)}; it must be one of 1 to {len(pieces.PieceKind)}"
        )
    return texts, scores.tolist(), kinds.tolist()


def _kind(text: str, kind: int, roles: Mapping[str, str]) -> pieces.PieceKind:
    """Returns the kind of a piece in SentencePiece's file, by its name where writers of GGUF disagree.

    The control tokens of templates are user-defined there; in GGUF they are of kind CONTROL, or of any other.
    """
    if text == roles.get("unk"):
        return pieces.PieceKind.UNKNOWN
    if text in roles.values() or text == vocabulary.END_OF_IMAGE:
        return pieces.PieceKind.CONTROL
    if pieces.is_byte_name(text):
        return pieces.PieceKind.BYTE
    if vocabulary.is_control_name(text):
        return pieces.PieceKind.USER_DEFINED
    return pieces.PieceKind(kind)
