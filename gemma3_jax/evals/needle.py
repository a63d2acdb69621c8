"""What a model finds in a long text: score by kind of question, length and depth, and the length up to which it holds.

A prompt has as many tokens as are asked for, BOS included; the answer comes on top. (RULER counts the answer too.)
"""

import dataclasses
import random
from collections.abc import Sequence

from gemma3_jax.evals import haystack, retrieval, settings, task

# What Llama-2-7B scores at 4,096 tokens: RULER calls a length effective up to which a model does no worse.
EFFECTIVE_SCORE = 85.6
# RULER's. A vocabulary of small pieces needs more: twice the tokens of the answer are always given.
ANSWER_TOKENS = {"single": 128, "multikey": 128, "multivalue": 128, "tracking": 30, "common_words": 120}
_AT_DEPTH = {
    "single": retrieval.single,
    "multikey": retrieval.multikey,
    "multivalue": retrieval.multivalue,
    "tracking": retrieval.tracking,
}
_PROMPTS_AT_ONCE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """A prompt that is not made yet."""

    kind: str
    length: int
    depth_percent: float | None  # None: what is looked for is all over the text
    sample: int
    times: tuple[int, int] | None  # common_words: how often a common word stands there, and any other


def make(subject: task.Subject, asked: settings.Needle) -> task.Task:
    """Prompts of every kind, length and depth, shortest first.

    Raises: ValueError if the tokenizer has no BOS, or if prompts of some kind cannot be of some length.
    """
    if subject.tokenizer.bos is None:
        raise ValueError("the tokenizer has no <bos>, which every prompt starts with")
    items = []
    for length in sorted(asked.lengths):
        for kind in asked.kinds:
            found = _items(subject, asked, kind, length)
            _check_fits(subject, asked, found[0])
            items += found
    return task.Task(
        name="needle",
        asked={"settings": dataclasses.asdict(asked), "tokenizer": subject.tokenizer.digest},
        items=items,
        items_at_once=_PROMPTS_AT_ONCE,
        measure=lambda some: _measure(subject, asked.seed, some),
        summarise=summarise,
        lines=lines,
    )


def prompt(subject: task.Subject, seed: int, item: Item) -> tuple[list[int], tuple[str, ...]]:
    """The ids of a prompt, and all that the answer to it has to hold."""
    question = _question(seed, item)
    return haystack.filled(question, subject.tokenizer, item.length), question.references


def score(references: Sequence[str], said: str) -> float:
    """How many of the references are in what was said, in any case of letters, out of 100."""
    return 100 * sum(reference.lower() in said.lower() for reference in references) / len(references)


def summarise(results: list[dict]) -> dict:
    """Scores: each cell a mean over its prompts; kinds count alike in a length, and lengths alike in all."""
    kinds = list(dict.fromkeys(result["kind"] for result in results))
    lengths = sorted({result["length"] for result in results})
    by_kind: dict = {kind: {} for kind in kinds}
    by_depth: dict = {kind: {} for kind in kinds}
    times = {}
    for kind in kinds:
        for length in lengths:
            cell = [result for result in results if (result["kind"], result["length"]) == (kind, length)]
            by_kind[kind][str(length)] = _mean(result["score"] for result in cell)
            depths = sorted({result["depth_percent"] for result in cell if result["depth_percent"] is not None})
            by_depth[kind][str(length)] = {
                f"{depth:g}": _mean(result["score"] for result in cell if result["depth_percent"] == depth)
                for depth in depths
            }
            if cell[0]["times"]:
                common, other = cell[0]["times"]
                times[str(length)] = {"common": common, "other": other}
    by_length = {str(length): _mean(by_kind[kind][str(length)] for kind in kinds) for length in lengths}
    effective = None
    for length in lengths:
        if by_length[str(length)] < EFFECTIVE_SCORE:
            break
        effective = length
    return {
        "score": _mean(by_length.values()),
        "effective_length": effective,  # tokens; None: not even the shortest
        "effective_score": EFFECTIVE_SCORE,
        "by_length": by_length,
        "by_kind": by_kind,
        "by_depth": by_depth,  # of a kind and length: depth in percent -> score; empty where depth means nothing
        "word_times": times,
        "num_prompts": len(results),
    }


