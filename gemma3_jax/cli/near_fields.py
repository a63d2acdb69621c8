"""The field of a config that was meant by a path that is none: --config.optimiser.lr means an optimizer.peak_lr."""

import difflib
from collections.abc import Iterable

MAX_FIELDS = 3
LEAST_LIKENESS = 0.8  # of two words
SHORT = {"learning_rate": "lr"}  # other words of the field for a name


def find(path: str, fields: Iterable[str]) -> list[str]:
    """Returns those of the fields, such as "stages.qat.optimizer.peak_lr", that are most like a path; none if none is.

    Every name of the path must stand in the field, in this order, perhaps spelt a little differently or without all of
    its words, and its last name must be the field's. Else a field of the same last name is meant.
    """
    names = path.split(".")
    fields = [field.split(".") for field in fields]
    likeness = [_likeness(names, field) for field in fields]
    if not any(likeness):
        likeness = [float(field[-1] == names[-1]) for field in fields]
    best = max(likeness, default=0.0)
    found = [".".join(field) for field, value in zip(fields, likeness, strict=True) if value == best > 0]
    return found[:MAX_FIELDS]


def _likeness(given: list[str], names: list[str]) -> float:
    """The product of how like the words are that match, from the last one on; 0 if one has no match."""
    product, names = _words(given[-1], names[-1]), names[:-1]
    for word in reversed(given[:-1]):
        while names and not _words(word, names[-1]):
            names.pop()
        product *= _words(word, names.pop()) if names else 0.0
    return product


def _words(given: str, name: str) -> float:
    given = SHORT.get(given, given)
    if given == name:
        return 1.0
    if name.endswith(f"_{given}"):
        return 0.95
    if name.startswith(f"{given}_"):
        return 0.9
    ratio = difflib.SequenceMatcher(None, given, name).ratio()
    return ratio if ratio >= LEAST_LIKENESS else 0.0
