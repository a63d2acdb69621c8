"""Models of a few lines for evaluations."""

import zlib
from collections.abc import Callable, Sequence

from gemma3_jax.evals import model_api
from tests import texts


def scoring(score_one: Callable[[Sequence[int]], list[float]], called: list | None = None) -> model_api.ModelApi:
    """A model that scores each list by itself, and records the lists in `called`."""

    def score(params, token_lists):
        if called is not None:
            called.extend(token_lists)
        return [score_one(tokens) for tokens in token_lists]

    def continue_(params, prompts, num_tokens, *, stop=True):
        raise NotImplementedError("this model can only score")

    return model_api.ModelApi(tokenizer=texts.tokenizer(), score=score, continue_=continue_)


def of_last(reach: int) -> Callable[[Sequence[int]], list[float]]:
    """Scores of each id that depend on it and the `reach` ids before it, and on nothing else."""

    def score_one(tokens):
        read = [tuple(tokens[max(0, position - reach) : position + 1]) for position in range(1, len(tokens))]
        return [-(zlib.crc32(repr(ids).encode()) % 10_000) / 1_000 for ids in read]

    return score_one


def no_params() -> dict:
    """The parameters of a stub."""
    return {}
