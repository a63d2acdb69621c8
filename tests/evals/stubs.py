"""Models of a few lines to measure."""

import zlib
from collections.abc import Callable, Sequence

from gemma3_jax.evals import task
from tests import texts


def scoring(score_one: Callable[[Sequence[int]], list[float]], called: list | None = None) -> task.Subject:
    """A subject that scores each list by itself, and notes in `called` which lists it was asked for."""

    def score(token_lists):
        if called is not None:
            called.extend(token_lists)
        return [score_one(tokens) for tokens in token_lists]

    def go_on(prompts, num_tokens, *, stop=True):
        raise NotImplementedError("this model can only score")

    return task.Subject(tokenizer=texts.tokenizer(), score=score, go_on=go_on)


def of_last(reach: int) -> Callable[[Sequence[int]], list[float]]:
    """Scores of each id that depend on it and the `reach` ids before it, and on nothing else."""

    def score_one(tokens):
        seen = [tuple(tokens[max(0, place - reach) : place + 1]) for place in range(1, len(tokens))]
        return [-(zlib.crc32(repr(ids).encode()) % 10_000) / 1_000 for ids in seen]

    return score_one
