"""Loss by context: by hand, flat beyond what a model attends to, and the same targets at every length."""

import dataclasses
import functools
import math

import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.evals import context, logprobs, settings, task
from gemma3_jax.evals.documents import EvalDocument
from gemma3_jax.model import execution
from tests import texts, toys
from tests.evals import stubs

TOKENIZER = texts.tokenizer()
OPTIONS = settings.Context(lengths=(9, 12, 16, 32, 100), last_tokens=8, num_documents=4)
DOCUMENTS = [
    EvalDocument("a", text) for text in ("too short", *(text[:1_000] for text in texts.library()[:3]), "short too")
]
CUT = [TOKENIZER.document(document.text).tolist()[:100] for document in DOCUMENTS[1:4]]


def measured(score_one, options=OPTIONS, read=DOCUMENTS):
    return task.run(context.make(stubs.scoring(score_one), read, options), stubs.no_params, model_id="toy")


def by_length(result):
    return [row["nats"] for row in result["by_length"].values()]


def test_a_uniform_model_is_flat():
    result = measured(lambda tokens: [-1.25] * (len(tokens) - 1))
    assert result["num_documents"] == 3 and result["longest"] == 100 and result["last_tokens"] == 8
    assert result["by_position"] == dict.fromkeys(["1", "2-3", "4-7", "8-15", "16-31", "32-63", "64-99"], 1.25)
    assert result["by_length"] == {str(c): {"nats": 1.25, "standard_error": 0.0} for c in (9, 12, 16, 32, 100)}


def test_loss_by_position_is_the_mean_over_the_places_of_each_bin():
    """Of a model whose loss at place p is p, whatever the document."""
    result = measured(lambda tokens: [-float(place) for place in range(1, len(tokens))])
    expected = {"1": 1, "2-3": 2.5, "4-7": 5.5, "8-15": 11.5, "16-31": 23.5, "32-63": 47.5, "64-99": 81.5}
    assert result["by_position"] == expected
    assert by_length(result) == [length - 4.5 for length in OPTIONS.lengths]


@pytest.mark.parametrize("last, names", [(1, [(1, 1)]), (3, [(1, 1), (2, 3)]), (4, [(1, 1), (2, 3), (4, 4)])])
def test_bins_double_and_the_last_one_ends_with_the_document(last, names):
    assert context.bins(last) == names


def test_the_same_tokens_are_predicted_at_every_length_after_bos_and_as_many_as_it_says():
    for length in OPTIONS.lengths:
        result = context.ending(np.asarray(CUT[0]), length)
        assert len(result) == length and result[0] == TOKENIZER.bos
        assert result[1:] == CUT[0][-(length - 1) :] and result[-8:] == CUT[0][-8:]
    assert result == CUT[0]


def test_losses_and_their_standard_errors_are_those_by_hand():
    score_one = stubs.of_last(4)
    result = measured(score_one)
    for length in OPTIONS.lengths:
        nats = [-sum(score_one([TOKENIZER.bos, *cut[100 - length + 1 :]])[-8:]) / 8 for cut in CUT]
        mean = sum(nats) / 3
        error = math.sqrt(sum((x - mean) ** 2 for x in nats) / 2 / 3)
        row = result["by_length"][str(length)]
        np.testing.assert_allclose([row["nats"], row["standard_error"]], [mean, error], rtol=1e-12)
        assert error > 0.01  # the documents differ; how much, depends on the library that they are of
    whole = np.mean([score_one(cut) for cut in CUT], axis=0)
    by_hand = [-whole[first - 1 : last].mean() for first, last in context.bins(99)]
    np.testing.assert_allclose(list(result["by_position"].values()), by_hand, rtol=1e-12)


@pytest.mark.parametrize("reach, first_flat", [(0, 0), (1, 1), (4, 2), (7, 2), (8, 3), (23, 3), (24, 4)])
def test_the_curve_is_flat_beyond_what_a_model_reads(reach, first_flat):
    """The first of 8 targets has, at length c, c - 9 tokens of the document before it, and then BOS."""
    result = by_length(measured(stubs.of_last(reach)))
    assert len(set(result[first_flat:])) == 1
    assert first_flat == 0 or result[first_flat - 1] != result[first_flat]


def test_the_curve_of_a_transformer_is_flat_beyond_its_window():
    model = dataclasses.replace(toys.variant("one_layer"), vocab_size=texts.TOKENIZER_SIZE)
    score = functools.partial(logprobs.score, model, mesh=sharding.make_mesh(), execute=execution.REFERENCE)
    made = context.make(dataclasses.replace(stubs.scoring(len), score=score), DOCUMENTS, OPTIONS)
    result = by_length(task.run(made, lambda: toys.params(model), model_id="toy"))
    assert model.sliding_window == 5  # tokens before a target; at length 12 the first target has 3, and BOS
    np.testing.assert_allclose(result[2:], result[-1], atol=toys.ROUNDING)
    assert abs(result[0] - result[-1]) > 100 * toys.ROUNDING


# --- which documents ---


