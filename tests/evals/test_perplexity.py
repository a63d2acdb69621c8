"""Perplexity: every token once, whatever the window; figures by hand and by another way; and what is not allowed."""

import dataclasses
import functools
import math

import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.evals import logprobs, perplexity, settings, task
from gemma3_jax.evals.documents import Document
from gemma3_jax.model import execution
from tests import texts, toys
from tests.evals import stubs

TOKENIZER = texts.tokenizer()
SAID = ["A first text.", "Ein zweiter, größer: 日本.\n\n\tx", "<bos> is text here", texts.library()[3][:2_000]]
DOCUMENTS = [Document(source, text) for source, text in zip("abab", SAID, strict=True)]
TOKENS = [TOKENIZER.document(text).tolist() for text in SAID]
NUM_TOKENS = sum(len(tokens) - 1 for tokens in TOKENS)
NUM_BYTES = sum(len(text.encode()) for text in SAID)


def measured(score_one, window=4_096, read=DOCUMENTS, called=None):
    asked = settings.Perplexity(window=window)
    return task.run(perplexity.make(stubs.scoring(score_one, called), read, asked), of="toy")


@pytest.mark.parametrize("window", [3, 50, 4_096])
def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(window):
    nats = math.log(texts.TOKENIZER_SIZE)
    found = measured(lambda tokens: [-nats] * (len(tokens) - 1), window)
    for row, num_tokens, num_bytes in (
        (found, NUM_TOKENS, NUM_BYTES),
        (found["by_source"]["a"], len(TOKENS[0]) + len(TOKENS[2]) - 2, len((SAID[0] + SAID[2]).encode())),
        (found["by_source"]["b"], len(TOKENS[1]) + len(TOKENS[3]) - 2, len((SAID[1] + SAID[3]).encode())),
    ):
        np.testing.assert_allclose(row["perplexity"], texts.TOKENIZER_SIZE, rtol=1e-12)
        np.testing.assert_allclose(row["nats_per_token"], nats, rtol=1e-12)
        np.testing.assert_allclose(row["bits_per_byte"], math.log2(texts.TOKENIZER_SIZE) * num_tokens / num_bytes)
        assert (row["num_tokens"], row["num_bytes"]) == (num_tokens, num_bytes)
    assert found["num_documents"] == 4 and found["by_source"]["a"]["num_documents"] == 2


@pytest.mark.parametrize("window", [3, 4, 5, 7, 64, *(len(TOKENS[3]) + more for more in (-1, 0, 1))])
def test_the_window_changes_nothing_for_a_model_that_reads_one_token_back(window):
    """So every token but BOS is predicted once, after the token before it."""
    bigrams, called = stubs.of_last(1), []
    found = measured(bigrams, window, called=called)
    assert max(map(len, called)) <= window and all(tokens[0] == TOKENIZER.bos for tokens in called)
    by_hand = [-math.fsum(bigrams(tokens)) for tokens in TOKENS]
    np.testing.assert_allclose(found["nats_per_token"], sum(by_hand) / NUM_TOKENS, rtol=1e-12)
    np.testing.assert_allclose(found["perplexity"], math.exp(sum(by_hand) / NUM_TOKENS), rtol=1e-12)
    in_a = (by_hand[0] + by_hand[2]) / math.log(2) / len((SAID[0] + SAID[2]).encode())
    np.testing.assert_allclose(found["by_source"]["a"]["bits_per_byte"], in_a, rtol=1e-12)


@pytest.mark.parametrize("num_tokens", range(2, 12))
def test_pieces_fill_their_windows_and_miss_no_token(num_tokens):
    for window in (3, 4, 5, 12):
        found = list(perplexity.pieces(5, num_tokens, window))
        assert [place for piece in found for place in range(piece.start, piece.stop)] == list(range(1, num_tokens))
        sizes = [piece.stop - piece.start + (1 if piece.start == 1 else 2) for piece in found]
        assert all(size == window for size in sizes[:-1]) and sizes[-1] <= window


def test_windows_longer_than_the_documents_equal_the_scores_of_a_model_summed_by_hand():
    model = dataclasses.replace(toys.variant("one_layer"), vocab_size=texts.TOKENIZER_SIZE)
    score = functools.partial(
        logprobs.score, model, toys.params(model), mesh=sharding.make_mesh(), execute=execution.REFERENCE
    )
    subject = dataclasses.replace(stubs.scoring(len), score=score)
    made = perplexity.make(subject, DOCUMENTS[:3], settings.Perplexity())
    found, scores = task.run(made, of="toy"), score(TOKENS[:3])
    by_hand = -sum(map(sum, scores)) / sum(map(len, scores))
    np.testing.assert_allclose(found["nats_per_token"], by_hand, atol=toys.ROUNDING)


