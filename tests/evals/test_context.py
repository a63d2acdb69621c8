"""Loss against context: by hand, flat where a model does not look, and the same targets at every length."""

import dataclasses
import functools
import math

import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.evals import context, logprobs, settings, task
from gemma3_jax.evals.documents import Document
from gemma3_jax.model import execution
from tests import texts, toys
from tests.evals import stubs

TOKENIZER = texts.tokenizer()
ASKED = settings.Context(lengths=(9, 12, 16, 32, 100), last_tokens=8, num_documents=4)
DOCUMENTS = [
    Document("a", text) for text in ("too short", *(text[:1_000] for text in texts.library()[:3]), "short too")
]
CUT = [TOKENIZER.document(document.text).tolist()[:100] for document in DOCUMENTS[1:4]]


def measured(score_one, asked=ASKED, read=DOCUMENTS):
    return task.run(context.make(stubs.scoring(score_one), read, asked), of="toy")


def by_length(found):
    return [row["nats"] for row in found["by_length"].values()]


def test_a_uniform_model_is_flat():
    found = measured(lambda tokens: [-1.25] * (len(tokens) - 1))
    assert found["num_documents"] == 3 and found["longest"] == 100 and found["last_tokens"] == 8
    assert found["by_position"] == dict.fromkeys(["1", "2-3", "4-7", "8-15", "16-31", "32-63", "64-99"], 1.25)
    assert found["by_length"] == {str(c): {"nats": 1.25, "standard_error": 0.0} for c in (9, 12, 16, 32, 100)}


def test_loss_by_position_is_the_mean_over_the_places_of_each_bin():
    """Of a model whose loss at place p is p, whatever the document."""
    found = measured(lambda tokens: [-float(place) for place in range(1, len(tokens))])
    expected = {"1": 1, "2-3": 2.5, "4-7": 5.5, "8-15": 11.5, "16-31": 23.5, "32-63": 47.5, "64-99": 81.5}
    assert found["by_position"] == expected
    assert by_length(found) == [length - 4.5 for length in ASKED.lengths]


@pytest.mark.parametrize("last, names", [(1, [(1, 1)]), (3, [(1, 1), (2, 3)]), (4, [(1, 1), (2, 3), (4, 4)])])
def test_bins_double_and_the_last_one_ends_with_the_document(last, names):
    assert context.bins(last) == names


def test_the_same_tokens_are_predicted_at_every_length_after_bos_and_as_many_as_it_says():
    for length in ASKED.lengths:
        found = context.ending(np.asarray(CUT[0]), length)
        assert len(found) == length and found[0] == TOKENIZER.bos
        assert found[1:] == CUT[0][-(length - 1) :] and found[-8:] == CUT[0][-8:]
    assert found == CUT[0]


def test_losses_and_their_standard_errors_are_those_by_hand():
    score_one = stubs.of_last(4)
    found = measured(score_one)
    for length in ASKED.lengths:
        nats = [-sum(score_one([TOKENIZER.bos, *cut[100 - length + 1 :]])[-8:]) / 8 for cut in CUT]
        mean = sum(nats) / 3
        error = math.sqrt(sum((x - mean) ** 2 for x in nats) / 2 / 3)
        row = found["by_length"][str(length)]
        np.testing.assert_allclose([row["nats"], row["standard_error"]], [mean, error], rtol=1e-12)
        assert error > 0.1
    whole = np.mean([score_one(cut) for cut in CUT], axis=0)
    by_hand = [-whole[first - 1 : last].mean() for first, last in context.bins(99)]
    np.testing.assert_allclose(list(found["by_position"].values()), by_hand, rtol=1e-12)


@pytest.mark.parametrize("reach, first_flat", [(0, 0), (1, 1), (4, 2), (7, 2), (8, 3), (23, 3), (24, 4)])
def test_the_curve_is_flat_beyond_what_a_model_reads(reach, first_flat):
    """The first of 8 targets has, at length c, c - 9 tokens of the document before it, and then BOS."""
    found = by_length(measured(stubs.of_last(reach)))
    assert len(set(found[first_flat:])) == 1
    assert first_flat == 0 or found[first_flat - 1] != found[first_flat]


def test_the_curve_of_a_transformer_is_flat_beyond_its_window():
    model = dataclasses.replace(toys.variant("one_layer"), vocab_size=texts.TOKENIZER_SIZE)
    score = functools.partial(
        logprobs.score, model, toys.params(model), mesh=sharding.make_mesh(), execute=execution.REFERENCE
    )
    subject = dataclasses.replace(stubs.scoring(len), score=score)
    found = by_length(task.run(context.make(subject, DOCUMENTS, ASKED), of="toy"))
    assert model.sliding_window == 5  # tokens before a target; at length 12 the first target has 3, and BOS
    np.testing.assert_allclose(found[2:], found[-1], atol=toys.ROUNDING)
    assert abs(found[0] - found[-1]) > 100 * toys.ROUNDING


