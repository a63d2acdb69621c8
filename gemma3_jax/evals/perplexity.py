"""How well a model predicts documents: nats per token, perplexity, and bits per byte, by source."""

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from gemma3_jax.evals import documents, settings, task


@dataclasses.dataclass(frozen=True)
class Piece:
    """Tokens start..stop (excluded) of a document, which are predicted together."""

    document: int
    start: int
    stop: int


def pieces(document: int, num_tokens: int, window: int) -> Iterator[Piece]:
    """Cuts tokens 1..num_tokens so that none is in two pieces, and each piece with its context fits a window.

    The context is BOS, as the model is used to it, and the token before the piece.
    """
    start = 1
    while start < num_tokens:
        stop = min(start + window - (1 if start == 1 else 2), num_tokens)
        yield Piece(document, start, stop)
        start = stop


def make(subject: task.Subject, texts: Sequence[documents.Document], asked: settings.Perplexity) -> task.Task:
    """The task that says how well documents are predicted. Each is BOS, its ids, and EOS; all but BOS is predicted.

    Its summary has, of all documents and in `by_source` of each source: `nats_per_token` and its `perplexity`, where
    EOS counts as a token; `bits_per_byte` of UTF-8 text, where EOS adds its bits and no byte, as in training; and
    `num_documents`, `num_tokens`, `num_bytes`.
    """
    assert texts, "documents.read gives some"
    token_lists = [subject.tokenizer.document(document.text) for document in texts]
    items = [piece for number, tokens in enumerate(token_lists) for piece in pieces(number, len(tokens), asked.window)]
    items.sort(key=lambda piece: piece.start - piece.stop)  # those of one length are scored in one batch
    num_tokens = sum(piece.stop - piece.start for piece in items)

    def measure(batch: Sequence[Piece]) -> list[dict]:
        scores = subject.score([_with_context(token_lists[piece.document], piece) for piece in batch])
        return [_result(piece, score) for piece, score in zip(batch, scores, strict=True)]

    return task.Task(
        name="perplexity",
        asked={
            **dataclasses.asdict(asked),
            "documents": documents.digest(texts),
            "tokenizer": subject.tokenizer.digest,
        },
        items=items,
        items_at_once=max(1, task.TOKENS_AT_ONCE * len(items) // num_tokens),
        measure=measure,
        summarise=lambda results: summarise(texts, results),
        lines=lines,
    )


def _with_context(tokens: np.ndarray, piece: Piece) -> list[int]:
    return [int(tokens[0]), *tokens[max(piece.start - 1, 1) : piece.stop].tolist()]


def _result(piece: Piece, score: Sequence[float]) -> dict:
    num_tokens = piece.stop - piece.start
    nats = -math.fsum(score[len(score) - num_tokens :])
    return {"document": piece.document, "num_tokens": num_tokens, "nats": nats}


def summarise(texts: Sequence[documents.Document], results: Sequence[dict]) -> dict:
    """What the results of all pieces say of the documents, as `make` has it."""
    of_documents = collections.defaultdict(list)
    for result in results:
        of_documents[texts[result["document"]].source].append(result)
    num_bytes = collections.Counter()
    num_documents = collections.Counter(document.source for document in texts)
    for document in texts:
        num_bytes[document.source] += len(document.text.encode())
    by_source = {
        source: _figures(of_documents[source], num_documents[source], num_bytes[source])
        for source in sorted(num_documents)
    }
    return {**_figures(results, num_documents.total(), num_bytes.total()), "by_source": by_source}


def _figures(results: Sequence[dict], num_documents: int, num_bytes: int) -> dict:
    nats = math.fsum(result["nats"] for result in results)
    num_tokens = sum(result["num_tokens"] for result in results)
    with np.errstate(over="ignore"):  # of a model that has diverged
        perplexity = float(np.exp(nats / num_tokens))
    return {
        "nats_per_token": nats / num_tokens,
        "perplexity": perplexity,
        "bits_per_byte": nats / math.log(2) / num_bytes,
        "num_documents": num_documents,
        "num_tokens": num_tokens,
        "num_bytes": num_bytes,
    }


def lines(summary: dict) -> list[str]:
    """A table of a summary, a line for each source and one for all."""
    by_source = summary["by_source"]
    rows = [*(by_source.items() if len(by_source) > 1 else ()), ("all", summary)]
    width = max(len("source"), *(len(name) for name, _ in rows))
    head = f"{'source':<{width}}  {'documents':>9}  {'tokens':>12}  {'bytes':>13}"
    return [
        f"{head}  {'nats/token':>10}  {'perplexity':>10}  {'bits/byte':>9}",
        *(
            f"{name:<{width}}  {row['num_documents']:>9,}  {row['num_tokens']:>12,}  {row['num_bytes']:>13,}  "
            f"{row['nats_per_token']:>10.4f}  {row['perplexity']:>10.4g}  {row['bits_per_byte']:>9.4f}"
            for name, row in rows
        ),
    ]
