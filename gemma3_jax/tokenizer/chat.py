"""Chat turns -> ids, and a mask of the ids that the model writes.

    <bos><start_of_turn>user\\n{text}<end_of_turn>\\n<start_of_turn>model\\n{text}<end_of_turn>\\n<start_of_turn>user\\n...

Source: Gemma 3 report, section 3 and Table 4; google-deepmind/gemma gm/text/_template.py and gm/data/_functional.py.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from gemma3_jax.tokenizer import vocabulary

ROLES = {"user": "user", "model": "model", "assistant": "model"}


def fold_system(turns: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """Returns (role, text) of every turn, with roles user and model in alternation.

    Gemma 3 has no system turn: the text of a leading one goes before that of the first user turn, with an empty line
    between. Text is not stripped.
    Raises: ValueError if there is no turn, or if turns do not alternate, starting with user.
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
        if role is None and turn.get("role") != "system":
            raise ValueError(
                f"turn {number} is of role {turn.get('role')!r:.40}, which is not known; roles are user and model (or "
                "assistant), and system for the first turn"
            )
        if role != expected:
            raise ValueError(
                f"turn {number} is of role {turn.get('role')!r} where {expected!r} is due; turns alternate user, "
                "model, user, ... and one system turn may come before them"
            )
        folded.append((role, (system if not folded else "") + turn["content"]))
    if not folded:
        raise ValueError("there is no turn of a user; a chat needs one")
    return folded


def check_ends_with_model(folded: Sequence[tuple[str, str]]) -> None:
    """Raises: ValueError if the last of the turns, as `fold_system` returns them, is the user's."""
    if folded[-1][0] != "model":
        raise ValueError("the last turn is of role 'user'; a chat to train on ends with a model turn")


def encode(tokenizer: vocabulary.Tokenizer, turns: Sequence[Mapping[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of a chat, int32[T], and a loss mask, bool[T]: True on what the model writes.

    The mask includes the `<end_of_turn>` of the model's turns, and the ids end with the last one.
    Raises: ValueError as `fold_system`; if the last turn is the user's; if the tokenizer has no turn markers.
    """
    folded = fold_system(turns)
    check_ends_with_model(folded)
    ids, loss_mask = _encode(tokenizer, folded)
    return np.asarray(ids, np.int32), np.asarray(loss_mask, bool)


def prompt(tokenizer: vocabulary.Tokenizer, turns: Sequence[Mapping[str, str]]) -> list[int]:
    """Returns the ids of a chat up to where the model writes its next turn.

    Raises: ValueError as `fold_system`; if the last turn is the model's; if the tokenizer has no turn markers.
    """
    folded = fold_system(turns)
    if folded[-1][0] != "user":
        raise ValueError("the last turn is of role 'model'; a prompt ends with a user turn")
    ids, _ = _encode(tokenizer, folded)
    return ids + _model_header(tokenizer)


def _model_header(tokenizer: vocabulary.Tokenizer) -> list[int]:
    return [*tokenizer.encode("\n"), tokenizer.start_of_turn, *tokenizer.encode("model\n")]


def _encode(tokenizer: vocabulary.Tokenizer, folded: list[tuple[str, str]]) -> tuple[list[int], list[bool]]:
    tokenizer.check_has_turns()
    ids = [tokenizer.bos]
    loss_mask = [False]
    for number, (role, text) in enumerate(folded):
        # A prompt ends with the model's header, so the header is encoded separately from what the model writes. The
        # user's header and text are one string, as in a template that is rendered to text first.
        header = f"{role}\n" if role == "model" else f"{role}\n{text}"
        written = text if role == "model" else ""
        before = [*(tokenizer.encode("\n") if number else []), tokenizer.start_of_turn, *tokenizer.encode(header)]
        after = [*tokenizer.encode(written), tokenizer.end_of_turn]
        ids += before + after
        loss_mask += [False] * len(before) + [role == "model"] * len(after)
    return ids, loss_mask
