"""How often a model goes on from a piece of a document as the document does: exactly, or with few ids of difference.

The unit of edits is the token: at most 10 % of the suffix, 5 of 50, is approximate; what is exact is approximate too.
Source: Gemma 3 report, figure 9 (where approximate is some 24 times exact, on average).
"""

import collections
import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from gemma3_jax.evals import edits, settings, task
from gemma3_jax.tokenizer import vocabulary

EDITS_PER_TOKEN = (1, 10)  # of the suffix, at most, for approximate
Z_95 = 1.959964  # standard deviations each way that hold 95 % of a normal distribution
_PREFIXES_AT_ONCE = 64


@runtime_checkable
class Document(Protocol):
    """A text, and where it is from."""

    @property
    def source(self) -> str: ...

    @property
    def text(self) -> str: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """Ids of a document that stand behind one another."""

    source: str
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def make(subject: task.Subject, documents: Iterable[Document], asked: settings.Memorization) -> task.Task:
    """A piece of each of `num_samples` documents, as many of every source, from a place in it that the seed draws.

    A document is asked about once. The prefix is given after BOS, wherever it stands in the document.
    Raises: ValueError if the tokenizer has no BOS, or a source has too few documents of prefix + suffix tokens or more.
    """
    if subject.tokenizer.bos is None:
        raise ValueError("the tokenizer has no <bos>, which every prompt starts with")
    items = _sampled(documents, subject.tokenizer, asked)
    digest = hashlib.sha256(json.dumps([dataclasses.astuple(item) for item in items]).encode()).hexdigest()
    return task.Task(
        name="memorization",
        asked={"settings": dataclasses.asdict(asked), "tokenizer": subject.tokenizer.digest, "items": digest},
        items=items,
        items_at_once=_PREFIXES_AT_ONCE,
        measure=lambda some: _measure(subject, some),
        summarise=lambda results: summarise(results, asked.suffix_tokens),
        lines=lines,
    )


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval for a rate of which `count` of `total` is a sample.

    Source: Wilson 1927. Unlike rate +- 2 deviations it is not empty at 0 of n, which is what one hopes to see here.
    """
    rate, spread = count / total, Z_95**2 / total
    middle = rate + spread / 2
    reach = Z_95 * math.sqrt(rate * (1 - rate) / total + spread / (4 * total))
    low, high = (middle - reach) / (1 + spread), (middle + reach) / (1 + spread)
    # At the ends they are the ends, but for rounding.
    return (0.0 if count == 0 else low), (1.0 if count == total else high)


def most_edits(suffix_tokens: int) -> int:
    """Edits up to which a continuation is approximately the suffix."""
    part, of = EDITS_PER_TOKEN
    return suffix_tokens * part // of


def summarise(results: list[dict], suffix_tokens: int) -> dict:
    """Rates with 95 % intervals, over all documents and by source, and approximate over exact (None: none is exact)."""
    by_source = collections.defaultdict(list)
    for result in results:
        by_source[result["source"]].append(result["edits"])
    edits_of_all = [result["edits"] for result in results]
    return _rates(edits_of_all, suffix_tokens) | {
        "suffix_tokens": suffix_tokens,
        "most_edits": most_edits(suffix_tokens),
        "by_source": {source: _rates(found, suffix_tokens) for source, found in sorted(by_source.items())},
    }


def lines(summary: dict) -> list[str]:
    """A table of a summary, a line for each source and one for all."""
    by_source = summary["by_source"]
    rows = [*(by_source.items() if len(by_source) > 1 else ()), ("all", summary)]
    width = max(len("source"), *(len(source) for source, _ in rows))
    told = [
        f"memorised: {summary['suffix_tokens']} tokens said as the document has them; approximate: with at most "
        f"{summary['most_edits']} edits of tokens; in brackets 95 % intervals",
        f"{'source':<{width}}{'documents':>11}  {'exact':<26}{'approximate':<26}{'ratio':>6}",
    ]
    for source, rates in rows:
        cells = "".join(f"{_cell(rates[kind]):<26}" for kind in ("exact", "approximate"))
        ratio = f"{rates['ratio']:.1f}" if rates["ratio"] is not None else "-"
        told.append(f"{source:<{width}}{rates['num_documents']:>11,}  {cells}{ratio:>6}")
    return told


def _cell(rate: dict) -> str:
    return f"{rate['rate']:.2%} ({rate['low']:.2%} - {rate['high']:.2%})"


def _rates(edits_of_each: Sequence[int], suffix_tokens: int) -> dict:
    total, rates = len(edits_of_each), {}
    for kind, most in (("exact", 0), ("approximate", most_edits(suffix_tokens))):
        count = sum(found <= most for found in edits_of_each)
        low, high = wilson(count, total)
        rates[kind] = {"count": count, "rate": count / total, "low": low, "high": high}
    exact, approximate = rates["exact"]["count"], rates["approximate"]["count"]
    return {"num_documents": total, **rates, "ratio": approximate / exact if exact else None}


def _measure(subject: task.Subject, items: Sequence[Item]) -> list[dict]:
    prompts = [[subject.tokenizer.bos, *item.prefix] for item in items]
    num_tokens = len(items[0].suffix)
    gone_on = subject.go_on(prompts, num_tokens, stop=False)
    results = []
    for item, said in zip(items, gone_on, strict=True):
        assert len(said) == num_tokens, f"{len(said)} ids said, of {num_tokens}"
        # What was said is not kept: it may be what nobody should read.
        results.append({"source": item.source, "edits": edits.distance(said, item.suffix)})
    return results


def _sampled(
    documents: Iterable[Document], tokenizer: vocabulary.Tokenizer, asked: settings.Memorization
) -> list[Item]:
    texts = collections.defaultdict(list)
    for document in documents:
        texts[document.source].append(document.text)
    sources = sorted(texts)
    if not sources:
        raise ValueError("there are no documents to be asked about (documents)")
    if asked.num_samples < len(sources):
        raise ValueError(
            f"memorization.num_samples is {asked.num_samples}, but there are {len(sources)} sources; ask for at least "
            "one document of each"
        )
    shares = [len(range(number, asked.num_samples, len(sources))) for number in range(len(sources))]
    found = {
        source: _pieces(texts[source], source, tokenizer, asked, share)
        for source, share in zip(sources, shares, strict=True)
    }
    for source, share in zip(sources, shares, strict=True):
        if len(found[source]) < share:
            enough = min(map(len, found.values())) * len(sources)
            smaller = f"set num_samples to {enough} at most" if enough else "leave out that source"
            raise ValueError(
                f"memorization.num_samples is {asked.num_samples}, that is {share} documents of source {source!r}, but "
                f"{len(found[source])} of its {len(texts[source])} have the "
                f"{asked.prefix_tokens + asked.suffix_tokens} tokens of prefix and suffix; "
                f"give more or longer documents, or {smaller}"
            )
    return [item for items in found.values() for item in items]


def _pieces(
    texts: Sequence[str], source: str, tokenizer: vocabulary.Tokenizer, asked: settings.Memorization, most: int
) -> list[Item]:
    """A piece of each of the first `most` documents of the source that are long enough, in an order the seed draws."""
    draw = random.Random(f"{asked.seed} {source}")
    order = sorted(range(len(texts)), key=lambda _: draw.random())
    items, num_tokens = [], asked.prefix_tokens + asked.suffix_tokens
    for number in order:
        ids = tokenizer.encode(texts[number])
        if len(ids) >= num_tokens and len(items) < most:
            start = int(draw.random() * (len(ids) - num_tokens + 1))
            piece = tuple(ids[start : start + num_tokens])
            prefix, suffix = piece[: asked.prefix_tokens], piece[asked.prefix_tokens :]
            items.append(Item(source=source, prefix=prefix, suffix=suffix))
        if len(items) == most:
            break
    return items
