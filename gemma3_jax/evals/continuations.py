"""Continuations of contexts, in ids: their log-probabilities, whether they are greedy, and greedy text.

These are the questions that evaluation libraries ask of a model; `harness` translates those of lm-eval.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence

from gemma3_jax import console
from gemma3_jax.evals import model_api

LISTS_PER_CALL = 512  # scored together, longest first: few shapes are compiled, and lack of memory shows at once
FIRST_TOKENS = 32  # generated before the first search for stop strings; the number doubles for each further search
MARGIN = 1e-3  # by which rounding in another batch may change a probability, or its logarithm


@dataclasses.dataclass(frozen=True)
class Pair:
    """A context and a possible continuation; neither is empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class GenerationRequest:
    """A prompt to continue, by at most `num_tokens`, up to the first of some stop strings."""

    prompt: tuple[int, ...]
    num_tokens: int
    stops: tuple[str, ...] = ()


def score(
    model: model_api.ModelApi, params: dict, pairs: Sequence[Pair], *, bar: console.Bar = console.silent_bar
) -> list[list[float]]:
    """For each pair, the log-probability (nats, <= 0) of each id of the continuation.

    Raises: ValueError if one is not finite.
    """
    results: list[list[float]] = [[]] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda number: -len(pairs[number].context + pairs[number].continuation))
    with bar("score", len(pairs)) as progress:
        for start in range(0, len(order), LISTS_PER_CALL):
            numbers = order[start : start + LISTS_PER_CALL]
            token_lists = [[*pairs[number].context, *pairs[number].continuation] for number in numbers]
            for number, nats in zip(numbers, model.score(params, token_lists), strict=True):
                results[number] = nats[-len(pairs[number].continuation) :]
                if not all(map(math.isfinite, results[number])):
                    raise ValueError(
                        f"the model gives request {number} a log-probability that is not finite; its weights are broken"
                    )
            progress.update(len(numbers))
    return results


def are_greedy(
    model: model_api.ModelApi,
    params: dict,
    pairs: Sequence[Pair],
    nats: Sequence[Sequence[float]],
    *,
    prompts_per_call: int,
    bar: console.Bar = console.silent_bar,
) -> list[bool]:
    """Whether greedy decoding generates each continuation after its context; `nats` are the results of `score`.

    The model is run only where the scores do not decide: an id is not greedy if another scored id is likelier in its
    position, and is greedy if no other id can be likelier. Each context is continued once.
    """
    verdicts = _verdicts(pairs, nats)
    longest: dict[tuple[int, ...], int] = collections.defaultdict(int)
    for pair, verdict in zip(pairs, verdicts, strict=True):
        if verdict is None:
            longest[pair.context] = max(longest[pair.context], len(pair.continuation))
    contexts = sorted(longest, key=lambda context: (-longest[context], -len(context)))
    greedy = {}
    with bar("greedy", len(contexts)) as progress:
        for start in range(0, len(contexts), prompts_per_call):
            batch = contexts[start : start + prompts_per_call]
            ids = model.continue_(params, [list(context) for context in batch], longest[batch[0]], stop=False)
            greedy |= dict(zip(batch, map(tuple, ids), strict=True))
            progress.update(len(batch))
    return [
        greedy[pair.context][: len(pair.continuation)] == pair.continuation if verdict is None else verdict
        for pair, verdict in zip(pairs, verdicts, strict=True)
    ]


def generate_until(
    model: model_api.ModelApi,
    params: dict,
    requests: Sequence[GenerationRequest],
    *,
    prompts_per_call: int,
    bar: console.Bar = console.silent_bar,
) -> list[str]:
    """The greedy text after each prompt, up to its first stop string, the end of the document or turn, or its length.

    Generates a few tokens at first, then continues the requests that are not finished.
    """
    ids: list[list[int]] = [[] for _ in requests]
    unfinished, num_tokens = list(range(len(requests))), FIRST_TOKENS
    with bar("generate", len(requests)) as progress:
        while unfinished:
            unfinished.sort(key=lambda number: -len(requests[number].prompt) - len(ids[number]))
            still_unfinished = []
            for start in range(0, len(unfinished), prompts_per_call):
                batch = unfinished[start : start + prompts_per_call]
                max_tokens = min(num_tokens, max(requests[number].num_tokens - len(ids[number]) for number in batch))
                prompts = [[*requests[number].prompt, *ids[number]] for number in batch]
                for number, new_ids in zip(batch, model.continue_(params, prompts, max_tokens, stop=True), strict=True):
                    request = requests[number]
                    ids[number] = (ids[number] + new_ids)[: request.num_tokens]
                    is_complete = len(new_ids) < max_tokens or len(ids[number]) == request.num_tokens
                    if is_complete or any(stop in model.tokenizer.decode(ids[number]) for stop in request.stops):
                        progress.update(1)
                    else:
                        still_unfinished.append(number)
            unfinished, num_tokens = still_unfinished, 2 * num_tokens
    return [
        _until(model.tokenizer.decode(tokens), request.stops) for tokens, request in zip(ids, requests, strict=True)
    ]


def _until(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of some strings."""
    return text[: min((position for position in map(text.find, stops) if position >= 0), default=len(text))]


@dataclasses.dataclass
class _TrieNode:
    """A prefix of continuations: the ids that were scored after it, and their probabilities."""

    children: dict[int, "_TrieNode"] = dataclasses.field(default_factory=dict)
    best: float = -math.inf  # nats of the likeliest child
    second: float = -math.inf
    mass: float = 0.0  # probability of all children


def _verdicts(pairs: Sequence[Pair], nats: Sequence[Sequence[float]]) -> list[bool | None]:
    """Whether each continuation is greedy, as far as the scores decide it; None where they do not."""
    roots: dict[tuple[int, ...], _TrieNode] = collections.defaultdict(_TrieNode)
    for pair, values in zip(pairs, nats, strict=True):
        node = roots[pair.context]
        for token, value in zip(pair.continuation, values, strict=True):
            if token not in node.children:
                node.children[token] = _TrieNode()
                node.second, node.best = sorted((node.second, node.best, value))[1:]
                node.mass += math.exp(value)
            node = node.children[token]
    return [_verdict(roots[pair.context], pair, values) for pair, values in zip(pairs, nats, strict=True)]


def _verdict(node: _TrieNode, pair: Pair, nats: Sequence[float]) -> bool | None:
    is_certain = True
    for token, value in zip(pair.continuation, nats, strict=True):
        if value < node.best - MARGIN:
            return False
        best_other = max(node.second, math.log(max(1 - node.mass, 1e-9)))  # at most, scored or not
        is_certain &= value > best_other + MARGIN
        node = node.children[token]
    return True if is_certain else None
