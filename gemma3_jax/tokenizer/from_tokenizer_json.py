"""A SentencePiece model made of a tokenizer.json, and checked to encode and decode as that does.

The pieces are in the order of their ids; the order of the merges gives their scores.
Source: huggingface/tokenizers tokenizers/src/models/bpe; google/sentencepiece src/bpe_model.cc.
"""

import itertools
import pathlib
from collections.abc import Collection, Mapping, Sequence

from gemma3_jax.durable import json_file
from gemma3_jax.tokenizer import pieces, vocabulary

IMAGE = "<image_soft_token>"  # the placeholder of an image, behind the pieces of Gemma 3: no text has it
# In every way that a text is normalized, cut and spelled: digits, spaces, lines, tabs, scripts, emoji, bytes, tags.
SAMPLE = (
    "The year 2024, or 12345: digits; one    run   of" + " " * 31 + "spaces,\ta tab\t\tand two\n\n\nlines  \r\n\n"
    "def f(x):\n    return x ** 2  # caf\u00e9 na\u00efve \u6f22\u5b57\u4eee\u540d \U0001f600\U0001f1e9\U0001f1ea "
    "\x00\x7f e\u0301 \u00a0 \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 "
    "<table><tr><td>a</td></tr></table> <b>bold</b> &amp; a_b-c/d\\e 'x' \"y\" {z} \ufb01 \u2126 A\u030a"
)


def model_of(
    path: pathlib.Path, content: dict, added: Mapping[int, pieces.VocabularyPiece], *, bos: str, eos: str, pad: str
) -> bytes:
    """Returns the SentencePiece model of a file and its content.

    `added` has all added tokens; `bos`, `eos` and `pad` may be none of them.
    Raises: ValueError naming the file, if it is damaged, or of a tokenizer that SentencePiece encodes otherwise; or if
    the library is not installed, which it is compared with.
    """
    try:
        import tokenizers  # of the extra [hf]
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path} is compared with `tokenizers`, which is not installed; pip install 'gemma3_jax[hf]', or put "
            "tokenizer.model beside it"
        ) from error
    try:
        listed = _listed(content, added, controls=(bos, eos, pad))
        model = pieces.build(listed, bos=bos, eos=eos, pad=pad)
        try:
            reference = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no other class
            raise ValueError(f"`tokenizers` does not read it: {error}") from error
        _check_alike(vocabulary.Tokenizer(model), reference, listed)
    except (ValueError, RuntimeError) as error:  # of SentencePiece, such as for two pieces of one text
        raise ValueError(f"{path}: {error}") from error
    return model


def check_vocabulary(
    path: pathlib.Path, content: dict, tokenizer: vocabulary.Tokenizer, *, renamed: Collection[int]
) -> None:
    """Raises: ValueError if the pieces of a tokenizer.json are not those of the tokenizer beside it.

    `renamed` has the ids of pieces that have the names of added tokens.
    """
    texts = {token: tokenizer.piece(token) for token in range(tokenizer.size)}
    for text, token in _vocab(content, f"{path}: ").items():
        # Transformers gives a tab that is no piece the id of its byte.
        spellings = (text, text.replace(" ", vocabulary.SPACE), f"<0x{ord(text):02X}>" if len(text) == 1 else text)
        if texts.get(token) in spellings or token == tokenizer.end_of_image:
            continue
        if token in renamed:
            raise ValueError(
                f"{path} has {text!r:.40} for id {token} in model.vocab, but an added token of that id is "
                f"{texts[token]!r:.40}, which Transformers would give another id; rename it in model.vocab too"
            )
        raise ValueError(
            f"{path} has {text!r:.40} for id {token}, tokenizer.model beside it {texts.get(token)!r:.40}; they are of "
            "two tokenizers: remove one of them"
        )


def _vocab(content: dict, prefix: str = "") -> dict[str, int]:
    json_file.check(content, {"model": {"vocab": dict}}, f"{prefix}its content")
    vocab = content["model"]["vocab"]
    if not set(map(type, vocab.values())) <= {int}:
        raise ValueError(f"{prefix}model.vocab has ids that are no integers")
    if vocab and vocab.get(IMAGE) == max(vocab.values()):
        vocab = {text: token for text, token in vocab.items() if text != IMAGE}
    return vocab


