"""The tokenizer of a directory: tokenizer.model or tokenizer.json, with the tokens that were added behind its pieces.

Transformers stores added tokens in tokenizer.json, in added_tokens_decoder of tokenizer_config.json, and in
added_tokens.json; it prefers them in this order.
"""

import pathlib
from collections.abc import Callable, Iterator

from gemma3_jax.durable import json_file
from gemma3_jax.tokenizer import from_tokenizer_json, pieces, vocabulary

MODEL, JSON = "tokenizer.model", "tokenizer.json"
CONFIG, ADDED, SPECIAL = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
MAX_TOKENS = 1 << 19


def load(path: pathlib.Path, warn: Callable[[str], None] | None = None) -> vocabulary.Tokenizer:
    """Returns the tokenizer of a directory, or the one that a SentencePiece file or a tokenizer.json holds alone.

    With `warn`, a tokenizer.json that cannot be read is none if tokenizer.model is beside it.
    Raises: ValueError if there is none, or if SentencePiece cannot express it.
    """
    if path.is_dir():
        return _of_directory(path, warn)
    if path.suffix == ".json":
        if not path.is_file():
            raise ValueError(f"{path} does not exist; {vocabulary.A_TOKENIZER}")
        content = json_file.read_object(path)
        return _convert(path, content, _without_image(dict(_in_tokenizer_json(path, content))))
    return vocabulary.load(path)


def file_of(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the file that holds the tokenizer of a directory; None if there is none."""
    return next((path / name for name in (MODEL, JSON) if (path / name).is_file()), None)


def last_added(path: pathlib.Path, warn: Callable[[str], None]) -> tuple[int, str]:
    """Returns the highest id of a token that was added to a directory's tokenizer, and its text; -1 if there is none.

    A tokenizer.json that cannot be read is none. Raises: ValueError naming another file that is damaged.
    """
    added = _added(path, _read_main(path / JSON, warn))
    return max(((token, piece.text) for token, piece in added.items()), default=(-1, ""))


def _of_directory(path: pathlib.Path, warn: Callable[[str], None] | None) -> vocabulary.Tokenizer:
    content = _read_main(path / JSON, warn if (path / MODEL).is_file() else None)
    added = _added(path, content)
    if (path / JSON).is_file() and not (path / MODEL).is_file():
        return _convert(path / JSON, content, added)
    tokenizer = vocabulary.load(path / MODEL)
    changes = {
        token: piece
        for token, piece in added.items()
        if token >= tokenizer.size
        or (piece.text.replace(" ", vocabulary.SPACE) != tokenizer.piece(token) and token != tokenizer.end_of_image)
    }
    for token in range(tokenizer.size, max(changes, default=0)):
        changes.setdefault(token, pieces.VocabularyPiece(f"[PAD{token}]", 0.0, pieces.PieceKind.CONTROL))
    if changes:
        try:
            tokenizer = vocabulary.Tokenizer(pieces.replaced(tokenizer.model, changes))
        except RuntimeError as error:  # such as two pieces of one text
            raise ValueError(f"{path}: its added tokens do not fit {MODEL}: {error}") from error
    if content:
        from_tokenizer_json.check_vocabulary(path / JSON, content, tokenizer, renamed=changes.keys())
    return tokenizer


def _read(path: pathlib.Path) -> dict:
    """Returns the content of a JSON file; empty if there is none."""
    return json_file.read_object(path) if path.is_file() else {}


def _read_main(path: pathlib.Path, warn: Callable[[str], None] | None) -> dict:
    """Returns the content of a tokenizer.json; empty if there is none, or after a warning if it is damaged."""
    try:
        return _read(path)
    except (ValueError, OSError) as error:
        if warn is None:
            raise
        warn(f"warning: {error}; it is left out")
        return {}


def _convert(path: pathlib.Path, content: dict, added: dict[int, pieces.VocabularyPiece]) -> vocabulary.Tokenizer:
    names = {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>"}
    for file in (SPECIAL, CONFIG):
        settings = _read(path.parent / file)
        for name in names:
            token = settings.get(f"{name}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if token is not None and not isinstance(token, str):
                raise ValueError(f"{path.parent / file}: {name}_token is {token!r:.40}; it must be text")
            names[name] = token or names[name]
    return vocabulary.Tokenizer(from_tokenizer_json.model_of(path, content, added, **names))


def _added(path: pathlib.Path, content: dict) -> dict[int, pieces.VocabularyPiece]:
    """Returns all added tokens of a directory by their ids, but those of images at the end.

    `content` is that of its tokenizer.json.
    """
    added: dict[int, pieces.VocabularyPiece] = {}
    readers = {JSON: _in_tokenizer_json, CONFIG: _in_config, ADDED: _in_added_tokens}
    for name, read in readers.items():
        for token, piece in read(path / name, content if name == JSON else _read(path / name)):
            added.setdefault(token, piece)
    return _without_image(added)


def _without_image(added: dict[int, pieces.VocabularyPiece]) -> dict[int, pieces.VocabularyPiece]:
    while added and added[max(added)].text == from_tokenizer_json.IMAGE:
        del added[max(added)]
    return added


def _in_tokenizer_json(path: pathlib.Path, content: dict) -> Iterator[tuple[int, pieces.VocabularyPiece]]:
    json_file.check(content, {}, str(path), optional={"added_tokens": list[dict]})
    for number, entry in enumerate(content.get("added_tokens", ())):
        name = f"{path}: added_tokens[{number}]"
        json_file.check(entry, {"id": int, "content": str}, name)
        yield entry["id"], _piece(entry["id"], entry, name)


def _in_config(path: pathlib.Path, content: dict) -> Iterator[tuple[int, pieces.VocabularyPiece]]:
    json_file.check(content, {}, str(path), optional={"added_tokens_decoder": dict[str, dict]})
    for key, entry in content.get("added_tokens_decoder", {}).items():
        name = f"{path}: added_tokens_decoder.{key!r:.40}"
        json_file.check(entry, {"content": str}, name)
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise ValueError(f"{name} must be an id")
        yield int(key), _piece(int(key), entry, name)


def _in_added_tokens(path: pathlib.Path, content: dict) -> Iterator[tuple[int, pieces.VocabularyPiece]]:
    for text, token in content.items():
        name = f"{path}: {text!r:.40}"
        json_file.check({"id": token}, {"id": int}, name)
        yield token, _piece(token, {"content": text}, name)


def _piece(token: int, entry: dict, name: str) -> pieces.VocabularyPiece:
    """Returns an added token. It is parsed in any text, unless it is special or has the name of a control token."""
    flags = dict.fromkeys(("special", "single_word", "lstrip", "rstrip"), bool)
    json_file.check(entry, {}, name, optional=flags)
    if not 0 <= token < MAX_TOKENS:
        raise ValueError(f"{name} has id {token}; it must be from 0 to {MAX_TOKENS - 1}")
    if not entry["content"]:
        raise ValueError(f"{name} is empty")
    is_control = entry.get("special", False)
    for flag in ("single_word", "lstrip", "rstrip"):
        if entry.get(flag) and not is_control:
            raise ValueError(f"{name} has {flag}, which SentencePiece has not")
    text = entry["content"].replace(" ", vocabulary.SPACE)
    is_parsed = not is_control or vocabulary.is_control_name(text)
    kind = pieces.PieceKind.USER_DEFINED if is_parsed else pieces.PieceKind.CONTROL
    return pieces.VocabularyPiece(text, 0.0, kind)
