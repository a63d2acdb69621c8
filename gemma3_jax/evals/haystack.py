"""Prompts of so many tokens: a question about a text, and as much of that text as there is room for."""

import dataclasses
from collections.abc import Callable

from gemma3_jax.tokenizer import vocabulary

NOISE = (
    "The river is wide.",
    "The hill is steep.",
    "The wind is cold.",
    "Day follows night.",
    "And the road goes on.",
)
_SMALL_WORD = "a"  # with the space before it a token in most vocabularies, and two where tokens are letters
_MOST_SMALL_WORDS = 64  # more than any part is worth, and no text of its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a text that can be of any length."""

    head: str
    text: Callable[[int, str], str]  # how many parts of filling, and a few words behind them, or none -> the text
    tail: str  # the question, and how its answer begins
    references: tuple[str, ...]  # all that an answer has to hold
    least_parts: int  # below which the text is no longer what the question is about
    most_parts: int | None = None


def least_tokens(question: Question, tokenizer: vocabulary.Tokenizer) -> int:
    """Tokens of the shortest prompt with this question, BOS included."""
    return len(_encoded(question, tokenizer, question.least_parts))


def filled(question: Question, tokenizer: vocabulary.Tokenizer, length: int) -> list[int]:
    """The ids of a prompt of at most `length` tokens, BOS included, and of at least 99 % of that (or one less).

    Filled part by part, then word by word: tokens of a text are not the sum of its parts' tokens, so they are counted.
    Raises: ValueError if no number of parts and words comes to that.
    """
    parts = _most(lambda parts: len(_encoded(question, tokenizer, parts)), length, question.most_parts)
    words = _most(lambda words: len(_encoded(question, tokenizer, parts, words)), length, _MOST_SMALL_WORDS)
    prompt = _encoded(question, tokenizer, parts, words)
    if length - len(prompt) > max(1, length // 100):
        raise ValueError(f"{length} tokens cannot be filled to within 1 %; the text comes to {len(prompt)}")
    return prompt


def _encoded(question: Question, tokenizer: vocabulary.Tokenizer, parts: int, words: int = 0) -> list[int]:
    last = " ".join([_SMALL_WORD] * words)
    return [tokenizer.bos, *tokenizer.encode(question.head + question.text(parts, last) + question.tail)]


def _most(num_tokens: Callable[[int], int], limit: int, at_most: int | None) -> int:
    """The largest n with num_tokens(n) <= limit; num_tokens grows almost as a line, so that a few counts find it."""
    low, at_low, high = 0, num_tokens(0), None if at_most is None else at_most + 1
    assert at_low <= limit, f"{at_low} tokens without any filling, for {limit}"
    slope = max(1.0, (num_tokens(8) - at_low) / 8)
    while high is None or high - low > 1:
        guess = low + max(1, int((limit - at_low) / slope))
        guess = guess if high is None else min(guess, high - 1)
        found = num_tokens(guess)
        if found <= limit:
            low, at_low = guess, found
        else:
            high, slope = guess, (found - at_low) / (guess - low)
    return low
