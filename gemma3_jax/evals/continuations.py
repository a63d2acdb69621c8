"""Continuations of contexts, in ids: what they weigh, whether a model would choose them, and what it would say instead.

This is what programs that compare models ask of one; `harness` says it in words of lm-eval.
"""

import collections
import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

from gemma3_jax.evals import task

LISTS_AT_ONCE = 512  # scored in one call, longest first: few shapes are compiled, and what is too much shows at once
FIRST_TOKENS = 32  # generated before stop strings are looked for; then twice as many, and so on
MARGIN = 1e-3  # what rounding in another batch may do to a probability, or to its logarithm

# What is done, and of how many -> what is told how many more are done.
Bar = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], object]]]


@contextlib.contextmanager
def silent(label: str, total: int) -> Iterator[Callable[[int], object]]:
    """A bar that nobody sees."""
    yield lambda num_done: None


@dataclasses.dataclass(frozen=True)
class Pair:
    """A context and one thing that may follow it; neither is empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Wish:
    """A text to be generated: what it follows, its most tokens, and the strings before which it ends."""

    prompt: tuple[int, ...]
    num_tokens: int
    stops: tuple[str, ...] = ()


def score(subject: task.Subject, pairs: Sequence[Pair], *, bar: Bar = silent) -> list[list[float]]:
    """Nats of each id of each continuation, <= 0, after the context and the ids before it.

    Raises: ValueError if one is not finite.
    """
    found: list[list[float]] = [[]] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda number: -len(pairs[number].context + pairs[number].continuation))
    with bar("score", len(pairs)) as progress:
        for start in range(0, len(order), LISTS_AT_ONCE):
            numbers = order[start : start + LISTS_AT_ONCE]
            scores = subject.score([[*pairs[number].context, *pairs[number].continuation] for number in numbers])
            for number, nats in zip(numbers, scores, strict=True):
                found[number] = nats[-len(pairs[number].continuation) :]
                if not all(map(math.isfinite, found[number])):
                    raise ValueError(
                        f"the model gives request {number} a log-probability that is not finite; its weights are broken"
                    )
            progress(len(numbers))
    return found


def are_greedy(
    subject: task.Subject,
    pairs: Sequence[Pair],
    nats: Sequence[Sequence[float]],
    *,
    prompts_at_once: int,
    bar: Bar = silent,
) -> list[bool]:
    """Whether each continuation is what greedy decoding writes after its context; `nats` are those of `score`.

    The model is asked only where its scores leave it open: an id is not chosen if another that was scored at its place
    is likelier, and is if no other can be. Each context is continued once.
    """
    verdicts = _verdicts(pairs, nats)
    longest: dict[tuple[int, ...], int] = collections.defaultdict(int)
    for pair, verdict in zip(pairs, verdicts, strict=True):
        if verdict is None:
            longest[pair.context] = max(longest[pair.context], len(pair.continuation))
    contexts = sorted(longest, key=lambda context: (-longest[context], -len(context)))
    chosen = {}
    with bar("greedy", len(contexts)) as progress:
        for start in range(0, len(contexts), prompts_at_once):
            batch = contexts[start : start + prompts_at_once]
            texts = subject.go_on([list(context) for context in batch], longest[batch[0]], stop=False)
            chosen |= dict(zip(batch, map(tuple, texts), strict=True))
            progress(len(batch))
    return [
        chosen[pair.context][: len(pair.continuation)] == pair.continuation if verdict is None else verdict
        for pair, verdict in zip(pairs, verdicts, strict=True)
    ]


def until(subject: task.Subject, wishes: Sequence[Wish], *, prompts_at_once: int, bar: Bar = silent) -> list[str]:
    """The greedy text after each prompt, up to the first of its stops, the end of the document or turn, or its length.

    After few tokens those that have met a stop are done, and the others go on from there.
    """
    ids: list[list[int]] = [[] for _ in wishes]
    at_work, num_tokens = list(range(len(wishes))), FIRST_TOKENS
    with bar("generate", len(wishes)) as progress:
        while at_work:
            at_work.sort(key=lambda number: -len(wishes[number].prompt) - len(ids[number]))
            going_on = []
            for start in range(0, len(at_work), prompts_at_once):
                batch = at_work[start : start + prompts_at_once]
                asked = min(num_tokens, max(wishes[number].num_tokens - len(ids[number]) for number in batch))
                texts = subject.go_on([[*wishes[number].prompt, *ids[number]] for number in batch], asked, stop=True)
                for number, text in zip(batch, texts, strict=True):
                    wish = wishes[number]
                    ids[number] = (ids[number] + text)[: wish.num_tokens]
                    is_whole = len(text) < asked or len(ids[number]) == wish.num_tokens
                    if is_whole or any(stop in subject.tokenizer.decode(ids[number]) for stop in wish.stops):
                        progress(1)
                    else:
                        going_on.append(number)
            at_work, num_tokens = going_on, 2 * num_tokens
    return [_before(subject.tokenizer.decode(tokens), wish.stops) for tokens, wish in zip(ids, wishes, strict=True)]


def _before(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of some strings."""
    return text[: min((place for place in map(text.find, stops) if place >= 0), default=len(text))]


@dataclasses.dataclass
class _Place:
    """What is known of the ids that may stand at one place: those that were scored there, and what follows each."""

    after: dict[int, "_Place"] = dataclasses.field(default_factory=dict)
    best: float = -math.inf  # nats of the likeliest
    second: float = -math.inf
    mass: float = 0.0  # probability of all of them


def _verdicts(pairs: Sequence[Pair], nats: Sequence[Sequence[float]]) -> list[bool | None]:
    """Whether each continuation is greedy, as far as the scores of all say it; None: they do not."""
    starts: dict[tuple[int, ...], _Place] = collections.defaultdict(_Place)
    for pair, values in zip(pairs, nats, strict=True):
        place = starts[pair.context]
        for token, value in zip(pair.continuation, values, strict=True):
            if token not in place.after:
                place.after[token] = _Place()
                place.second, place.best = sorted((place.second, place.best, value))[1:]
                place.mass += math.exp(value)
            place = place.after[token]
    return [_verdict(starts[pair.context], pair, values) for pair, values in zip(pairs, nats, strict=True)]


def _verdict(place: _Place, pair: Pair, nats: Sequence[float]) -> bool | None:
    is_sure = True
    for token, value in zip(pair.continuation, nats, strict=True):
        if value < place.best - MARGIN:
            return False
        others = max(place.second, math.log(max(1 - place.mass, 1e-9)))  # the likeliest may be, scored or not
        is_sure &= value > others + MARGIN
        place = place.after[token]
    return True if is_sure else None