def of_length(num_tokens, mark):
    """A document of so many tokens with BOS and EOS: of tokens that stay apart."""
    text = next(text for n in range(num_tokens) if len(TOKENIZER.document(text := mark + "\x01" * n)) == num_tokens)
    return EvalDocument("a", text)


def test_documents_are_taken_from_the_longest_length_on_at_even_steps():
    read = [of_length(length, str(number)) for number, length in enumerate((12, 11, 13, 12, 30, 12, 12))]
    options = settings.Context(lengths=(4, 12), last_tokens=2, num_documents=3)
    made = context.make(stubs.scoring(stubs.of_last(1)), read, options)
    taken = [TOKENIZER.document(read[number].text).tolist()[:12] for number in (0, 3, 5)]
    assert [tokens.tolist() for tokens in made.items] == taken
    few = dataclasses.replace(options, num_documents=7)
    made = context.make(stubs.scoring(stubs.of_last(1)), read, few)
    result = task.run(made, stubs.no_params, model_id="toy")
    assert len(made.items) == 6 == result["num_documents"]
    assert made.format_lines(result)[0] == "6 documents of at least 12 tokens (num_documents is 7)"


def test_a_single_document_has_no_standard_error():
    result = measured(stubs.of_last(1), read=DOCUMENTS[:2])
    assert [row["standard_error"] for row in result["by_length"].values()] == [None] * 5
    assert not any("standard_error" in name for name in task.numbers(result))
    assert context.lines(OPTIONS, result)[-1].split()[-1] == "-"


def test_documents_that_are_all_too_short_are_refused_with_the_length_of_the_longest():
    read = [of_length(11, "0"), of_length(10, "1")]
    options = settings.Context(lengths=(4, 12), last_tokens=2)
    with pytest.raises(ValueError, match=r"lengths ends with 12, but the longest of 2 documents has 11 tokens; give "):
        measured(stubs.of_last(1), options, read)


@pytest.mark.filterwarnings("error")
def test_a_model_that_has_diverged_has_figures_that_say_so():
    result = measured(lambda tokens: [-math.inf] * (len(tokens) - 1))
    assert by_length(result) == [math.inf] * 5 and result["by_position"]["1"] == math.inf
    assert math.isnan(measured(lambda tokens: [math.nan] * (len(tokens) - 1))["by_position"]["64-99"])


def test_a_stopped_measure_goes_on_to_the_same_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "BATCH_TOKENS", 1)
    score_one, called, fails = stubs.of_last(3), [], [2]

    def stopping(tokens):
        fails[0] -= len(tokens) == 100
        if not fails[0]:
            raise KeyboardInterrupt
        return score_one(tokens)

    straight = measured(score_one)
    with pytest.raises(KeyboardInterrupt):
        stopped = context.make(stubs.scoring(stopping), DOCUMENTS, OPTIONS)
        task.run(stopped, stubs.no_params, model_id="toy", path=tmp_path / "x")
    made = context.make(stubs.scoring(score_one, called), DOCUMENTS, OPTIONS)
    assert task.run(made, stubs.no_params, model_id="toy", path=tmp_path / "x") == straight
    assert [tokens for tokens in called if len(tokens) == 100] == CUT[1:]


def test_the_tables_have_a_line_for_each_bin_and_each_length():
    result = measured(stubs.of_last(2))
    table = context.lines(OPTIONS, result)
    assert table[0] == "3 documents of at least 100 tokens (num_documents is 4)"
    rows = [line.split() for line in table]
    assert ["16-31", f"{result['by_position']['16-31']:.4f}"] in rows
    row = result["by_length"]["32"]
    assert ["32", f"{row['nats']:.4f}", f"{row['standard_error']:.4f}"] in rows
    assert len(table) == 1 + 2 + 7 + 3 + 5


# --- settings ---


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"lengths": ()}, r"lengths is \(\); name at least one, each once, in ascending order"),
        ({"lengths": (256, 128)}, r"lengths is \(256, 128\); "),
        ({"lengths": (128, 128)}, r"lengths is \(128, 128\); "),
        (
            {"lengths": (64, 128)},
            r"lengths begins with 64 and last_tokens is 64; every length must be over last_tokens",
        ),
        ({"last_tokens": 0}, r"last_tokens is 0; it must be at least 1"),
        ({"num_documents": 0}, r"num_documents is 0; it must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        settings.Context(**changes)


@pytest.mark.parametrize(
    "changes, text",
    [
        (
            {"tasks": ("perplexty",)},
            r"tasks has 'perplexty'; each must be one of perplexity, context, needle, memorization, ",
        ),
        ({"tasks": ("bytes", "bytes")}, r"tasks is \('bytes', 'bytes'\); name every task once"),
        ({"tasks": ("samples",)}, r"tasks has samples, but prompts is empty; name the texts to continue"),
        ({"sample_tokens": 0}, r"sample_tokens is 0; it must be at least 1"),
    ],
)
def test_measures_that_cannot_be_are_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        settings.Measures(**changes)
