"""The turns of a chat in a source row: what is understood of them is role and content, and nothing is dropped."""

from collections.abc import Mapping

# Other keys that may be there, with the values that change nothing.
_WITHOUT_EFFECT = {"weight": (1,), "train": (True,)}
_EMPTY = (None, "", [], {})  # Parquet gives every turn the keys of all
# Of a row, beside its turns: what the model was shown as well. Other fields of a row describe it: id, source, topic.
_SHOWN_TOO = ("tools", "functions", "system", "system_prompt")


def problem(row: Mapping, field: str) -> str | None:
    """Returns why the turns in a field of a row cannot be learned as they are meant, or None if they can."""
    turns = row.get(field)
    if not isinstance(turns, list | tuple) or not turns:
        return f"field {field} is {_describe(turns)}, not a list of {{role, content}}"
    for key in _SHOWN_TOO:
        if row.get(key):
            return f"the row has {key} beside {field}, which would be dropped; put them into the turns"
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
        for key, value in turn.items():
            if key in ("role", "content") or value in _EMPTY or value in _WITHOUT_EFFECT.get(key, ()):
                continue
            if key in _WITHOUT_EFFECT and not value:
                return f"{where} has {key} {value!r:.20}; turns that are not to be learned are not supported"
            return f"{where} has {key!r:.40}, which is not understood; a turn is {{role, content}}"
    return None


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can encode the text: JSON may hold half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _describe(value: object) -> str:
    return "absent" if value is None else "empty" if value in ([], (), "") else f"a {type(value).__name__}"
