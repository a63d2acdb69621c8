"""Prompts of a given length in tokens: a question about a text, and as much of that text as fits."""

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
_FILLER_WORD = "a"  # one token with its space in most vocabularies, two where tokens are letters
_MAX_FILLER_WORDS = 64  # more than any part is worth, and not a text in itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a text of variable length."""

    head: str
    text: Callable[[int, str], str]  # (number of parts, filler words to append or "") -> the text
    tail: str  # the question, and the start of its answer
    references: tuple[str, ...]  # all strings that a correct answer contains
    min_parts: int  # with fewer, the question would not make sense
    max_parts: int | None = None


def min_tokens(question: Question, tokenizer: vocabulary.Tokenizer) -> int:
    """Tokens of the shortest prompt with this question, BOS included."""
    return len(_encode(question, tokenizer, question.min_parts))


def fill(question: Question, tokenizer: vocabulary.Tokenizer, length: int) -> list[int]:
    """The ids of a prompt of at most `length` tokens, BOS included, and at least 99 % of that (or one token less).

    Adds parts, then filler words. The tokens of a text are not the sum of its parts' tokens, so every try is encoded.
    Raises: ValueError if no number of parts and words has that length.
    """
    num_parts = _largest(lambda parts: len(_encode(question, tokenizer, parts)), length, question.max_parts)
    num_words = _largest(lambda words: len(_encode(question, tokenizer, num_parts, words)), length, _MAX_FILLER_WORDS)
    prompt = _encode(question, tokenizer, num_parts, num_words)
    if length - len(prompt) > max(1, length // 100):
        raise ValueError(f"no prompt has {length} tokens to within 1 %; the nearest has {len(prompt)}")
    return prompt


def _encode(question: Question, tokenizer: vocabulary.Tokenizer, num_parts: int, num_words: int = 0) -> list[int]:
    filler = " ".join([_FILLER_WORD] * num_words)
    return [tokenizer.bos, *tokenizer.encode(question.head + question.text(num_parts, filler) + question.tail)]


def _largest(num_tokens: Callable[[int], int], limit: int, maximum: int | None) -> int:
    """The largest n with num_tokens(n) <= limit. num_tokens is nearly linear, so that few evaluations are needed."""
    low, tokens_at_low, high = 0, num_tokens(0), None if maximum is None else maximum + 1
    assert tokens_at_low <= limit, f"{tokens_at_low} tokens without any filling, for {limit}"
    slope = max(1.0, (num_tokens(8) - tokens_at_low) / 8)
    while high is None or high - low > 1:
        guess = low + max(1, int((limit - tokens_at_low) / slope))
        guess = guess if high is None else min(guess, high - 1)
        tokens_at_guess = num_tokens(guess)
        if tokens_at_guess <= limit:
            low, tokens_at_low = guess, tokens_at_guess
        else:
            high, slope = guess, (tokens_at_guess - tokens_at_low) / (guess - low)
    return low
