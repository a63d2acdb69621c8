"""Five kinds of question that take reading the whole text, after RULER, generated from a seed.

Differences from RULER: other sentences and words; a haystack of noise, never an essay; no worked example before
`tracking` and `common_words`; needles at chosen depths. Scores have the same meaning, but should not be compared number
by number.
Source: Hsieh et al. 2024 (arXiv 2404.06654), and NVIDIA/RULER scripts/data/synthetic.
"""

import random
from collections.abc import Callable, Sequence

from gemma3_jax.evals import compounds, haystack

NUM_KEYS = 4  # of multikey
NUM_VALUES = 4  # of multivalue
NUM_HOPS = 4  # of tracking: variables that copy the one before
NUM_COMMON = 10
# How often each common word and each other word occurs in a list: RULER's from 4,096 tokens on, RULER's below that,
# and two more for lists that would be more than two thirds common words.
TIMES = ((30, 3), (6, 1), (3, 1), (2, 1))
_CONSONANTS = "BCDFGHJKLMNPQRSTVWXZ"  # so that no variable has a word for a name


def single(rng: random.Random, depth: float) -> haystack.Question:
    """One number in the noise, at `depth` (0: start, 1: end)."""
    (key,), (value,) = _keys(rng, 1), _numbers(rng, 1, 7)
    return _special_number(key, [(depth, _needle(key, value))], value)


def multikey(rng: random.Random, depth: float) -> haystack.Question:
    """Numbers of four keys. The one in the question is at `depth`, the others anywhere."""
    keys, values = _keys(rng, NUM_KEYS), _numbers(rng, NUM_KEYS, 7)
    depths = [depth, *(rng.random() for _ in keys[1:])]
    needles = [(key_depth, _needle(*pair)) for key_depth, *pair in zip(depths, keys, values, strict=True)]
    return _special_number(keys[0], needles, values[0])


def multivalue(rng: random.Random, depth: float) -> haystack.Question:
    """Four numbers of one key, all in the answer. The first is at `depth`, the others anywhere after it."""
    (key,), values = _keys(rng, 1), _numbers(rng, NUM_VALUES, 7)
    needles = [f"One of the special numbers of {key} is {value}." for value in values]
    depths = [depth, *_depths_after(rng, depth, NUM_VALUES - 1)]
    return haystack.Question(
        head="Some special numbers are hidden in the text below. Keep them in mind for a question at its end.\n",
        text=_noise_with(list(zip(depths, needles, strict=True))),
        tail=f"\nWhat are all the special numbers of {key} in the text above?\n"
        f"The special numbers of {key} in the text above are",
        references=tuple(values),
        min_parts=len(haystack.NOISE),
    )


def tracking(rng: random.Random, depth: float) -> haystack.Question:
    """A value is set at `depth` and copied four times, anywhere after; the answer is all five variables."""
    letter = lambda: _CONSONANTS[int(rng.random() * len(_CONSONANTS))]  # noqa: E731
    names = _distinct(NUM_HOPS + 1, lambda: "".join(letter() for _ in range(5)))
    (value,) = _numbers(rng, 1, 5)
    values = [value, *(f"VAR {name}" for name in names[:-1])]
    needles = [f"VAR {name} = {before}." for name, before in zip(names, values, strict=True)]
    depths = [depth, *_depths_after(rng, depth, NUM_HOPS)]
    return haystack.Question(
        head="Variables are set in the text below. Keep track of them for a question at its end.\n",
        text=_noise_with(list(zip(depths, needles, strict=True))),
        tail=f"\nQuestion: Which variables in the text above have the value {value}?\n"
        f"Answer: {len(names)} variables have the value {value}. They are:",
        references=tuple(names),
        min_parts=len(haystack.NOISE),
    )


def common_words(rng: random.Random, times: tuple[int, int]) -> haystack.Question:
    """A shuffled, numbered list in which ten words occur times[0] times, and all others times[1] times."""
    words, (common_times, other_times), seed = _shuffled(rng, compounds.WORDS), times, rng.random()
    common = words[:NUM_COMMON]

    def text(num_others: int, filler: str) -> str:
        others = words[NUM_COMMON : NUM_COMMON + num_others]
        listed = _shuffled(random.Random(seed), common * common_times + others * other_times)
        lines = [f"{number}. {word}" for number, word in enumerate(listed, start=1)]
        return " ".join([*lines, filler] if filler else lines)

    return haystack.Question(
        head="Below is a numbered list of words. Some words stand in it more often than others.\n",
        text=text,
        tail=f"\nQuestion: Which {NUM_COMMON} words stand most often in the list above?\n"
        f"Answer: The {NUM_COMMON} words that stand most often in the list above are:",
        references=tuple(common),
        min_parts=NUM_COMMON * common_times // (2 * other_times),
        max_parts=len(words) - NUM_COMMON,
    )


def _special_number(key: str, needles: list[tuple[float, str]], value: str) -> haystack.Question:
    return haystack.Question(
        head="A special number is hidden in the text below. Keep it in mind for a question at its end.\n",
        text=_noise_with(needles),
        tail=f"\nWhat is the special number of {key} in the text above?\n"
        f"The special number of {key} in the text above is",
        references=(value,),
        min_parts=len(haystack.NOISE),
    )


def _needle(key: str, value: str) -> str:
    return f"The special number of {key} is {value}."


def _noise_with(needles: list[tuple[float, str]]) -> Callable[[int, str], str]:
    """Noise with these (depth, sentence) pairs inserted; those at one depth keep their order."""

    def text(num_sentences: int, filler: str) -> str:
        sentences = [haystack.NOISE[number % len(haystack.NOISE)] for number in range(num_sentences)]
        sentences += [filler] if filler else []
        gaps = len(sentences)
        for depth, needle in reversed(sorted(needles, key=lambda needle: needle[0])):
            sentences.insert(round(depth * gaps), needle)
        return " ".join(sentences)

    return text


# Only Random.random() is the same from a seed in every version of Python.
def _shuffled(rng: random.Random, words: Sequence[str]) -> list[str]:
    return sorted(words, key=lambda _: rng.random())


def _distinct(count: int, draw_one: Callable[[], str]) -> list[str]:
    drawn: list[str] = []
    while len(drawn) < count:
        one = draw_one()
        drawn += [one] if one not in drawn else []
    return drawn


def _keys(rng: random.Random, num_keys: int) -> list[str]:
    return _distinct(num_keys, lambda: compounds.WORDS[int(rng.random() * len(compounds.WORDS))])


def _numbers(rng: random.Random, num_numbers: int, num_digits: int) -> list[str]:
    """Distinct numbers, none of which begins with 0."""
    least = 10 ** (num_digits - 1)
    return _distinct(num_numbers, lambda: str(least + int(rng.random() * 9 * least)))


def _depths_after(rng: random.Random, depth: float, count: int) -> list[float]:
    return sorted(depth + (1 - depth) * rng.random() for _ in range(count))
