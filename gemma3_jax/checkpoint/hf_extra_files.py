"""The files of a Hugging Face directory beside its model: tokenizer, chat template, and settings of generation.

Those of a source are carried as they are. What is missing is made of the tokenizer: tokenizer.json, from which
Transformers encodes; tokenizer_config.json with BOS and the template; generation_config.json with where an answer ends.
Source: huggingface/transformers; the files of google/gemma-3-1b-it.
"""

import json
import pathlib
from collections.abc import Mapping

from gemma3_jax.checkpoint import modelfile
from gemma3_jax.durable import json_file
from gemma3_jax.tokenizer import directory as tokenizer_directory
from gemma3_jax.tokenizer import templates, tokenizer_json, vocabulary

GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
TOKENIZER_FILES = (
    tokenizer_directory.MODEL,
    tokenizer_directory.JSON,
    tokenizer_directory.CONFIG,
    tokenizer_directory.ADDED,
    tokenizer_directory.SPECIAL,
    TEMPLATE,
    "chat_template.json",
)
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read(directory: pathlib.Path) -> dict[str, bytes]:
    """Returns the content of those files that a directory has, without a tokenizer.json that cannot be read.

    Raises: ValueError naming another one that is damaged.
    """
    files = {}
    for name in (*TOKENIZER_FILES, GENERATION):
        path = directory / name
        if not path.is_file():
            continue
        content = path.read_bytes()
        if name.endswith(".json"):
            try:
                fields = json_file.read_object(content, str(path))
            except ValueError:
                if name == tokenizer_directory.JSON:
                    continue  # whoever looks for the tokenizer says why
                raise
            if name == GENERATION:
                _check_ids(fields, str(path))
        files[name] = content
    return files


def _check_ids(content: dict, name: str) -> None:
    for key in SPECIAL_IDS:
        ids = content.get(key)
        for token in ids if isinstance(ids, list) else [ids]:
            if token is not None and not (type(token) is int and 0 <= token < 2**31):
                raise ValueError(f"{name}: {key} is {ids!r:.40}; it must be an id, or a list of ids")


def complete(
    carried: Mapping[str, bytes], tokenizer: vocabulary.Tokenizer | None, context_length: int
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Returns all files of a directory by name, and notes for the user on what cannot be made."""
    files, notes = dict(carried), ()
    if tokenizer is None:
        return files, notes
    if tokenizer_directory.JSON not in files:
        files.setdefault(tokenizer_directory.MODEL, tokenizer.model)
        try:
            files[tokenizer_directory.JSON] = tokenizer_json.write(tokenizer).encode()
        except ValueError as error:
            notes = (f"warning: no {tokenizer_directory.JSON} is written: {error}",)
    if tokenizer_directory.JSON in files and tokenizer_directory.CONFIG not in files:
        has_template = any(name.startswith("chat_template") for name in files)
        content = _tokenizer_config(tokenizer, context_length, has_template=has_template)
        files[tokenizer_directory.CONFIG] = _encode(content)
    if GENERATION not in files:
        files[GENERATION] = _encode(_generation_config(tokenizer))
    return files, notes


def special_ids(files: Mapping[str, bytes]) -> dict[str, int | list[int]]:
    """Returns the ids of BOS, EOS and padding, as generation_config.json has them, for config.json."""
    content = json.loads(files.get(GENERATION, b"{}"))
    return {key: content[key] for key in SPECIAL_IDS if key in content}


def _tokenizer_config(tokenizer: vocabulary.Tokenizer, context_length: int, *, has_template: bool) -> dict:
    content = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": tokenizer.bos is not None,
        "add_eos_token": False,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "spaces_between_special_tokens": False,
    }
    for name in ("bos", "eos", "pad", "unk"):
        if (token := getattr(tokenizer, name)) is not None:
            content[f"{name}_token"] = tokenizer.piece(token)
    if tokenizer.has_turns() and not has_template:
        content["chat_template"] = templates.JINJA
    return content


def _generation_config(tokenizer: vocabulary.Tokenizer) -> dict:
    """Returns the sampling of Gemma 3. With turns in the tokenizer, an answer ends where its turn does."""
    ends = [token for token in (tokenizer.eos, tokenizer.end_of_turn) if token is not None]
    content = {
        "bos_token_id": tokenizer.bos,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": tokenizer.pad,
    }
    sampling = {"do_sample": True, "top_k": modelfile.TOP_K, "top_p": modelfile.TOP_P}
    return {key: value for key, value in content.items() if value is not None} | sampling


def _encode(content: dict) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
