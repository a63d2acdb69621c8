"""Five kinds of question that only reading a whole text answers, after RULER. All of it is made up from a seed.

Where it differs from RULER: sentences and words are others; the haystack is always noise, never an essay; no solved
example stands before `tracking` and `common_words`; where the needle is, is asked for. So scores mean what RULER's do,
and are not to be set beside them number by number.
Source: Hsieh et al. 2024 (arXiv 2404.06654), and NVIDIA/RULER scripts/data/synthetic.
"""

import random
from collections.abc import Callable, Sequence

from gemma3_jax.evals import compounds, haystack

NUM_KEYS = 4  # of multikey
NUM_VALUES = 4  # of multivalue
NUM_HOPS = 4  # of tracking: so many variables take over what the one before them has
NUM_COMMON = 10
# How often each common word and each other word stands in a list: RULER's for 4,096 tokens and more, its for fewer, and
# two more for where these take more than two thirds of the list.
TIMES = ((30, 3), (6, 1), (3, 1), (2, 1))
_CONSONANTS = "BCDFGHJKLMNPQRSTVWXZ"  # no name of a variable is a word


def single(draw: random.Random, depth: float) -> haystack.Question:
    """One number in the noise, `depth` (0 to 1) of the way in."""
    (key,), (value,) = _keys(draw, 1), _numbers(draw, 1, 7)
    return _special_number(key, [(depth, _needle(key, value))], value)


def multikey(draw: random.Random, depth: float) -> haystack.Question:
    """Numbers of four keys. The one asked for is at `depth`, the others anywhere."""
    keys, values = _keys(draw, NUM_KEYS), _numbers(draw, NUM_KEYS, 7)
    places = [depth, *(draw.random() for _ in keys[1:])]
    needles = [(place, _needle(*pair)) for place, *pair in zip(places, keys, values, strict=True)]
    return _special_number(keys[0], needles, values[0])


def multivalue(draw: random.Random, depth: float) -> haystack.Question:
    """Four numbers of one key, all asked for. The first is at `depth`, the others anywhere behind it."""
    (key,), values = _keys(draw, 1), _numbers(draw, NUM_VALUES, 7)
    needles = [f"One of the special numbers of {key} is {value}." for value in values]
    places = [depth, *_behind(draw, depth, NUM_VALUES - 1)]
    return haystack.Question(
        head="Some special numbers are hidden in the text below. Keep them in mind for a question at its end.\n",
        text=_noise_with(list(zip(places, needles, strict=True))),
        tail=f"\nWhat are all the special numbers of {key} in the text above?\n"
        f"The special numbers of {key} in the text above are",
        references=tuple(values),
        least_parts=len(haystack.NOISE),
    )


def tracking(draw: random.Random, depth: float) -> haystack.Question:
    """A value is set at `depth` and handed on four times, anywhere behind; all five names are asked for."""
    letter = lambda: _CONSONANTS[int(draw.random() * len(_CONSONANTS))]  # noqa: E731
    names = _different(NUM_HOPS + 1, lambda: "".join(letter() for _ in range(5)))
    (value,) = _numbers(draw, 1, 5)
    had = [value, *(f"VAR {name}" for name in names[:-1])]
    needles = [f"VAR {name} = {before}." for name, before in zip(names, had, strict=True)]
    places = [depth, *_behind(draw, depth, NUM_HOPS)]
    return haystack.Question(
        head="Variables are set in the text below. Keep track of them for a question at its end.\n",
        text=_noise_with(list(zip(places, needles, strict=True))),
        tail=f"\nQuestion: Which variables in the text above have the value {value}?\n"
        f"Answer: {len(names)} variables have the value {value}. They are:",
        references=tuple(names),
        least_parts=len(haystack.NOISE),
    )


def common_words(draw: random.Random, times: tuple[int, int]) -> haystack.Question:
    """A numbered list in which ten words stand times[0] times, and all others times[1] times, in no order."""
    words, (common_times, other_times), seed = _shuffled(draw, compounds.WORDS), times, draw.random()
    common = words[:NUM_COMMON]

    def text(num_others: int, last: str) -> str:
        others = words[NUM_COMMON : NUM_COMMON + num_others]
        listed = _shuffled(random.Random(seed), common * common_times + others * other_times)
        lines = [f"{number}. {word}" for number, word in enumerate(listed, start=1)]
        return " ".join([*lines, last] if last else lines)

    return haystack.Question(
        head="Below is a numbered list of words. Some words stand in it more often than others.\n",
        text=text,
        tail=f"\nQuestion: Which {NUM_COMMON} words stand most often in the list above?\n"
        f"Answer: The {NUM_COMMON} words that stand most often in the list above are:",
        references=tuple(common),
        least_parts=NUM_COMMON * common_times // (2 * other_times),
        most_parts=len(words) - NUM_COMMON,
    )


def _special_number(key: str, needles: list[tuple[float, str]], value: str) -> haystack.Question:
    return haystack.Question(
        head="A special number is hidden in the text below. Keep it in mind for a question at its end.\n",
        text=_noise_with(needles),
        tail=f"\nWhat is the special number of {key} in the text above?\n"
        f"The special number of {key} in the text above is",
        references=(value,),
        least_parts=len(haystack.NOISE),
    )


def _needle(key: str, value: str) -> str:
    return f"The special number of {key} is {value}."


def _noise_with(needles: list[tuple[float, str]]) -> Callable[[int, str], str]:
    """Noise with these sentences in it, each as far in (0 to 1) as is said; those at one place keep their order."""

    def text(num_sentences: int, last: str) -> str:
        sentences = [haystack.NOISE[number % len(haystack.NOISE)] for number in range(num_sentences)]
        sentences += [last] if last else []
        gaps = len(sentences)
        for place, needle in reversed(sorted(needles, key=lambda needle: needle[0])):
            sentences.insert(round(place * gaps), needle)
        return " ".join(sentences)

    return text


# Random.random() alone gives the same numbers from a seed on every version of Python.
def _shuffled(draw: random.Random, of: Sequence[str]) -> list[str]:
    return sorted(of, key=lambda _: draw.random())


def _different(num_drawn: int, draw_one: Callable[[], str]) -> list[str]:
    drawn: list[str] = []
    while len(drawn) < num_drawn:
        one = draw_one()
        drawn += [one] if one not in drawn else []
    return drawn


def _keys(draw: random.Random, num_keys: int) -> list[str]:
    return _different(num_keys, lambda: compounds.WORDS[int(draw.random() * len(compounds.WORDS))])


def _numbers(draw: random.Random, num_numbers: int, num_digits: int) -> list[str]:
    """Different numbers, none of which begins with 0."""
    least = 10 ** (num_digits - 1)
    return _different(num_numbers, lambda: str(least + int(draw.random() * 9 * least)))


def _behind(draw: random.Random, depth: float, num_places: int) -> list[float]:
    return sorted(depth + (1 - depth) * draw.random() for _ in range(num_places))
