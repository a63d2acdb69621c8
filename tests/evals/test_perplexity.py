"""Perplexity: every token once, whatever the window; figures by hand and computed another way; refused settings."""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.evals import logprobs, perplexity, settings, task
from gemma3_jax.evals.documents import EvalChat, EvalDocument
from gemma3_jax.model import execution, masks, parameters
from gemma3_jax.tokenizer import chat
from tests import texts, toys
from tests.evals import stubs

TOKENIZER = texts.tokenizer()
CONTENTS = ["A first text.", "Ein zweiter, größer: 日本.\n\n\tx", "<bos> is text here", texts.library()[3][:2_000]]
DOCUMENTS = [EvalDocument(source, text) for source, text in zip("abab", CONTENTS, strict=True)]
TOKENS = [TOKENIZER.document(text).tolist() for text in CONTENTS]
NUM_TOKENS = sum(len(tokens) - 1 for tokens in TOKENS)
NUM_BYTES = sum(len(text.encode()) for text in CONTENTS)


def measured(score_one, window=4_096, read=DOCUMENTS, called=None):
    made = perplexity.make(stubs.scoring(score_one, called), read, settings.Perplexity(window=window))
    return task.run(made, stubs.no_params, model_id="toy")


@pytest.mark.parametrize("window", [3, 50, 4_096])
def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(window):
    nats = math.log(texts.TOKENIZER_SIZE)
    result = measured(lambda tokens: [-nats] * (len(tokens) - 1), window)
    for row, num_tokens, num_bytes in (
        (result, NUM_TOKENS, NUM_BYTES),
        (result["by_source"]["a"], len(TOKENS[0]) + len(TOKENS[2]) - 2, len((CONTENTS[0] + CONTENTS[2]).encode())),
        (result["by_source"]["b"], len(TOKENS[1]) + len(TOKENS[3]) - 2, len((CONTENTS[1] + CONTENTS[3]).encode())),
    ):
        np.testing.assert_allclose(row["perplexity"], texts.TOKENIZER_SIZE, rtol=1e-12)
        np.testing.assert_allclose(row["nats_per_token"], nats, rtol=1e-12)
        np.testing.assert_allclose(row["bits_per_byte"], math.log2(texts.TOKENIZER_SIZE) * num_tokens / num_bytes)
        assert (row["num_tokens"], row["num_bytes"]) == (num_tokens, num_bytes)
    assert result["num_documents"] == 4 and result["by_source"]["a"]["num_documents"] == 2


@pytest.mark.parametrize("window", [3, 4, 5, 7, 64, *(len(TOKENS[3]) + more for more in (-1, 0, 1))])
def test_the_window_changes_nothing_for_a_model_that_reads_one_token_back(window):
    """So every token but BOS is predicted once, after the token before it."""
    bigrams, called = stubs.of_last(1), []
    result = measured(bigrams, window, called=called)
    assert max(map(len, called)) <= window and all(tokens[0] == TOKENIZER.bos for tokens in called)
    by_hand = [-math.fsum(bigrams(tokens)) for tokens in TOKENS]
    np.testing.assert_allclose(result["nats_per_token"], sum(by_hand) / NUM_TOKENS, rtol=1e-12)
    np.testing.assert_allclose(result["perplexity"], math.exp(sum(by_hand) / NUM_TOKENS), rtol=1e-12)
    in_a = (by_hand[0] + by_hand[2]) / math.log(2) / len((CONTENTS[0] + CONTENTS[2]).encode())
    np.testing.assert_allclose(result["by_source"]["a"]["bits_per_byte"], in_a, rtol=1e-12)


@pytest.mark.parametrize("num_tokens", range(2, 12))
def test_pieces_fill_their_windows_and_miss_no_token(num_tokens):
    for window in (3, 4, 5, 12):
        result = list(perplexity.spans(5, num_tokens, window))
        assert [position for span in result for position in range(span.start, span.stop)] == list(range(1, num_tokens))
        sizes = [span.stop - span.start + (1 if span.start == 1 else 2) for span in result]
        assert all(size == window for size in sizes[:-1]) and sizes[-1] <= window


def test_windows_longer_than_the_documents_equal_the_scores_of_a_model_summed_by_hand():
    model = dataclasses.replace(toys.variant("one_layer"), vocab_size=texts.TOKENIZER_SIZE)
    score = functools.partial(logprobs.score, model, mesh=sharding.make_mesh(), execute=execution.REFERENCE)
    made = perplexity.make(dataclasses.replace(stubs.scoring(len), score=score), DOCUMENTS[:3], settings.Perplexity())
    params = toys.params(model)
    result, scores = task.run(made, lambda: params, model_id="toy"), score(params, TOKENS[:3])
    by_hand = -sum(map(sum, scores)) / sum(map(len, scores))
    np.testing.assert_allclose(result["nats_per_token"], by_hand, atol=toys.ROUNDING)


