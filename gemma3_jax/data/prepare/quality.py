"""The quality score of a record, in [0, 1]; a record stays with a probability that grows with its score.

Source: Gemma 3 report, section 2.2, "quality reweighing"; Sachdeva et al. 2024. The scorer is not published: scores
of a model come as a field of the record, or the config names a function.
"""

import importlib
import re
from collections.abc import Callable

from gemma3_jax.data.prepare import records, words

_SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f][\"')\]]?\s")


def find_score(name: str) -> Callable[[records.Record], float]:
    """Returns the score that `config.quality.score` names: "heuristic", "field:NAME" or "module:function".

    Raises: ValueError if the module or function does not exist.
    """
    if name == "heuristic":
        return heuristic
    module, _, attribute = name.partition(":")
    if module == "field" and attribute:
        return _FieldScore(attribute)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"config.quality.score is {name!r}; it must be 'heuristic', 'field:NAME' or 'module:function' of a module "
            f"that can be imported ({error})"
        ) from error


class _FieldScore:
    """Reads the score from a field of the source row."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, record: records.Record) -> object:  # checked where scores are used
        return record.fields.get(self.name)


def heuristic(record: records.Record) -> float:
    """Returns the product of cheap marks of running text, in [0, 1]: letters, word length, repeated lines, sentences.

    Source: after the rules of Rae et al. 2021 (Gopher), appendix A1.1.
    """
    text = record.text
    tokens = words.words(text)
    if not tokens:
        return 0.0
    letters = sum(map(str.isalpha, text)) / len(text)
    mean_length = sum(map(len, tokens)) / len(tokens)
    lines = [line for line in text.split("\n") if line.strip()]
    distinct = len(set(lines)) / len(lines)
    has_sentence = bool(_SENTENCE_END.search(text + " "))
    return min(1.0, letters / 0.6) * min(1.0, 10 / mean_length) * distinct * (1.0 if has_sentence else 0.5)
