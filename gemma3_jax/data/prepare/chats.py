"""The turns of a chat in a source row: what is understood of them is role and content, and nothing is dropped."""

from collections.abc import Mapping

import numpy as np

# Of a row or a turn: whether it is learned. Only 1 and true change nothing.
_LEARNED = ("weight", "train")
# Of a row, beside its turns: what the model was shown as well. Other fields of a row describe it: id, source, topic.
_SHOWN_TOO = ("tools", "functions", "system", "system_prompt")


def problem(row: Mapping, field: str) -> str | None:
    """Returns why the turns in a field of a row cannot be learned as they are meant, or None if they can."""
    turns = row.get(field)
    if not isinstance(turns, list | tuple) or not turns:
        return f"field {field} is {_describe(turns)}, not a list of {{role, content}}"
    for key in _SHOWN_TOO:
        if not _is_empty(row.get(key)):
            return f"the row has {key} beside {field}, which would be dropped; put them into the turns"
    if why := _why_not_learned(row):
        return f"the row has {why}"
    for number, turn in enumerate(turns):
        where = f"turn {number} of field {field}"
        if not isinstance(turn, Mapping):
            return f"{where} is {_describe(turn)}, not {{role, content}}"
        for key in ("role", "content"):
            if not isinstance(turn.get(key), str):
                got = "has no" if turn.get(key) is None else f"has {_describe(turn[key])} as its"
                return f"{where} {got} {key}; a turn is {{role, content}}, both text"
            if not is_unicode(turn[key]):
                return f"{where} holds half a surrogate pair, which is no text"
        if why := _why_not_learned(turn):
            return f"{where} has {why}"
        for key, value in turn.items():
            if key not in ("role", "content", *_LEARNED) and not _is_empty(value):
                return f"{where} has {key!r:.40}, which is not understood; a turn is {{role, content}}"
    return None


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can encode the text: JSON may hold half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _why_not_learned(values: Mapping) -> str | None:
    """The key of a row or a turn by which it is not learned, or not fully, and why that is a problem."""
    for key in _LEARNED:
        value = values.get(key)
        is_number = isinstance(value, int | float | np.generic)
        if _is_empty(value) or (is_number and value == 1):
            continue
        if is_number and not value:
            return f"{key} {value!s:.20}; turns that are not to be learned are not supported"
        return f"{key!r} {value!s:.20}, which is not understood; only 1 is"
    return None


def _is_empty(value: object) -> bool:
    """Whether nothing is there: Parquet has every key in every row, and a column of text may hold JSON."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    if isinstance(value, np.ndarray):
        return value.size == 0
    return value is None or (isinstance(value, list | tuple | Mapping) and not value)


def _describe(value: object) -> str:
    if value is None:
        return "absent"
    return "empty" if isinstance(value, list | tuple | str) and not value else f"a {type(value).__name__}"