CHATS = [
    EvalChat(
        "chats",
        (
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": f"What is {number} + 1? " + "Think about it. " * number},
            {"role": "assistant", "content": f"größer: {number + 1}"},
            {"role": "user", "content": "Sure?"},
            {"role": "model", "content": "Yes."},
        ),
    )
    for number in range(3)
]


def test_of_chats_the_model_s_words_are_scored_as_its_whole_distribution_has_them():
    """By hand: the logits of a forward pass over whole chats, and of their log-softmax the entries of the answers."""
    model = dataclasses.replace(toys.variant("one_layer"), vocab_size=texts.TOKENIZER_SIZE)
    params = toys.params(model)
    score = functools.partial(logprobs.score, model, mesh=sharding.make_mesh(), execute=execution.REFERENCE)
    made = perplexity.make(dataclasses.replace(stubs.scoring(len), score=score), CHATS, settings.Perplexity())
    result = task.run(made, lambda: params, model_id="toy")
    transformer, nats, learned = parameters.bind(model, params), 0.0, []
    for one in CHATS:
        ids = [TOKENIZER.bos]
        answers = []  # positions of what the model writes
        system = one.turns[0]["content"]
        for number, turn in enumerate(one.turns[1:]):
            role = "user" if number % 2 == 0 else "model"
            ids += TOKENIZER.encode("\n") if number else []
            ids.append(TOKENIZER.start_of_turn)
            if role == "user":
                ids += TOKENIZER.encode("user\n" + (f"{system}\n\n" if not number else "") + turn["content"])
            else:
                ids += TOKENIZER.encode("model\n")
                answers += range(len(ids), len(ids) + len(TOKENIZER.encode(turn["content"])) + 1)
                ids += TOKENIZER.encode(turn["content"])
            ids.append(TOKENIZER.end_of_turn)
        tokens = jnp.asarray([ids])
        hidden = transformer(tokens, masks.whole_rows(tokens), execute=execution.REFERENCE)
        logits = np.asarray(transformer.logits(hidden)[0], np.float64)
        distribution = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        nats -= sum(distribution[position - 1, ids[position]] for position in answers)
        learned += [ids[position] for position in answers]
    num_bytes = sum(len(f"größer: {number + 1}Yes.".encode()) for number in range(3))
    assert (result["num_tokens"], result["num_bytes"]) == (len(learned), num_bytes)
    assert result["num_documents"] == 3 and learned.count(TOKENIZER.end_of_turn) == 6
    np.testing.assert_allclose(result["nats_per_token"], nats / len(learned), atol=toys.ROUNDING)
    np.testing.assert_allclose(result["bits_per_byte"], nats / math.log(2) / num_bytes, atol=toys.ROUNDING)
    assert TOKENIZER.num_bytes()[learned].sum() == num_bytes  # those of training


@pytest.mark.parametrize("window", [3, 5, 16, 4_096])
def test_the_window_changes_nothing_of_chats_and_what_the_user_says_alone_is_not_read(window):
    bigrams, called = stubs.of_last(1), []
    result = measured(bigrams, window, [*CHATS, DOCUMENTS[0]], called)
    encoded = [chat.encode(TOKENIZER, one.turns) for one in CHATS]
    by_hand = -sum(np.asarray(bigrams(ids.tolist()))[mask[1:]].sum() for ids, mask in encoded)
    num_tokens = sum(mask.sum() for _, mask in encoded)
    figures = result["by_source"]["chats"]
    np.testing.assert_allclose(figures["nats_per_token"], by_hand / num_tokens, rtol=1e-12)
    assert figures["num_tokens"] == num_tokens and result["num_tokens"] == num_tokens + len(TOKENS[0]) - 1
    everything = [ids for ids, _ in encoded] + [TOKENS[0]]
    num_windows = sum(len(list(perplexity.spans(0, len(ids), window))) for ids in everything)
    assert len(called) < num_windows if window < 16 else len(called) <= num_windows


def test_answers_without_a_byte_have_no_bits_for_each():
    turns = ({"role": "user", "content": "x"}, {"role": "model", "content": ""})
    result = measured(stubs.of_last(1), read=[EvalChat("a", turns)])
    assert (result["num_tokens"], result["num_bytes"], result["bits_per_byte"]) == (1, 0, math.inf)


