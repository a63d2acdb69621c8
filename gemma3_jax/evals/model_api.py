"""A sampler as measures see it."""

from collections.abc import Sequence

from gemma3_jax.evals import logprobs, task
from gemma3_jax.inference import sampler, sampling


def of(gemma: sampler.Sampler) -> task.Subject:
    """Its parameters are read when the first score or text is asked for.

    Raises: ValueError if there is no tokenizer, or one without <bos> and <eos>.
    """
    if gemma.tokenizer is None:
        raise ValueError("the checkpoint has no tokenizer, and this task reads text; name one with --tokenizer=FILE")
    gemma.tokenizer.document("")

    def score(token_lists: Sequence[Sequence[int]]) -> list[list[float]]:
        return logprobs.score(gemma.model, gemma.params, token_lists, mesh=gemma.mesh, execute=gemma.execute)

    def go_on(prompts: Sequence[Sequence[int]], num_tokens: int, *, stop: bool = True) -> list[list[int]]:
        asked = sampler.Asked(max_new_tokens=num_tokens, how=sampling.GREEDY, ignore_ends=not stop)
        answers = gemma.go_on(prompts, asked)
        return [answer.ids if answer.ended_by == "length" else answer.ids[:-1] for answer in answers]

    return task.Subject(tokenizer=gemma.tokenizer, score=score, go_on=go_on)