def _listed(
    content: dict, added: Mapping[int, pieces.VocabularyPiece], controls: tuple[str, ...]
) -> list[pieces.VocabularyPiece]:
    """Returns the pieces by their ids."""
    json_file.check(content, {"model": {"type": str, "merges": list}}, "its content")
    model, vocab = content["model"], _vocab(content)
    _check_steps(content, model)
    unknown = model.get("unk_token")
    texts = {token: text for text, token in vocab.items()} | {token: piece.text for token, piece in added.items()}
    if sorted(texts) != list(range(len(texts))):
        raise ValueError(f"the ids of its {len(texts)} pieces are not 0 to {len(texts) - 1}")
    if not isinstance(unknown, str) or unknown not in vocab:
        raise ValueError(f"unk_token is {json_file.describe(unknown)}, which is no piece; SentencePiece needs one")
    fixed = {vocab[unknown]: pieces.PieceKind.UNKNOWN} | {
        token: pieces.PieceKind.CONTROL for token, text in texts.items() if text in controls
    }
    normal = {
        text
        for text, token in vocab.items()
        if token not in added and token not in fixed and not pieces.is_byte_name(text)
    }
    scores = _scores(model["merges"], normal)
    listed = []
    for token in range(len(texts)):
        text = texts[token]
        if token in fixed:
            listed.append(pieces.VocabularyPiece(text, 0.0, fixed[token]))
        elif token in added:
            listed.append(added[token])
        elif text in normal:
            listed.append(pieces.VocabularyPiece(text, scores.get(text, -1.0 - len(scores)), pieces.PieceKind.NORMAL))
        else:
            listed.append(pieces.VocabularyPiece(text, 0.0, pieces.PieceKind.BYTE))
    return listed


def _check_steps(content: dict, model: dict) -> None:
    """Raises: ValueError if a text goes through more than Gemma's steps."""
    if model["type"] != "BPE" or model.get("byte_fallback") is not True:
        raise ValueError(
            f"its model is {model['type']!r:.40}{'' if model.get('byte_fallback') else ' without byte fallback'}; this "
            "program reads BPE with byte fallback"
        )
    missing = [f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in model["vocab"]]
    if missing:
        raise ValueError(f"it has no piece {missing[0]} (and {len(missing) - 1} more), which byte fallback needs")
    space = {"type": "Replace", "pattern": {"String": " "}, "content": vocabulary.SPACE}
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    for step, allowed in (("normalizer", (space,)), ("pre_tokenizer", (None, split))):
        if content.get(step) not in allowed:
            raise ValueError(f"its {step} is {content.get(step)!r:.200}; this program reads Gemma's {allowed[0]!r}")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(option):
            raise ValueError(f"model.{option} is {model[option]!r:.40}; SentencePiece has no such thing")


def _scores(merges: list, normal: set[str]) -> dict[str, float]:
    """Returns the score of every piece that is merged of others, the highest first.

    SentencePiece merges any two pieces whose text is a piece, the highest score first; so all ways to make a piece must
    be there, and one behind the other.
    """
    scores, pairs, last = {}, set(), None
    for number, merge in enumerate(merges):
        pair = tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) if isinstance(merge, list) else ()
        if len(pair) != 2 or not all(isinstance(half, str) for half in pair):
            raise ValueError(f"model.merges[{number}] is {merge!r:.40}; it must be two texts")
        if pair[0] not in normal or pair[1] not in normal or (text := "".join(pair)) not in normal:
            continue  # of an added token, which no merge makes
        if text != last and text in scores:
            raise ValueError(
                f"the merges that make {text!r:.40} are not one behind the other; SentencePiece has no such"
            )
        pairs.add(pair)
        scores.setdefault(text, -1.0 - len(scores))
        last = text
    for text in normal:
        for cut in range(1, len(text)):
            pair = (text[:cut], text[cut:])
            if pair[0] in normal and pair[1] in normal and pair not in pairs:
                raise ValueError(
                    f"no merge makes {text!r:.40} of {pair[0]!r:.40} and {pair[1]!r:.40}; SentencePiece does"
                )
    return scores


def _check_alike(tokenizer: vocabulary.Tokenizer, reference, listed: Sequence[pieces.VocabularyPiece]) -> None:
    """Raises: ValueError if the two encode or decode a sample in two ways: texts, and a row of all kinds of pieces."""
    texts = [piece.text for piece in listed if piece.kind in (pieces.PieceKind.NORMAL, pieces.PieceKind.USER_DEFINED)]
    plain = (text.replace(vocabulary.SPACE, " ") for text in texts if not tokenizer.is_control(text))
    # Gemma's own tokenizer.json cuts more than 31 spaces in a row in two other places than SentencePiece.
    plain = [text for text in plain if text.strip()]
    samples = [SAMPLE, *("".join(itertools.islice(plain, start, None, max(1, len(plain) // 5000))) for start in (0, 3))]
    for sample in samples:
        ids = tokenizer.encode(sample)
        theirs = reference.encode(sample, add_special_tokens=False).ids
        if ids != theirs:
            at = next((at for at, (x, y) in enumerate(zip(ids, theirs, strict=False)) if x != y), len(ids))
            problem = f"encodes a sample otherwise at {tokenizer.decode(ids[max(0, at - 3) : at + 3])!r}"
            raise ValueError(f"a SentencePiece model of these pieces {problem}; name a tokenizer.model")
        if reference.decode(ids, skip_special_tokens=False) != sample:
            raise ValueError("its decoder does not give back a sample that was encoded; Gemma's does")
