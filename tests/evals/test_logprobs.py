import dataclasses

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.evals import logprobs
from gemma3_jax.losses import vocab_parallel
from gemma3_jax.model import execution, masks, parameters
from tests import compiled, toys

MODEL = dataclasses.replace(toys.TOY, num_layers=2, num_local_per_global=1)


def lists(*lengths):
    return [toys.tokens(MODEL, 1, length, seed=number)[0].tolist() for number, length in enumerate(lengths)]


@jax.jit
def log_softmax(params, row):
    bound = parameters.bind(MODEL, params)
    return jax.nn.log_softmax(bound.logits(bound(row, masks.whole_rows(row))))


def one_by_one(params, tokens):
    """Log-softmax of whole logits, one list at a time."""
    row = jnp.asarray([tokens + [0] * (40 - len(tokens))])  # no token attends to what comes after it
    table = np.asarray(log_softmax(params, row)[0])
    return [float(table[position, token]) for position, token in enumerate(tokens[1:])]


@pytest.mark.parametrize(
    "axes",
    [
        {"replica": 2, "data": 2, "seq": 2},
        pytest.param({"data": 3, "model": 2}, marks=pytest.mark.slow),
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"seq": 3}, marks=pytest.mark.slow),
    ],
)
def test_batched_scores_equal_each_list_alone_on_any_mesh(axes):
    mesh, params, token_lists = sharding.make_mesh(**axes), toys.params(MODEL), lists(5, 1, 40, 17, 16, 3)
    spread, done = jax.device_put(params, parameters.shardings(MODEL, mesh)), []
    scores = logprobs.score(MODEL, spread, token_lists, mesh=mesh, execute=execution.REFERENCE, progress=done.append)
    assert [len(score) for score in scores] == [4, 0, 39, 16, 15, 2] and sum(done) == 82
    for tokens, score in zip(token_lists, scores, strict=True):
        np.testing.assert_allclose(score, one_by_one(params, tokens), atol=toys.ROUNDING)


def test_scores_do_not_depend_on_the_size_of_batches_and_chunks(monkeypatch):
    params, token_lists = toys.params(MODEL), lists(30, 28, 20, 25)
    score = lambda: logprobs.score(  # noqa: E731
        MODEL, params, token_lists, mesh=sharding.make_mesh(), execute=execution.REFERENCE
    )
    whole = score()
    with compiled.counted() as events:
        assert score() == whole
    assert events == [], "what is compiled once serves again"
    jax.clear_caches()  # or the program might be one of the old size of chunks
    monkeypatch.setattr(logprobs, "MAX_BATCH_TOKENS", 32)
    monkeypatch.setattr(vocab_parallel, "LOGITS_PER_CHUNK", 96 * 8)
    with compiled.counted() as events:
        in_parts = score()
    assert events
    for a, b in zip(whole, in_parts, strict=True):
        np.testing.assert_allclose(a, b, atol=toys.ROUNDING)


def test_logits_are_never_whole():
    model = toys.variant("padded_table")
    shapes = parameters.shapes(model)
    tokens = jax.ShapeDtypeStruct((2, 4096), jnp.int32)
    score = lambda *a: logprobs.next_token_logprobs(model, execution.REFERENCE, *a)  # noqa: E731
    jaxpr = jax.make_jaxpr(score)(shapes, tokens)

    def largest(jaxpr):
        inner = [sub for eqn in jaxpr.eqns for sub in jax.extend.core.jaxprs_in_params(eqn.params)]
        sizes = [var.aval.size for eqn in jaxpr.eqns for var in eqn.outvars]
        return max(sizes + [largest(sub) for sub in inner])

    assert largest(jaxpr.jaxpr) <= max(vocab_parallel.LOGITS_PER_CHUNK, 4 * 4096**2)


def test_probabilities_of_all_next_tokens_sum_to_one():
    params = toys.params(MODEL)
    token_lists = [[2, 7, token] for token in range(MODEL.vocab_size)]
    scores = logprobs.score(MODEL, params, token_lists, mesh=sharding.make_mesh(), execute=execution.REFERENCE)
    np.testing.assert_allclose(np.exp([score[-1] for score in scores]).sum(), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    "token_lists, text",
    [
        ({"a": 1}, r"ids\.json must have a JSON list of lists of token ids"),
        ([1, 2], r"ids\.json must have a JSON list of lists of token ids"),
        ([[1], []], r"ids\.json: list 1 is empty; it must have at least one token id"),
        ([[1, 96]], r"ids\.json: list 0 has token id 96; it must be an integer below 96"),
        ([[1, -1]], r"ids\.json: list 0 has token id -1; "),
        ([[1, 2.5]], r"ids\.json: list 0 has token id 2\.5; "),
        ([[1, True]], r"ids\.json: list 0 has token id True; "),
        ([["a"]], r"ids\.json: list 0 has token id 'a'; "),
    ],
)
def test_input_that_is_no_list_of_ids_is_refused(token_lists, text):
    with pytest.raises(ValueError, match=text):
        logprobs.check(token_lists, 96, "ids.json")
