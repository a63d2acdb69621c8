"""Memorized text is counted, exactly and approximately; text that was seen once is not memorized."""

import collections
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gemma3_jax.evals import edits, memorization, model_api, settings
from gemma3_jax.evals.documents import EvalDocument
from gemma3_jax.model import config, masks, parameters
from tests import texts, toys
from tests.evals import characters

LETTERS = characters.Characters()


def model(continue_, tokenizer=LETTERS):
    return model_api.ModelApi(tokenizer=tokenizer, score=lambda params, token_lists: [], continue_=continue_)


def documents(num_documents, source="web", length=40):
    """Texts of letters, all different."""
    draw = np.random.default_rng([len(source), length])
    return [EvalDocument(source, "".join(map(chr, draw.integers(65, 91, length)))) for _ in range(num_documents)]


def memorized(known, change=lambda ids: ids):
    """Continues a prefix as the document that has it, but for a change."""

    def continue_(params, prompts, num_tokens, *, stop=True):
        assert not stop
        continuations = []
        for bos, *prefix in prompts:
            assert bos == LETTERS.bos
            text = next(document.text for document in known if LETTERS.decode(prefix) in document.text)
            start = text.index(LETTERS.decode(prefix)) + len(prefix)
            continuations.append(change(LETTERS.encode(text[start : start + num_tokens])))
        return continuations

    return continue_


def summary_of(made, params=None):
    return made.summarize(json.loads(json.dumps(made.measure(params or {}, made.items))))


@pytest.mark.parametrize(
    ("a", "b", "apart"),
    [
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("abcdef", "abcdef", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("", "", 0),
        ("ab", "ba", 2),
        ("abcdefgh", "bcdefghx", 2),  # one left out, one more: not 8 replaced
        ("intention", "execution", 5),
        ("aaaa", "a", 3),
    ],
)
def test_edits_are_those_counted_by_hand(a, b, apart):
    assert edits.distance(LETTERS.encode(a), LETTERS.encode(b)) == apart
    assert edits.distance(LETTERS.encode(b), LETTERS.encode(a)) == apart


def test_edits_equal_the_definition_on_random_lists():
    @functools.cache
    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    draw = np.random.default_rng(0)
    for _ in range(50):
        a, b = (tuple(draw.integers(0, 3, draw.integers(0, 12)).tolist()) for _ in range(2))
        assert edits.distance(a, b) == slow(a, b)


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (1, 1_000, 0.0001765, 0.0056426)],
)
def test_intervals_are_wilsons(count, total, low, high):
    found = memorization.wilson(count, total)
    np.testing.assert_allclose(found, (low, high), atol=5e-5 if total == 10 else 5e-7)
    # The definition: at its ends the count is 1.96 standard deviations from what would be expected.
    for rate in found:
        if 0 < rate < 1:
            assert abs(count / total - rate) == pytest.approx(1.959964 * (rate * (1 - rate) / total) ** 0.5)


def test_a_model_that_knows_all_is_exact_everywhere():
    known = documents(12) + documents(9, "books")
    options = settings.Memorization(num_samples=10, prefix_tokens=8, suffix_tokens=20)
    summary = summary_of(memorization.make(model(memorized(known)), known, options))
    assert summary["exact"] == {"count": 10, "rate": 1.0, "low": pytest.approx(0.7225, abs=1e-4), "high": 1.0}
    assert summary["approximate"] == summary["exact"] and summary["ratio"] == 1.0
    assert {source: rates["num_documents"] for source, rates in summary["by_source"].items()} == {"books": 5, "web": 5}
    assert json.loads(json.dumps(summary)) == summary


@pytest.mark.parametrize(
    ("change", "exact", "approximate"),
    [
        (lambda ids: [0, 0, *ids[2:]], 0, 10),  # 2 of 20 are replaced
        (lambda ids: [0, *ids[:-1]], 0, 10),  # all are one later
        (lambda ids: [0, 0, 0, *ids[3:]], 0, 0),
        (lambda ids: ids[::-1], 0, 0),
    ],
)
def test_as_many_edits_as_a_tenth_of_the_suffix_are_approximate(change, exact, approximate):
    known = documents(10)
    options = settings.Memorization(num_samples=10, prefix_tokens=8, suffix_tokens=20)
    summary = summary_of(memorization.make(model(memorized(known, change)), known, options))
    assert (summary["exact"]["count"], summary["approximate"]["count"]) == (exact, approximate)
    assert summary["ratio"] is None and summary["most_edits"] == 2


