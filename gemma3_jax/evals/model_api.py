"""A model as evaluations see it: it scores lists of ids and continues prompts. Parameters are an argument.

So the same evaluation runs on a checkpoint, during training, and on a stand-in of a few lines.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from gemma3_jax.evals import logprobs
from gemma3_jax.inference import sampler, sampling
from gemma3_jax.tokenizer import vocabulary


@runtime_checkable
class Score(Protocol):
    """For each list, the log-probability (nats, <= 0) of each id after the first."""

    def __call__(self, params: dict, token_lists: Sequence[Sequence[int]]) -> list[list[float]]: ...


@runtime_checkable
class Continue(Protocol):
    """Greedy continuations of prompts, of at most `num_tokens` ids.

    With `stop`, each ends before the first id that ends a document or a turn; without, it has exactly that many ids.
    """

    def __call__(
        self, params: dict, prompts: Sequence[Sequence[int]], num_tokens: int, *, stop: bool = True
    ) -> list[list[int]]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelApi:
    """What an evaluation may do with a model."""

    tokenizer: vocabulary.Tokenizer
    score: Score
    continue_: Continue


def of_sampler(gemma: sampler.Sampler) -> ModelApi:
    """The API of a sampler's model.

    Raises: ValueError if there is no tokenizer, or one without <bos> and <eos>.
    """
    if gemma.tokenizer is None:
        raise ValueError("the checkpoint has no tokenizer, and this task reads text; name one with --tokenizer=FILE")
    gemma.tokenizer.document("")  # raises without <bos> and <eos>
    compiled = gemma.engine

    def score(params: dict, token_lists: Sequence[Sequence[int]]) -> list[list[float]]:
        return logprobs.score(compiled.model, params, token_lists, mesh=compiled.mesh, execute=compiled.execute)

    def continue_(
        params: dict, prompts: Sequence[Sequence[int]], num_tokens: int, *, stop: bool = True
    ) -> list[list[int]]:
        options = sampler.GenerateOptions(
            max_new_tokens=num_tokens, sampling_options=sampling.GREEDY, ignore_ends=not stop
        )
        completions = gemma.continue_(params, prompts, options)
        return [
            completion.ids if completion.ended_by == "length" else completion.ids[:-1] for completion in completions
        ]

    return ModelApi(tokenizer=gemma.tokenizer, score=score, continue_=continue_)
