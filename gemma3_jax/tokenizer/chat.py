"""Chat turns -> ids, and which of them a model learns to write.

    <bos><start_of_turn>user\\n{text}<end_of_turn>\\n<start_of_turn>model\\n{text}<end_of_turn>\\n<start_of_turn>user\\n...

Source: Gemma 3 report, section 3 and Table 4; google-deepmind/gemma gm/text/_template.py and gm/data/_functional.py.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from gemma3_jax.tokenizer import vocabulary

ROLES = {"user": "user", "model": "model", "assistant": "model"}


def fold_system(turns: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """(role, text) of every turn, roles user and model in alternation; Gemma 3 has no system turn.

    The text of a leading system turn goes before that of the first user turn, with an empty line between; text is kept
    as it is, not stripped.
    Raises: ValueError if there is no turn, or if they do not alternate from user on.
    """
    folded: list[tuple[str, str]] = []
    system = ""
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), str):
            raise ValueError(f"turn {number} is {turn!r:.80}; it must be a mapping with role and content, both text")
        if number == 0 and turn.get("role") == "system":
            system = turn["content"] + "\n\n"
            continue
        role = ROLES.get(turn.get("role"))
        expected = "model" if len(folded) % 2 else "user"
        if role != expected:
            raise ValueError(
                f"turn {number} is of role {turn.get('role')!r} where {expected!r} is due; turns alternate user, "
                "model, user, ... and one system turn may come before them"
            )
        folded.append((role, (system if not folded else "") + turn["content"]))
    if not folded:
        raise ValueError("there is no turn of a user; a chat needs one")
    return folded


def encode(tokenizer: vocabulary.Tokenizer, turns: Sequence[Mapping[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a whole chat, int32[T], and bool[T]: True on what the model writes, its `<end_of_turn>` included.

    It ends with the `<end_of_turn>` of the last model turn; a turn of the user after that would teach nothing.
    Raises: ValueError as `fold_system`; if the last turn is the user's; if the tokenizer has no turn markers.
    """
    folded = fold_system(turns)
    if folded[-1][0] != "model":
        raise ValueError("the last turn is of role 'user'; a chat to learn from ends with a turn of the model")
    ids, learned = _encode(tokenizer, folded)
    return np.asarray(ids, np.int32), np.asarray(learned, bool)


def prompt(tokenizer: vocabulary.Tokenizer, turns: Sequence[Mapping[str, str]]) -> list[int]:
    """Ids of a chat up to where the model writes its next turn.

    Raises: ValueError as `fold_system`; if the last turn is the model's; if the tokenizer has no turn markers.
    """
    folded = fold_system(turns)
    if folded[-1][0] != "user":
        raise ValueError("the last turn is of role 'model'; a prompt ends with a turn of the user")
    ids, _ = _encode(tokenizer, folded)
    return ids + _model_header(tokenizer)


def _model_header(tokenizer: vocabulary.Tokenizer) -> list[int]:
    return [*tokenizer.encode("\n"), tokenizer.start_of_turn, *tokenizer.encode("model\n")]


def _encode(tokenizer: vocabulary.Tokenizer, folded: list[tuple[str, str]]) -> tuple[list[int], list[bool]]:
    tokenizer.check_has_turns()
    ids = [tokenizer.bos]
    learned = [False]
    for number, (role, text) in enumerate(folded):
        # A prompt ends with the model's header, so it is encoded apart from what the model then writes. The user's
        # header and text are one string, as they are where a template is rendered to text first.
        given = f"{role}\n" if role == "model" else f"{role}\n{text}"
        written = text if role == "model" else ""
        before = [*(tokenizer.encode("\n") if number else []), tokenizer.start_of_turn, *tokenizer.encode(given)]
        after = [*tokenizer.encode(written), tokenizer.end_of_turn]
        ids += before + after
        learned += [False] * len(before) + [role == "model"] * len(after)
    return ids, learned
