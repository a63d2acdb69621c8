"""What a model makes of context: its loss by position, and of the same last tokens after more and more of a document.

Source: Gemma 3 report, figure 7, which has the second curve.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from gemma3_jax.evals import documents, settings, task


def make(subject: task.Subject, texts: Sequence[documents.Document], asked: settings.Context) -> task.Task:
    """The task that measures documents of at least the longest length, BOS and EOS included, cut to that length.

    Of those that are long enough `asked.num_documents` are taken, at even steps; if there are fewer, all. Its summary
    has `num_documents` that were taken, `longest` (tokens of each), `last_tokens`, and two curves in nats:
    `by_position`, the mean over targets by their places ("1", "2-3", "4-7", ...; BOS is at 0); and `by_length`, for
    every length, the mean over documents of the loss of their last tokens where BOS and the tokens that end with them
    are given, as many as the length says: the same targets at every length. `standard_error` is that of this mean, and
    None of a single document.
    Raises: ValueError if no document is long enough.
    """
    longest = asked.lengths[-1]
    token_lists = [subject.tokenizer.document(document.text) for document in texts]
    long_enough = [tokens[:longest] for tokens in token_lists if len(tokens) >= longest]
    if not long_enough:
        found = max(map(len, token_lists), default=0)
        raise ValueError(
            f"lengths ends with {longest}, but the longest of {len(token_lists)} documents has {found} tokens; give "
            "longer documents, or shorter lengths"
        )
    num_taken = min(asked.num_documents, len(long_enough))
    items = [long_enough[number * len(long_enough) // num_taken] for number in range(num_taken)]

    def measure(batch: Sequence[np.ndarray]) -> list[dict]:
        scores = subject.score([ending(tokens, length) for tokens in batch for length in asked.lengths])
        num_lengths = len(asked.lengths)
        starts = range(0, len(scores), num_lengths)
        return [_result(scores[start : start + num_lengths], asked.last_tokens) for start in starts]

    return task.Task(
        name="context",
        asked={
            **dataclasses.asdict(asked),
            "documents": documents.digest(texts),
            "tokenizer": subject.tokenizer.digest,
        },
        items=items,
        items_at_once=max(1, task.TOKENS_AT_ONCE // sum(asked.lengths)),
        measure=measure,
        summarise=lambda results: summarise(asked, results),
        lines=lambda summary: lines(asked, summary),
    )


def ending(tokens: np.ndarray, length: int) -> list[int]:
    """BOS and the end of the tokens: so many in all."""
    return [int(tokens[0]), *tokens[len(tokens) - length + 1 :].tolist()]


def _result(scores: Sequence[list[float]], last_tokens: int) -> dict:
    """Of a document's scores by length, the last of which are those of the whole: mean nats."""
    whole = scores[-1]
    return {
        "by_position": [-math.fsum(whole[first - 1 : last]) / (last - first + 1) for first, last in bins(len(whole))],
        "by_length": [-math.fsum(score[len(score) - last_tokens :]) / last_tokens for score in scores],
    }


def bins(last: int) -> list[tuple[int, int]]:
    """First and last position of each bin: 1, 2 to 3, 4 to 7, ..., up to `last`."""
    return [(1 << power, min((2 << power) - 1, last)) for power in range(last.bit_length())]


def summarise(asked: settings.Context, results: Sequence[dict]) -> dict:
    """What the results of all documents say, as `make` has it."""
    longest, num_documents = asked.lengths[-1], len(results)
    by_position = zip(*(result["by_position"] for result in results), strict=True)
    by_length = zip(*(result["by_length"] for result in results), strict=True)
    return {
        "num_documents": num_documents,
        "longest": longest,
        "last_tokens": asked.last_tokens,
        "by_position": {
            str(first) if first == last else f"{first}-{last}": math.fsum(nats) / num_documents
            for (first, last), nats in zip(bins(longest - 1), by_position, strict=True)
        },
        "by_length": {
            str(length): {"nats": math.fsum(nats) / num_documents, "standard_error": _standard_error(nats)}
            for length, nats in zip(asked.lengths, by_length, strict=True)
        },
    }


def _standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of the values."""
    with np.errstate(invalid="ignore"):  # of a model that has diverged
        return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def lines(asked: settings.Context, summary: dict) -> list[str]:
    """Tables of both curves."""
    num_documents = summary["num_documents"]
    few = f" ({asked.num_documents} were asked for)" if num_documents < asked.num_documents else ""
    found = [
        f"{num_documents} documents of at least {summary['longest']:,} tokens{few}",
        "",
        "position      nats/token",
    ]
    found += [f"{name:<15} {nats:>8.4f}" for name, nats in summary["by_position"].items()]
    found += ["", f"nats of the last {summary['last_tokens']:,} tokens", "length          nats/token  standard error"]
    for length, row in summary["by_length"].items():
        error = "-" if row["standard_error"] is None else format(row["standard_error"], ".4f")
        found.append(f"{int(length):<15,} {row['nats']:>10.4f}  {error:>14}")
    return found
