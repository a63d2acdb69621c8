"""Retrieval from long texts: scores by kind of question, length and depth, and the effective context length.

A prompt has the requested number of tokens, BOS included, and the answer comes on top. (RULER counts the answer too.)
"""

import dataclasses
import random
from collections.abc import Sequence

from gemma3_jax.evals import haystack, model_api, retrieval, settings, task

# Llama-2-7B's score at 4,096 tokens: in RULER, a model's effective length is the longest with no lower score.
EFFECTIVE_SCORE = 85.6
# RULER's. Vocabularies of small pieces need more: the budget is at least twice the tokens of the answer.
ANSWER_TOKENS = {"single": 128, "multikey": 128, "multivalue": 128, "tracking": 30, "common_words": 120}
_AT_DEPTH = {
    "single": retrieval.single,
    "multikey": retrieval.multikey,
    "multivalue": retrieval.multivalue,
    "tracking": retrieval.tracking,
}
_PROMPTS_PER_CALL = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedlePrompt:
    """What determines a prompt, together with the seed."""

    kind: str
    length: int
    depth_percent: float | None  # None: the answer is all over the text
    sample: int
    times: tuple[int, int] | None  # common_words: how often a common word occurs, and any other


def make(model: model_api.ModelApi, options: settings.Needle) -> task.Task:
    """The task of prompts of every kind, length and depth, shortest first.

    Raises: ValueError if the tokenizer has no BOS, or if prompts of some kind cannot have some length.
    """
    if model.tokenizer.bos is None:
        raise ValueError("the tokenizer has no <bos>, which every prompt starts with")
    items = []
    for length in sorted(options.lengths):
        for kind in options.kinds:
            cell = _items(model, options, kind, length)
            _check_fits(model, options, cell[0])
            items += cell
    return task.Task(
        name="needle",
        identity={"settings": dataclasses.asdict(options), "tokenizer": model.tokenizer.digest},
        items=items,
        batch_size=_PROMPTS_PER_CALL,
        measure=lambda params, batch: _measure(model, params, options.seed, batch),
        is_result=_is_result,
        summarize=summarize,
        format_lines=lines,
    )


def prompt(model: model_api.ModelApi, seed: int, item: NeedlePrompt) -> tuple[list[int], tuple[str, ...]]:
    """The ids of a prompt, and all strings that a correct answer contains."""
    question = _question(seed, item)
    return haystack.fill(question, model.tokenizer, item.length), question.references


def score(references: Sequence[str], answer: str) -> float:
    """The percentage of references that are in the answer, ignoring case."""
    return 100 * sum(reference.lower() in answer.lower() for reference in references) / len(references)


def summarize(results: list[dict]) -> dict:
    """Mean scores: of a cell over its prompts, of a length over kinds, and in total over lengths."""
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
        "effective_length": effective,  # tokens; None: shorter than the shortest
        "effective_score": EFFECTIVE_SCORE,
        "by_length": by_length,
        "by_kind": by_kind,
        "by_depth": by_depth,  # kind -> length -> depth in percent -> score; empty for kinds without a depth
        "word_times": times,
        "num_prompts": len(results),
    }


def lines(summary: dict) -> list[str]:
    """A grid of lengths and depths for every kind, then the scores of all."""
    table = ["retrieval: score out of 100, by prompt length in tokens and depth of the (first) needle"]
    for kind, by_length in summary["by_kind"].items():
        depths = list(next(iter(summary["by_depth"][kind].values())))
        table.append(f"{kind:<14}" + "".join(f"{depth:>6} %" for depth in depths) + f"{'mean':>8}")
        for length, mean in by_length.items():
            cells = [*summary["by_depth"][kind][length].values(), mean]
            times = summary["word_times"].get(length) if kind == "common_words" else None
            note = f"   common words {times['common']} times, others {times['other']}" if times else ""
            table.append(f"{int(length):>14,}" + "".join(f"{cell:>8.1f}" for cell in cells) + note)
    table.append(f"{'every kind':<14}{'mean':>8}")
    table += [f"{int(length):>14,}{mean:>8.1f}" for length, mean in summary["by_length"].items()]
    effective = summary["effective_length"]
    table.append(
        f"effective length: {f'{effective:,} tokens' if effective else 'none of these'} "
        f"(the longest with {summary['effective_score']} or more, as all shorter ones have)"
    )
    return table