def test_bits_per_byte_are_counted_as_training_counts_them():
    """There bytes are those of the targets: EOS, whose bits are counted, has none."""
    labels = np.concatenate([tokens[1:] for tokens in TOKENS])
    result = measured(stubs.of_last(3))
    bytes_per_target = TOKENIZER.num_bytes()[labels].sum() / len(labels)
    in_training = result["nats_per_token"] / math.log(2) / bytes_per_target
    np.testing.assert_allclose(result["bits_per_byte"], in_training, rtol=1e-12)


def test_pieces_of_one_length_are_measured_together(monkeypatch):
    monkeypatch.setattr(task, "BATCH_TOKENS", 100)
    made = perplexity.make(stubs.scoring(stubs.of_last(1)), DOCUMENTS, settings.Perplexity(window=20))
    lengths = [span.stop - span.start for span in made.items]
    assert lengths == sorted(lengths, reverse=True) and made.batch_size == 5


def test_a_model_that_has_diverged_has_figures_that_say_so():
    assert measured(lambda tokens: [-1e4] * (len(tokens) - 1))["perplexity"] == math.inf
    assert measured(lambda tokens: [-math.inf] * (len(tokens) - 1))["nats_per_token"] == math.inf
    assert math.isnan(measured(lambda tokens: [math.nan] * (len(tokens) - 1))["bits_per_byte"])


def test_other_documents_or_another_window_are_another_task(tmp_path):
    model, options = stubs.scoring(stubs.of_last(1)), settings.Perplexity()
    path = tmp_path / "results.jsonl"
    task.run(perplexity.make(model, DOCUMENTS, options), stubs.no_params, model_id="toy", path=path)
    changed = [dataclasses.replace(DOCUMENTS[0], text="A first tent."), *DOCUMENTS[1:]]
    for made in (
        perplexity.make(model, changed, options),
        perplexity.make(model, DOCUMENTS, settings.Perplexity(window=4_097)),
    ):
        with pytest.raises(ValueError, match="other settings, documents or tokenizer"):
            task.run(made, stubs.no_params, model_id="toy", path=path)


def test_a_stopped_measure_goes_on_to_the_same_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "BATCH_TOKENS", 150)
    options, called = settings.Perplexity(window=40), []

    def run(model, path):
        return task.run(perplexity.make(model, DOCUMENTS, options), stubs.no_params, model_id="toy", path=path)

    straight = run(stubs.scoring(stubs.of_last(2)), tmp_path / "straight")

    def score_one(tokens):
        if len(called) > 6:
            raise KeyboardInterrupt
        return stubs.of_last(2)(tokens)

    with pytest.raises(KeyboardInterrupt):
        run(stubs.scoring(score_one, called), tmp_path / "x")
    before, called = len((tmp_path / "x").read_text().splitlines()) - 1, []
    assert run(stubs.scoring(stubs.of_last(2), called), tmp_path / "x") == straight
    assert (tmp_path / "x").read_bytes() == (tmp_path / "straight").read_bytes()
    num_spans = sum(len(list(perplexity.spans(0, len(tokens), 40))) for tokens in TOKENS)
    assert before > 0 and len(called) == num_spans - before


def test_the_table_has_a_line_for_each_source_and_one_for_all():
    result = measured(stubs.of_last(1))
    head, a, b, total = perplexity.lines(result)
    assert head.split() == ["source", "documents", "scored", "tokens", "bytes", "nats/token", "perplexity", "bits/byte"]
    assert (a.split()[0], b.split()[0], total.split()[0]) == ("a", "b", "all")
    assert total.split()[1:4] == ["4", f"{NUM_TOKENS:,}", f"{NUM_BYTES:,}"]
    assert total.split()[4] == f"{result['nats_per_token']:.4f}"
    assert len({len(line) for line in (head, a, b, total)}) == 1
    assert len(perplexity.lines(measured(stubs.of_last(1), read=DOCUMENTS[:1]))) == 2


def test_numbers_of_the_summary_are_rows_for_metrics():
    result = measured(stubs.of_last(1))
    assert task.numbers(result)["by_source/b/bits_per_byte"] == result["by_source"]["b"]["bits_per_byte"]


@pytest.mark.parametrize("window", [2, 0, -1])
def test_a_window_without_room_for_a_prediction_is_refused(window):
    with pytest.raises(ValueError, match=rf"window is {window}; it must be at least 3"):
        settings.Perplexity(window=window)