# --- which documents ---


def of_length(num_tokens, mark):
    """A document of so many tokens with BOS and EOS: of tokens that stay apart."""
    text = next(text for n in range(num_tokens) if len(TOKENIZER.document(text := mark + "\x01" * n)) == num_tokens)
    return Document("a", text)


def test_documents_are_taken_from_the_longest_length_on_at_even_steps():
    read = [of_length(length, str(number)) for number, length in enumerate((12, 11, 13, 12, 30, 12, 12))]
    asked = settings.Context(lengths=(4, 12), last_tokens=2, num_documents=3)
    made = context.make(stubs.scoring(stubs.of_last(1)), read, asked)
    taken = [TOKENIZER.document(read[number].text).tolist()[:12] for number in (0, 3, 5)]
    assert [tokens.tolist() for tokens in made.items] == taken
    few = dataclasses.replace(asked, num_documents=7)
    made = context.make(stubs.scoring(stubs.of_last(1)), read, few)
    found = task.run(made, of="toy")
    assert len(made.items) == 6 == found["num_documents"]
    assert made.lines(found)[0] == "6 documents of at least 12 tokens (7 were asked for)"


def test_a_single_document_has_no_standard_error():
    found = measured(stubs.of_last(1), read=DOCUMENTS[:2])
    assert [row["standard_error"] for row in found["by_length"].values()] == [None] * 5
    assert not any("standard_error" in name for name in task.numbers(found))
    assert context.lines(ASKED, found)[-1].split()[-1] == "-"


def test_documents_that_are_all_too_short_are_refused_with_the_length_of_the_longest():
    read = [of_length(11, "0"), of_length(10, "1")]
    asked = settings.Context(lengths=(4, 12), last_tokens=2)
    with pytest.raises(ValueError, match=r"lengths ends with 12, but the longest of 2 documents has 11 tokens; give "):
        measured(stubs.of_last(1), asked, read)


@pytest.mark.filterwarnings("error")
def test_a_model_that_has_diverged_has_figures_that_say_so():
    found = measured(lambda tokens: [-math.inf] * (len(tokens) - 1))
    assert by_length(found) == [math.inf] * 5 and found["by_position"]["1"] == math.inf
    assert math.isnan(measured(lambda tokens: [math.nan] * (len(tokens) - 1))["by_position"]["64-99"])


def test_a_stopped_measure_goes_on_to_the_same_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "TOKENS_AT_ONCE", 1)
    score_one, called, fails = stubs.of_last(3), [], [2]

    def stopping(tokens):
        fails[0] -= len(tokens) == 100
        if not fails[0]:
            raise KeyboardInterrupt
        return score_one(tokens)

    straight = task.run(context.make(stubs.scoring(score_one), DOCUMENTS, ASKED), of="toy")
    with pytest.raises(KeyboardInterrupt):
        task.run(context.make(stubs.scoring(stopping), DOCUMENTS, ASKED), of="toy", kept=tmp_path / "x")
    made = context.make(stubs.scoring(score_one, called), DOCUMENTS, ASKED)
    assert task.run(made, of="toy", kept=tmp_path / "x") == straight
    assert [tokens for tokens in called if len(tokens) == 100] == CUT[1:]


def test_the_tables_have_a_line_for_each_bin_and_each_length():
    found = measured(stubs.of_last(2))
    said = context.lines(ASKED, found)
    assert said[0] == "3 documents of at least 100 tokens (4 were asked for)"
    rows = [line.split() for line in said]
    assert ["16-31", f"{found['by_position']['16-31']:.4f}"] in rows
    row = found["by_length"]["32"]
    assert ["32", f"{row['nats']:.4f}", f"{row['standard_error']:.4f}"] in rows
    assert len(said) == 1 + 2 + 7 + 3 + 5


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
            r"tasks has 'perplexty'; it must be of perplexity, context, needle, memorization, ",
        ),
        ({"tasks": ("bytes", "bytes")}, r"tasks is \('bytes', 'bytes'\); name every task once"),
        ({"tasks": ("samples",)}, r"tasks has samples, but prompts is empty; name the texts to go on from"),
        ({"sample_tokens": 0}, r"sample_tokens is 0; it must be at least 1"),
    ],
)
def test_measures_that_cannot_be_are_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        settings.Measures(**changes)
