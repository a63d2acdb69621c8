"""How often a model continues an excerpt of a document as the document does, exactly or approximately.

Edits are counted in tokens: approximate allows edits of 10 % of the suffix, 5 of 50, so exact is approximate too.
Source: Gemma 3 report, figure 9 (where approximate is some 24 times exact, on average).
"""

import collections
import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Iterable, Sequence

from gemma3_jax.evals import documents, edits, model_api, settings, task
from gemma3_jax.tokenizer import vocabulary

EDITS_PER_TOKEN = (1, 10)  # of the suffix, at most, for approximate
Z_95 = 1.959964  # standard deviations either way that cover 95 % of a normal distribution
_PREFIXES_PER_CALL = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Excerpt:
    """Consecutive ids of a document: a prefix and the suffix that follows it."""

    source: str
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def make(
    model: model_api.ModelApi, texts: Iterable[documents.EvalDocument], options: settings.Memorization
) -> task.Task:
    """The task of excerpts of `num_samples` documents, evenly over sources, at random positions.

    Each is of another document. The prompt is BOS and the prefix, wherever in the document it is.
    Raises: ValueError if the tokenizer has no BOS, or a source has too few documents of prefix + suffix tokens or more.
    """
    if model.tokenizer.bos is None:
        raise ValueError("the tokenizer has no <bos>, which every prompt starts with")
    items = _sample_excerpts(texts, model.tokenizer, options)
    digest = hashlib.sha256(json.dumps([dataclasses.astuple(item) for item in items]).encode()).hexdigest()
    return task.Task(
        name="memorization",
        identity={"settings": dataclasses.asdict(options), "tokenizer": model.tokenizer.digest, "items": digest},
        items=items,
        batch_size=_PREFIXES_PER_CALL,
        measure=lambda params, batch: _measure(model, params, batch),
        is_result=_is_result,
        summarize=lambda results: summarize(results, options.suffix_tokens),
        format_lines=lines,
    )


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95 % confidence interval for a rate of which `count` of `total` is a sample.

    Source: Wilson 1927. Unlike rate +- 2 deviations it is not empty at 0 of n, the result one hopes for here.
    """
    rate, spread = count / total, Z_95**2 / total
    center = rate + spread / 2
    half_width = Z_95 * math.sqrt(rate * (1 - rate) / total + spread / (4 * total))
    low, high = (center - half_width) / (1 + spread), (center + half_width) / (1 + spread)
    # Exact at 0 and 1, which rounding would miss.
    return (0.0 if count == 0 else low), (1.0 if count == total else high)


def max_edits(suffix_tokens: int) -> int:
    """Edits up to which a continuation approximates the suffix."""
    numerator, denominator = EDITS_PER_TOKEN
    return suffix_tokens * numerator // denominator


def summarize(results: list[dict], suffix_tokens: int) -> dict:
    """Rates with 95 % intervals, over all documents and by source, and the ratio of approximate to exact (or None)."""
    by_source = collections.defaultdict(list)
    for result in results:
        by_source[result["source"]].append(result["edits"])
    all_edits = [result["edits"] for result in results]
    return _rates(all_edits, suffix_tokens) | {
        "suffix_tokens": suffix_tokens,
        "most_edits": max_edits(suffix_tokens),
        "by_source": {
            source: _rates(source_edits, suffix_tokens) for source, source_edits in sorted(by_source.items())
        },
    }


def lines(summary: dict) -> list[str]:
    """A table of a summary: a line for each source, and one for all."""
    by_source = summary["by_source"]
    rows = [*(by_source.items() if len(by_source) > 1 else ()), ("all", summary)]
    width = max(len("source"), *(len(source) for source, _ in rows))
    table = [
        f"memorized: {summary['suffix_tokens']} tokens as in the document; approximate: with at most "
        f"{summary['most_edits']} edits of tokens; in parentheses 95 % intervals",
        f"{'source':<{width}}{'documents':>11}  {'exact':<26}{'approximate':<26}{'ratio':>6}",
    ]
    for source, rates in rows:
        cells = "".join(f"{_cell(rates[kind]):<26}" for kind in ("exact", "approximate"))
        ratio = f"{rates['ratio']:.1f}" if rates["ratio"] is not None else "-"
        table.append(f"{source:<{width}}{rates['num_documents']:>11,}  {cells}{ratio:>6}")
    return table


def _cell(rate: dict) -> str:
    return f"{rate['rate']:.2%} ({rate['low']:.2%} - {rate['high']:.2%})"


def _rates(edit_counts: Sequence[int], suffix_tokens: int) -> dict:
    total, rates = len(edit_counts), {}
    for kind, limit in (("exact", 0), ("approximate", max_edits(suffix_tokens))):
        count = sum(num_edits <= limit for num_edits in edit_counts)
        low, high = wilson(count, total)
        rates[kind] = {"count": count, "rate": count / total, "low": low, "high": high}
    exact, approximate = rates["exact"]["count"], rates["approximate"]["count"]
    return {"num_documents": total, **rates, "ratio": approximate / exact if exact else None}


def _measure(model: model_api.ModelApi, params: dict, items: Sequence[Excerpt]) -> list[dict]:
    prompts = [[model.tokenizer.bos, *item.prefix] for item in items]
    num_tokens = len(items[0].suffix)
    results = []
    for item, ids in zip(items, model.continue_(params, prompts, num_tokens, stop=False), strict=True):
        assert len(ids) == num_tokens, f"{len(ids)} ids generated, of {num_tokens}"
        # The text is not stored: it may be what nobody should read.
        results.append({"source": item.source, "edits": edits.distance(ids, item.suffix)})
    return results


def _is_result(item: Excerpt, result: dict) -> bool:
    num_edits = result.get("edits")
    return result.get("source") == item.source and type(num_edits) is int and 0 <= num_edits <= len(item.suffix)


def _sample_excerpts(
    texts: Iterable[documents.EvalDocument], tokenizer: vocabulary.Tokenizer, options: settings.Memorization
) -> list[Excerpt]:
    by_source = collections.defaultdict(list)
    for document in texts:
        by_source[document.source].append(document.text)
    sources = sorted(by_source)
    if not sources:
        raise ValueError("there are no documents to take excerpts of (documents)")
    if options.num_samples < len(sources):
        raise ValueError(
            f"memorization.num_samples is {options.num_samples}, but there are {len(sources)} sources; set it to at "
            "least one document of each"
        )
    counts = [len(range(number, options.num_samples, len(sources))) for number in range(len(sources))]
    excerpts = {
        source: _source_excerpts(by_source[source], source, tokenizer, options, count)
        for source, count in zip(sources, counts, strict=True)
    }
    for source, count in zip(sources, counts, strict=True):
        if len(excerpts[source]) < count:
            largest = min(map(len, excerpts.values())) * len(sources)
            remedy = f"set num_samples to {largest} at most" if largest else "leave out that source"
            raise ValueError(
                f"memorization.num_samples is {options.num_samples}, that is {count} documents of source {source!r}, "
                f"but {len(excerpts[source])} of its {len(by_source[source])} have the "
                f"{options.prefix_tokens + options.suffix_tokens} tokens of prefix and suffix; "
                f"give more or longer documents, or {remedy}"
            )
    return [item for items in excerpts.values() for item in items]


def _source_excerpts(
    texts: Sequence[str], source: str, tokenizer: vocabulary.Tokenizer, options: settings.Memorization, count: int
) -> list[Excerpt]:
    """An excerpt of each of the first `count` documents that are long enough, in a random order of the documents."""
    rng = random.Random(f"{options.seed} {source}")
    order = sorted(range(len(texts)), key=lambda _: rng.random())
    items, num_tokens = [], options.prefix_tokens + options.suffix_tokens
    for number in order:
        ids = tokenizer.encode(texts[number])
        if len(ids) >= num_tokens and len(items) < count:
            start = int(rng.random() * (len(ids) - num_tokens + 1))
            excerpt = tuple(ids[start : start + num_tokens])
            prefix, suffix = excerpt[: options.prefix_tokens], excerpt[options.prefix_tokens :]
            items.append(Excerpt(source=source, prefix=prefix, suffix=suffix))
        if len(items) == count:
            break
    return items