def _items(model: model_api.ModelApi, options: settings.Needle, kind: str, length: int) -> list[NeedlePrompt]:
    if kind == "common_words":
        times = _times(model, options, length)
        num_items = options.num_depths * options.num_samples  # as many as the other kinds have
        return [_common_words(length, sample, times) for sample in range(num_items)]
    return [
        NeedlePrompt(kind=kind, length=length, depth_percent=depth, sample=sample, times=None)
        for depth in _depths(options.num_depths)
        for sample in range(options.num_samples)
    ]


def _depths(num_depths: int) -> list[float]:
    """Depths in percent, from 0 to 100; a single one is 50."""
    if num_depths == 1:
        return [50.0]
    return [round(100 * number / (num_depths - 1), 1) for number in range(num_depths)]


def _common_words(length: int, sample: int, times: tuple[int, int]) -> NeedlePrompt:
    return NeedlePrompt(kind="common_words", length=length, depth_percent=None, sample=sample, times=times)


def _times(model: model_api.ModelApi, options: settings.Needle, length: int) -> tuple[int, int]:
    """The first of `retrieval.TIMES` that leaves a third of the list to other words, or the last of them."""
    for times in retrieval.TIMES:
        if _min_tokens(model, options, _common_words(length, 0, times)) <= length:
            return times
    return retrieval.TIMES[-1]


def _min_tokens(model: model_api.ModelApi, options: settings.Needle, item: NeedlePrompt) -> int:
    """Minimum tokens of such a prompt. Some prompts take a few more, for which the minimal filling has room."""
    question = _question(options.seed, dataclasses.replace(item, length=0))
    return haystack.min_tokens(question, model.tokenizer)


def _check_fits(model: model_api.ModelApi, options: settings.Needle, item: NeedlePrompt) -> None:
    """Raises: ValueError if the first prompt cannot be made."""
    if (minimum := _min_tokens(model, options, item)) > item.length:
        raise ValueError(
            f"needle.lengths has {item.length} tokens, but prompts of kind {item.kind} take at least {minimum} with "
            "this tokenizer; leave out that length, or that kind in needle.kinds"
        )
    try:
        prompt(model, options.seed, item)
    except ValueError as error:
        raise ValueError(f"needle.lengths has {item.length}, and prompts of kind {item.kind}: {error}") from error


def _question(seed: int, item: NeedlePrompt) -> haystack.Question:
    rng = random.Random(f"{seed} {item.kind} {item.length} {item.depth_percent} {item.sample}")
    if item.kind == "common_words":
        return retrieval.common_words(rng, item.times)
    return _AT_DEPTH[item.kind](rng, item.depth_percent / 100)


def _measure(model: model_api.ModelApi, params: dict, seed: int, items: Sequence[NeedlePrompt]) -> list[dict]:
    prompts, references = zip(*(prompt(model, seed, item) for item in items), strict=True)
    budgets = [
        max(ANSWER_TOKENS[item.kind], 2 * len(model.tokenizer.encode(" ".join(expected))))
        for item, expected in zip(items, references, strict=True)
    ]
    # Greedy text does not depend on how long it is, so that an answer cut to its budget does not depend on the batch.
    answers = model.continue_(params, list(prompts), max(budgets), stop=True)
    results = []
    for item, tokens, expected, budget, ids in zip(items, prompts, references, budgets, answers, strict=True):
        answer = model.tokenizer.decode(ids[:budget])
        results.append(
            {
                **_origin(item),
                "num_tokens": len(tokens),
                "references": list(expected),
                "said": answer,
                "score": score(expected, answer),
            }
        )
    return results


def _origin(item: NeedlePrompt) -> dict:
    """What a result has of its prompt; the keys are the file format."""
    return dataclasses.asdict(item) | {"times": list(item.times) if item.times else None}


def _is_result(item: NeedlePrompt, result: dict) -> bool:
    points = result.get("score")
    return {**result, **_origin(item)} == result and isinstance(points, float) and 0 <= points <= 100


def _mean(scores) -> float:
    scores = list(scores)
    return sum(scores) / len(scores)
