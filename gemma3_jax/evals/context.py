"""How a model uses context: its loss by position, and on the same last tokens after more and more of a document.

Source: Gemma 3 report, figure 7, which has the second curve.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from gemma3_jax.evals import documents, model_api, settings, task


def make(model: model_api.ModelApi, texts: Sequence[documents.EvalDocument], options: settings.Context) -> task.Task:
    """The task of both curves, over documents of at least the longest length (with BOS and EOS), cut to it.

    It takes `options.num_documents` of those that are long enough, evenly spaced, or all if there are fewer. The
    summary has `num_documents`, `longest` (tokens of each), `last_tokens`, and two curves in nats. `by_position` is the
    mean over targets in each bin of positions ("1", "2-3", "4-7", ...; BOS is at 0). `by_length` is, for each length,
    the mean over documents of the loss of their last tokens after BOS and the tokens before them up to that length; its
    `standard_error` is None for a single document.
    Raises: ValueError if no document is long enough.
    """
    longest = options.lengths[-1]
    token_lists = [model.tokenizer.document(document.text) for document in texts]
    long_enough = [tokens[:longest] for tokens in token_lists if len(tokens) >= longest]
    if not long_enough:
        raise ValueError(
            f"lengths ends with {longest}, but the longest of {len(token_lists)} documents has "
            f"{max(map(len, token_lists), default=0)} tokens; give longer documents, or shorter lengths"
        )
    num_documents = min(options.num_documents, len(long_enough))
    items = [long_enough[number * len(long_enough) // num_documents] for number in range(num_documents)]

    def measure(params: dict, batch: Sequence[np.ndarray]) -> list[dict]:
        scores = model.score(params, [ending(tokens, length) for tokens in batch for length in options.lengths])
        num_lengths = len(options.lengths)
        starts = range(0, len(scores), num_lengths)
        return [_result(scores[start : start + num_lengths], options.last_tokens) for start in starts]

    return task.Task(
        name="context",
        identity={
            **dataclasses.asdict(options),
            "documents": documents.digest(texts),
            "tokenizer": model.tokenizer.digest,
        },
        items=items,
        batch_size=max(1, task.BATCH_TOKENS // sum(options.lengths)),
        measure=measure,
        is_result=lambda item, result: (
            task.are_floats(result.get("by_position"), len(bins(longest - 1)))
            and task.are_floats(result.get("by_length"), len(options.lengths))
        ),
        summarize=lambda results: summarize(options, results),
        format_lines=lambda summary: lines(options, summary),
    )


def ending(tokens: np.ndarray, length: int) -> list[int]:
    """BOS and the last tokens, `length` in all."""
    return [int(tokens[0]), *tokens[len(tokens) - length + 1 :].tolist()]


def _result(scores: Sequence[list[float]], last_tokens: int) -> dict:
    """Mean nats of one document, from its scores by length, of which the last covers the whole document."""
    whole = scores[-1]
    return {
        "by_position": [-math.fsum(whole[first - 1 : last]) / (last - first + 1) for first, last in bins(len(whole))],
        "by_length": [-math.fsum(score[len(score) - last_tokens :]) / last_tokens for score in scores],
    }


def bins(last: int) -> list[tuple[int, int]]:
    """First and last position of each bin: 1, 2 to 3, 4 to 7, ..., up to `last`."""
    return [(1 << power, min((2 << power) - 1, last)) for power in range(last.bit_length())]


def summarize(options: settings.Context, results: Sequence[dict]) -> dict:
    """The summary that `make` describes."""
    longest, num_documents = options.lengths[-1], len(results)
    by_position = zip(*(result["by_position"] for result in results), strict=True)
    by_length = zip(*(result["by_length"] for result in results), strict=True)
    return {
        "num_documents": num_documents,
        "longest": longest,
        "last_tokens": options.last_tokens,
        "by_position": {
            str(first) if first == last else f"{first}-{last}": math.fsum(nats) / num_documents
            for (first, last), nats in zip(bins(longest - 1), by_position, strict=True)
        },
        "by_length": {
            str(length): {"nats": math.fsum(nats) / num_documents, "standard_error": _standard_error(nats)}
            for length, nats in zip(options.lengths, by_length, strict=True)
        },
    }


def _standard_error(values: Sequence[float]) -> float | None:
    """The standard error of the mean."""
    with np.errstate(invalid="ignore"):  # of a model that has diverged
        return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def lines(options: settings.Context, summary: dict) -> list[str]:
    """Tables of both curves."""
    num_documents = summary["num_documents"]
    note = f" (num_documents is {options.num_documents})" if num_documents < options.num_documents else ""
    table = [
        f"{num_documents} documents of at least {summary['longest']:,} tokens{note}",
        "",
        "position      nats/token",
    ]
    table += [f"{name:<15} {nats:>8.4f}" for name, nats in summary["by_position"].items()]
    table += ["", f"nats of the last {summary['last_tokens']:,} tokens", "length          nats/token  standard error"]
    for length, row in summary["by_length"].items():
        error = "-" if row["standard_error"] is None else format(row["standard_error"], ".4f")
        table.append(f"{int(length):<15,} {row['nats']:>10.4f}  {error:>14}")
    return table