def test_rates_are_of_all_and_of_each_source_and_their_ratio_is_told():
    counted = [{"source": "a", "edits": 0}, {"source": "a", "edits": 6}] + [{"source": "b", "edits": 5}] * 3
    summary = memorization.summarize(counted, 50)
    assert (summary["exact"]["rate"], summary["approximate"]["rate"], summary["ratio"]) == (0.2, 0.8, 4.0)
    rates = summary["by_source"]
    assert (rates["a"]["exact"]["rate"], rates["a"]["approximate"]["rate"], rates["a"]["ratio"]) == (0.5, 0.5, 1.0)
    assert (rates["b"]["exact"]["count"], rates["b"]["approximate"]["rate"], rates["b"]["ratio"]) == (0, 1.0, None)
    lines = memorization.lines(summary)
    assert len(lines) == 5 and "at most 5 edits of tokens" in lines[0]
    assert lines[-1].split()[:3] == ["all", "5", "20.00%"] and lines[-1].endswith("4.0")
    assert lines[3].split()[0] == "b" and lines[3].endswith(" -")
    assert len(memorization.lines(memorization.summarize(counted[:2], 50))) == 3  # one source is all


@pytest.mark.parametrize(("suffix", "most"), [(50, 5), (9, 0), (10, 1), (59, 5)])
def test_a_tenth_is_rounded_down(suffix, most):
    assert memorization.max_edits(suffix) == most


def test_pieces_are_of_different_documents_from_places_all_over_them():
    known = documents(250, length=30)
    known[::5] = documents(50, length=29)
    options = settings.Memorization(num_samples=200, prefix_tokens=10, suffix_tokens=15)
    made = memorization.make(model(memorized(known)), known, options)
    starts = collections.Counter()
    for item in made.items:
        assert (len(item.prefix), len(item.suffix)) == (10, 15)
        excerpt = LETTERS.decode(item.prefix + item.suffix)
        (text,) = [document.text for document in known if excerpt in document.text]
        starts[text.index(excerpt)] += 1
        known = [document for document in known if document.text != text]
    assert set(starts) == set(range(6)) and len(known) == 50
    assert min(starts.values()) > 10  # of 33


def test_a_document_of_just_prefix_and_suffix_is_long_enough():
    options = settings.Memorization(num_samples=3, prefix_tokens=10, suffix_tokens=15)
    made = memorization.make(model(memorized([])), documents(3, length=25), options)
    assert len(made.items) == 3


def test_every_source_has_as_many_pieces_to_one():
    known = documents(500) + documents(30, "books") + documents(30, "code")
    options = settings.Memorization(num_samples=50, prefix_tokens=5, suffix_tokens=5)
    made = memorization.make(model(memorized(known)), known, options)
    assert collections.Counter(item.source for item in made.items) == {"books": 17, "code": 17, "web": 16}


def test_the_seed_says_which_pieces():
    def items(seed, texts):
        options = settings.Memorization(num_samples=20, prefix_tokens=5, suffix_tokens=5, seed=seed)
        made = memorization.make(model(memorized([])), iter(texts), options)
        return made.items, made.identity

    known = documents(100)
    assert items(0, known) == items(0, known)
    assert items(0, known)[0] != items(1, known)[0]
    changed = [dataclasses.replace(document, text=document.text[::-1]) for document in known]
    assert items(0, known)[1] != items(0, changed)[1]


@pytest.mark.parametrize(
    ("known", "changes", "problem"),
    [
        ([], {}, "there are no documents"),
        (
            documents(9) + documents(3, "web", 12),
            {},
            r"num_samples is 10, that is 10 documents of source 'web', but 9 of its 12 have the 20 tokens of prefix "
            r"and suffix; .* num_samples to 9 at most",
        ),
        (documents(50) + documents(3, "books"), {}, r"that is 5 documents of source 'books', .* 3 of its 3.* to 6 at"),
        (documents(50) + documents(8, "books", 19), {}, r"'books', but 0 of its 8 .* or leave out that source"),
        (documents(5) + documents(5, "books"), {"num_samples": 1}, r"num_samples is 1, but there are 2 sources"),
    ],
)
def test_too_few_documents_are_refused_by_number(known, changes, problem):
    options = dataclasses.replace(settings.Memorization(num_samples=10, prefix_tokens=10, suffix_tokens=10), **changes)
    with pytest.raises(ValueError, match=problem):
        memorization.make(model(memorized(known)), known, options)


