"""A tokenizer as the metadata of a GGUF file, from which llama.cpp encodes text to the same ids.

There are two exceptions: llama.cpp takes U+2581 itself for a space, and where it parses control tokens it also parses
`<pad>`, `<eos>`, `<bos>` and `<end_of_image>`, which this program inserts by id only.
"""

import gguf

from gemma3_jax.tokenizer import pieces, templates, vocabulary


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