def lines(summary: dict) -> list[str]:
    """A grid of lengths and depths for every kind, then all of them."""
    told = ["retrieval: score out of 100 by tokens of the prompt, and by where in it the (first) needle is"]
    for kind, by_length in summary["by_kind"].items():
        depths = list(next(iter(summary["by_depth"][kind].values())))
        told.append(f"{kind:<14}" + "".join(f"{depth:>6} %" for depth in depths) + f"{'mean':>8}")
        for length, mean in by_length.items():
            cells = [*summary["by_depth"][kind][length].values(), mean]
            times = summary["word_times"].get(length) if kind == "common_words" else None
            note = f"   common words {times['common']} times, others {times['other']}" if times else ""
            told.append(f"{int(length):>14,}" + "".join(f"{cell:>8.1f}" for cell in cells) + note)
    told.append(f"{'every kind':<14}{'mean':>8}")
    told += [f"{int(length):>14,}{mean:>8.1f}" for length, mean in summary["by_length"].items()]
    effective = summary["effective_length"]
    told.append(
        f"effective length: {f'{effective:,} tokens' if effective else 'none of these'} "
        f"(the longest with {summary['effective_score']} or more, as all shorter ones have)"
    )
    return told


def _items(subject: task.Subject, asked: settings.Needle, kind: str, length: int) -> list[Item]:
    if kind == "common_words":
        times = _times(subject, asked, length)
        num_items = asked.num_depths * asked.num_samples  # as many as of the other kinds
        return [_spread(length, sample, times) for sample in range(num_items)]
    return [
        Item(kind=kind, length=length, depth_percent=depth, sample=sample, times=None)
        for depth in _depths(asked.num_depths)
        for sample in range(asked.num_samples)
    ]


def _depths(num_depths: int) -> list[float]:
    """In percent, from 0 to 100; one alone is the middle."""
    if num_depths == 1:
        return [50.0]
    return [round(100 * place / (num_depths - 1), 1) for place in range(num_depths)]


def _spread(length: int, sample: int, times: tuple[int, int]) -> Item:
    return Item(kind="common_words", length=length, depth_percent=None, sample=sample, times=times)


def _times(subject: task.Subject, asked: settings.Needle, length: int) -> tuple[int, int]:
    """The first of `retrieval.TIMES` that leaves a third of the list to other words; the last if none does."""
    for times in retrieval.TIMES:
        if _least(subject, asked, _spread(length, 0, times)) <= length:
            return times
    return retrieval.TIMES[-1]


def _least(subject: task.Subject, asked: settings.Needle, item: Item) -> int:
    """Tokens that such a prompt takes at any length. Some take a few more: the least filling has room for that."""
    question = _question(asked.seed, dataclasses.replace(item, length=0))
    return haystack.least_tokens(question, subject.tokenizer)


def _check_fits(subject: task.Subject, asked: settings.Needle, item: Item) -> None:
    """Makes a first prompt. Raises: ValueError if it cannot be."""
    if (least := _least(subject, asked, item)) > item.length:
        raise ValueError(
            f"needle.lengths has {item.length} tokens, but prompts of kind {item.kind} take at least {least} with this "
            "tokenizer; leave out that length, or that kind in needle.kinds"
        )
    try:
        prompt(subject, asked.seed, item)
    except ValueError as error:
        raise ValueError(f"needle.lengths has {item.length}, and prompts of kind {item.kind}: {error}") from error


def _question(seed: int, item: Item) -> haystack.Question:
    draw = random.Random(f"{seed} {item.kind} {item.length} {item.depth_percent} {item.sample}")
    if item.kind == "common_words":
        return retrieval.common_words(draw, item.times)
    return _AT_DEPTH[item.kind](draw, item.depth_percent / 100)


def _measure(subject: task.Subject, seed: int, items: Sequence[Item]) -> list[dict]:
    prompts, references = zip(*(prompt(subject, seed, item) for item in items), strict=True)
    budgets = [
        max(ANSWER_TOKENS[item.kind], 2 * len(subject.tokenizer.encode(" ".join(expected))))
        for item, expected in zip(items, references, strict=True)
    ]
    # Greedy text goes on the same however long it goes on, so that what is cut off does not depend on the others.
    gone_on = subject.go_on(list(prompts), max(budgets), stop=True)
    results = []
    for item, tokens, expected, budget, ids in zip(items, prompts, references, budgets, gone_on, strict=True):
        said = subject.tokenizer.decode(ids[:budget])
        results.append(
            {
                "kind": item.kind,
                "length": item.length,
                "depth_percent": item.depth_percent,
                "sample": item.sample,
                "times": list(item.times) if item.times else None,
                "num_tokens": len(tokens),
                "references": list(expected),
                "said": said,
                "score": score(expected, said),
            }
        )
    return results


def _mean(scores) -> float:
    scores = list(scores)
    return sum(scores) / len(scores)
