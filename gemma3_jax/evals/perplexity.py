"""Loss of a model on documents and chats, by source: nats per token, perplexity, and bits per byte."""

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from gemma3_jax.evals import documents, model_api, settings, task
from gemma3_jax.tokenizer import chat, vocabulary


@dataclasses.dataclass(frozen=True)
class TokenSpan:
    """Tokens start..stop (excluded) of a document, which are scored together."""

    document: int
    start: int
    stop: int


def spans(document: int, num_tokens: int, window: int) -> Iterator[TokenSpan]:
    """Disjoint spans of tokens 1..num_tokens, each of which fits a window with its context.

    The context is BOS, which the model expects, and the token before the span.
    """
    start = 1
    while start < num_tokens:
        stop = min(start + window - (1 if start == 1 else 2), num_tokens)
        yield TokenSpan(document, start, stop)
        start = stop


def make(
    model: model_api.ModelApi,
    texts: Sequence[documents.EvalDocument | documents.EvalChat],
    options: settings.Perplexity,
) -> task.Task:
    """The task of scoring documents and chats.

    A document is BOS, its ids, and EOS; all but BOS are scored. A chat is its ids as in training; scored are what the
    model writes and the <end_of_turn> after it.
    The summary has, for all documents and in `by_source` for each source: `nats_per_token` and its `perplexity`, where
    EOS and <end_of_turn> count as tokens; `bits_per_byte` of the UTF-8 text that is scored, where they add their bits
    and no byte, as in training; and `num_documents` (chats among them), `num_tokens` (scored), `num_bytes`.
    Raises: ValueError if there is a chat, and the tokenizer has no turn markers.
    """
    assert texts, "documents.read returns at least one"
    token_lists, masks = zip(*(_encode(model.tokenizer, document) for document in texts), strict=True)

    def num_scored(span: TokenSpan) -> int:
        return int(np.count_nonzero(masks[span.document][span.start : span.stop]))

    items = [span for number, tokens in enumerate(token_lists) for span in spans(number, len(tokens), options.window)]
    items = [span for span in items if num_scored(span)]  # of a chat, some are the user's alone
    items.sort(key=lambda span: span.start - span.stop)  # equal lengths share a batch
    num_tokens = sum(span.stop - span.start for span in items)

    def measure(params: dict, batch: Sequence[TokenSpan]) -> list[dict]:
        scores = model.score(params, [_with_context(token_lists[span.document], span) for span in batch])
        return [_result(span, score, masks[span.document]) for span, score in zip(batch, scores, strict=True)]

    def is_result(span: TokenSpan, result: dict) -> bool:
        expected = {"document": span.document, "num_tokens": num_scored(span)}
        return {**result, **expected} == result and isinstance(result.get("nats"), float)

    return task.Task(
        name="perplexity",
        identity={
            **dataclasses.asdict(options),
            "documents": documents.digest(texts),
            "tokenizer": model.tokenizer.digest,
        },
        items=items,
        batch_size=max(1, task.BATCH_TOKENS * len(items) // num_tokens),
        measure=measure,
        is_result=is_result,
        summarize=lambda results: summarize(texts, results),
        format_lines=lines,
    )


def _encode(
    tokenizer: vocabulary.Tokenizer, document: documents.EvalDocument | documents.EvalChat
) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids, and a mask of those that are scored."""
    if isinstance(document, documents.EvalChat):
        return chat.encode(tokenizer, document.turns)
    tokens = tokenizer.document(document.text)
    return tokens, np.arange(len(tokens)) > 0


def _with_context(tokens: np.ndarray, span: TokenSpan) -> list[int]:
    return [int(tokens[0]), *tokens[max(span.start - 1, 1) : span.stop].tolist()]


def _result(span: TokenSpan, score: Sequence[float], mask: np.ndarray) -> dict:
    is_scored = mask[span.start : span.stop]
    nats = -math.fsum(np.asarray(score[len(score) - len(is_scored) :])[is_scored])
    return {"document": span.document, "num_tokens": int(np.count_nonzero(is_scored)), "nats": nats}


def summarize(texts: Sequence[documents.EvalDocument | documents.EvalChat], results: Sequence[dict]) -> dict:
    """The summary that `make` describes."""
    by_source_results = collections.defaultdict(list)
    for result in results:
        by_source_results[texts[result["document"]].source].append(result)
    num_bytes = collections.Counter()
    num_documents = collections.Counter(document.source for document in texts)
    for document in texts:
        num_bytes[document.source] += len(document.text.encode())
    by_source = {
        source: _figures(by_source_results[source], num_documents[source], num_bytes[source])
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
        "bits_per_byte": nats / math.log(2) / num_bytes if num_bytes else math.inf,  # every answer is empty
        "num_documents": num_documents,
        "num_tokens": num_tokens,
        "num_bytes": num_bytes,
    }


def lines(summary: dict) -> list[str]:
    """A table of a summary: a line for each source, and one for all."""
    by_source = summary["by_source"]
    rows = [*(by_source.items() if len(by_source) > 1 else ()), ("all", summary)]
    width = max(len("source"), *(len(name) for name, _ in rows))
    head = f"{'source':<{width}}  {'documents':>9}  {'scored tokens':>13}  {'bytes':>13}"
    return [
        f"{head}  {'nats/token':>10}  {'perplexity':>10}  {'bits/byte':>9}",
        *(
            f"{name:<{width}}  {row['num_documents']:>9,}  {row['num_tokens']:>13,}  {row['num_bytes']:>13,}  "
            f"{row['nats_per_token']:>10.4f}  {row['perplexity']:>10.4g}  {row['bits_per_byte']:>9.4f}"
            for name, row in rows
        ),
    ]