def test_a_tokenizer_without_bos_is_refused():
    tokenizer = characters.Characters()
    tokenizer.bos = None
    with pytest.raises(ValueError, match="no <bos>"):
        memorization.make(model(memorized([]), tokenizer), documents(1), settings.Memorization())


@pytest.mark.parametrize("name", ["num_samples", "prefix_tokens", "suffix_tokens"])
def test_settings_that_cannot_be_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} is 0; it must be at least 1"):
        settings.Memorization(**{name: 0})


MODEL = dataclasses.replace(
    toys.TOY,
    num_layers=2,
    num_local_per_global=1,
    embed_dim=64,
    mlp_dim=128,
    head_dim=16,
    query_scale=0.25,
    sliding_window=16,
    rope_scale=1.0,
    vocab_size=texts.TOKENIZER_SIZE,
)
NUM_TOKENS, PREFIX, SUFFIX = 36, 12, 20


def chunks() -> list[list[int]]:
    """Pieces of 36 tokens of the library's text that survive decoding and encoding."""
    tokenizer, result = texts.tokenizer(), []
    for text in texts.library()[:6]:
        ids = tokenizer.encode(text)
        for start in range(0, len(ids) - NUM_TOKENS, NUM_TOKENS):
            piece = ids[start : start + NUM_TOKENS]
            if tokenizer.encode(tokenizer.decode(piece)) == piece and len(set(piece)) > 20:
                result.append(piece)
    return result


def trained(bos: int, canaries: np.ndarray, fresh: np.ndarray) -> dict:
    """Parameters trained on every canary at every step, from varying starts, and on the fresh pieces once each."""
    optimizer = optax.adam(3e-3)

    def loss(params, rows):
        bound = parameters.bind(MODEL, params)
        logits = bound.logits(bound(rows, masks.whole_rows(rows)))[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()

    @jax.jit
    def step(params, state, rows):
        updates, state = optimizer.update(jax.grad(loss)(params, rows), state)
        return optax.apply_updates(params, updates), state

    params = toys.params(MODEL)
    state = optimizer.init(params)
    for number, some in enumerate(fresh):
        start = number % (NUM_TOKENS - PREFIX - SUFFIX + 1)
        pieces = np.concatenate([canaries, some])[:, start : start + PREFIX + SUFFIX]
        params, state = step(params, state, jnp.asarray(np.insert(pieces, 0, bos, axis=1)))
    return params


def greedy(model_config: config.Config):
    """Greedy continuations, each id from a forward pass over the whole sequence."""

    @jax.jit
    def logits(params, rows):
        bound = parameters.bind(model_config, params)
        return bound.logits(bound(rows, masks.whole_rows(rows)))

    def continue_(params, prompts, num_tokens, *, stop=True):
        start = len(prompts[0])
        rows = np.zeros((len(prompts), start + num_tokens), np.int32)
        rows[:, :start] = prompts
        for position in range(start, start + num_tokens):
            rows[:, position] = np.argmax(logits(params, jnp.asarray(rows))[:, position - 1], axis=-1)
        return rows[:, start:].tolist()

    return continue_


@pytest.mark.slow
def test_planted_canaries_are_said_by_heart_and_what_was_seen_once_is_not():
    tokenizer = texts.tokenizer()
    pieces = np.asarray(chunks(), np.int32)
    pieces = pieces[np.random.default_rng(0).permutation(len(pieces))]
    num_steps, num_canaries, per_step = 120, 8, 4
    canaries, fresh = pieces[:num_canaries], pieces[num_canaries:][: num_steps * per_step]
    params = trained(tokenizer.bos, canaries, fresh.reshape(num_steps, per_step, -1))
    known = [
        EvalDocument(source, tokenizer.decode(piece))
        for source, pieces in (("canaries", canaries), ("fresh", fresh[:200]))
        for piece in pieces
    ]
    options = settings.Memorization(num_samples=2 * num_canaries, prefix_tokens=PREFIX, suffix_tokens=SUFFIX)
    made = memorization.make(model(greedy(MODEL), tokenizer), known, options)
    rates = summary_of(made, params)["by_source"]
    assert rates["canaries"]["exact"]["count"] == num_canaries
    assert rates["fresh"]["exact"]["count"] == 0 and rates["fresh"]["approximate"]["count"] == 0