def test_bits_per_byte_are_counted_as_training_counts_them():
    """There bytes are those of the targets: EOS, whose bits are counted, has none."""
    labels = np.concatenate([tokens[1:] for tokens in TOKENS])
    found = measured(stubs.of_last(3))
    bytes_per_target = TOKENIZER.num_bytes()[labels].sum() / len(labels)
    in_training = found["nats_per_token"] / math.log(2) / bytes_per_target
    np.testing.assert_allclose(found["bits_per_byte"], in_training, rtol=1e-12)


def test_pieces_of_one_length_are_measured_together(monkeypatch):
    monkeypatch.setattr(task, "TOKENS_AT_ONCE", 100)
    made = perplexity.make(stubs.scoring(stubs.of_last(1)), DOCUMENTS, settings.Perplexity(window=20))
    lengths = [piece.stop - piece.start for piece in made.items]
    assert lengths == sorted(lengths, reverse=True) and made.items_at_once == 5


def test_a_model_that_has_diverged_has_figures_that_say_so():
    assert measured(lambda tokens: [-1e4] * (len(tokens) - 1))["perplexity"] == math.inf
    assert measured(lambda tokens: [-math.inf] * (len(tokens) - 1))["nats_per_token"] == math.inf
    assert math.isnan(measured(lambda tokens: [math.nan] * (len(tokens) - 1))["bits_per_byte"])


def test_other_documents_or_another_window_are_another_task(tmp_path):
    subject, asked = stubs.scoring(stubs.of_last(1)), settings.Perplexity()
    kept = tmp_path / "kept.jsonl"
    task.run(perplexity.make(subject, DOCUMENTS, asked), of="toy", kept=kept)
    changed = [dataclasses.replace(DOCUMENTS[0], text="A first tent."), *DOCUMENTS[1:]]
    for made in (
        perplexity.make(subject, changed, asked),
        perplexity.make(subject, DOCUMENTS, settings.Perplexity(window=4_097)),
    ):
        with pytest.raises(ValueError, match="other settings, documents or tokenizer"):
            task.run(made, of="toy", kept=kept)


def test_a_stopped_measure_goes_on_to_the_same_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "TOKENS_AT_ONCE", 150)
    asked, called = settings.Perplexity(window=40), []
    straight = task.run(
        perplexity.make(stubs.scoring(stubs.of_last(2)), DOCUMENTS, asked), of="toy", kept=tmp_path / "straight"
    )

    def score_one(tokens):
        if len(called) > 6:
            raise KeyboardInterrupt
        return stubs.of_last(2)(tokens)

    with pytest.raises(KeyboardInterrupt):
        task.run(perplexity.make(stubs.scoring(score_one, called), DOCUMENTS, asked), of="toy", kept=tmp_path / "x")
    before, called = len((tmp_path / "x").read_text().splitlines()) - 1, []
    subject = stubs.scoring(stubs.of_last(2), called)
    assert task.run(perplexity.make(subject, DOCUMENTS, asked), of="toy", kept=tmp_path / "x") == straight
    assert (tmp_path / "x").read_bytes() == (tmp_path / "straight").read_bytes()
    num_pieces = sum(len(list(perplexity.pieces(0, len(tokens), 40))) for tokens in TOKENS)
    assert before > 0 and len(called) == num_pieces - before


def test_the_table_has_a_line_for_each_source_and_one_for_all():
    found = measured(stubs.of_last(1))
    head, a, b, total = perplexity.lines(found)
    assert head.split() == ["source", "documents", "tokens", "bytes", "nats/token", "perplexity", "bits/byte"]
    assert (a.split()[0], b.split()[0], total.split()[0]) == ("a", "b", "all")
    assert total.split()[1:4] == ["4", f"{NUM_TOKENS:,}", f"{NUM_BYTES:,}"]
    assert total.split()[4] == f"{found['nats_per_token']:.4f}"
    assert len({len(line) for line in (head, a, b, total)}) == 1
    assert len(perplexity.lines(measured(stubs.of_last(1), read=DOCUMENTS[:1]))) == 2


def test_numbers_of_the_summary_are_rows_for_metrics():
    found = measured(stubs.of_last(1))
    assert task.numbers(found)["by_source/b/bits_per_byte"] == found["by_source"]["b"]["bits_per_byte"]


@pytest.mark.parametrize("window", [2, 0, -1])
def test_a_window_without_room_for_a_prediction_is_refused(window):
    with pytest.raises(ValueError, match=rf"window is {window}; it must be at least 3"):
        settings.Perplexity(window=window)
