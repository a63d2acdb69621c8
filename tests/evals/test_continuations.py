"""Continuations, with a stand-in whose next token depends on the last one alone."""

import collections
import itertools

import numpy as np
import pytest

from gemma3_jax.evals import continuations, model_api
from tests import texts, toys

SIZE = 12  # ids that follow one another


class Chain:
    """A Markov chain over the ids from `first` on, in the model API; it counts the requests."""

    def __init__(self, first: int = 0, last: int | None = None):
        logits = toys.noise("chain", (SIZE, SIZE)).astype(np.float64) * 3
        self.nats = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        self.first, self.last, self.requests = first, last, collections.Counter()
        self.api = model_api.ModelApi(
            tokenizer=texts.tokenizer(),
            score=lambda params, lists: self.score(lists),
            continue_=lambda params, *args, **options: self.continue_(*args, **options),
        )

    def score(self, lists):
        self.requests["lists"] += len(lists)
        return [[float(self.nats[a - self.first, b - self.first]) for a, b in itertools.pairwise(ids)] for ids in lists]

    def continue_(self, prompts, num_tokens, *, stop=True):
        self.requests["prompts"] += len(prompts)
        self.requests["tokens"] += len(prompts) * num_tokens
        result = []
        for prompt in prompts:
            ids = [prompt[-1]]
            while len(ids) <= num_tokens:
                following = int(self.nats[ids[-1] - self.first].argmax()) + self.first
                if stop and following == self.last:
                    break
                ids.append(following)
            result.append(ids[1:])
        return result


def pairs_of(*pairs):
    return [continuations.Pair(tuple(context), tuple(continuation)) for context, continuation in pairs]


def random_pairs(num_pairs):
    """Contexts that come again with other continuations, some of them the chain's own."""
    rng, chain = np.random.default_rng(0), Chain()
    contexts = [tuple(rng.integers(0, SIZE, rng.integers(1, 5)).tolist()) for _ in range(num_pairs // 4)]
    result = []
    for number in range(num_pairs):
        context = contexts[number % len(contexts)]
        ids = rng.integers(0, SIZE, rng.integers(1, 4)).tolist() if number % 3 else chain.continue_([context], 3)[0]
        result.append(continuations.Pair(context, tuple(ids)))
    return result


def test_scores_are_the_continuations_own_and_in_order(monkeypatch):
    monkeypatch.setattr(continuations, "LISTS_PER_CALL", 7)
    chain, pairs = Chain(), random_pairs(40)
    expected = [chain.score([[*p.context, *p.continuation]])[0][len(p.context) - 1 :] for p in pairs]
    assert continuations.score(chain.api, {}, pairs) == expected


def test_a_score_that_is_not_finite_is_an_error():
    chain = Chain()
    chain.nats[3, 4] = np.nan
    with pytest.raises(ValueError, match=r"request 1 a log-probability that is not finite"):
        continuations.score(chain.api, {}, pairs_of(([1], [2]), ([1, 3], [4])))


@pytest.mark.parametrize("prompts_per_call", [1, 3, 64])
def test_what_is_greedy_is_what_the_model_goes_on_with(prompts_per_call):
    chain, pairs = Chain(), random_pairs(60)
    expected = [tuple(chain.continue_([p.context], len(p.continuation))[0]) == p.continuation for p in pairs]
    assert 10 < sum(expected) < 50
    nats = continuations.score(chain.api, {}, pairs)
    assert expected == continuations.are_greedy(chain.api, {}, pairs, nats, prompts_per_call=prompts_per_call)


def test_the_model_is_not_asked_for_what_the_scores_say():
    chain = Chain()
    every = pairs_of(*(([1], [token]) for token in range(SIZE)))
    nats = continuations.score(chain.api, {}, every)
    result = continuations.are_greedy(chain.api, {}, every, nats, prompts_per_call=4)
    assert result == [token == chain.nats[1].argmax() for token in range(SIZE)] and not chain.requests["prompts"]


def test_a_context_is_continued_once():
    chain = Chain()
    second = int(chain.nats[1].argsort()[-2])
    pairs = pairs_of(([1], [second]), ([1], [second, 3]), ([1], [second]))
    nats = continuations.score(chain.api, {}, pairs)
    assert continuations.are_greedy(chain.api, {}, pairs, nats, prompts_per_call=4) == [False] * 3
    assert chain.requests["prompts"] == 1


def test_a_longer_continuation_is_followed_to_its_end_whatever_comes_after_it():
    chain = Chain()
    start = int(np.exp(chain.nats).max(-1).argmin())  # no id is sure to be chosen after it
    ids = chain.continue_([[start]], 3)[0]
    pairs = pairs_of(([start], ids), ([start], ids[:1]))
    nats = continuations.score(chain.api, {}, pairs)
    assert nats[1][0] < np.log(0.5)
    assert continuations.are_greedy(chain.api, {}, pairs, nats, prompts_per_call=4) == [True, True]


def test_of_two_that_are_nearly_level_the_model_says_which():
    chain = Chain()
    chain.nats[1] = np.log(0.001)
    chain.nats[1, [3, 4]] = np.log([0.4951, 0.4949])
    pairs = pairs_of(([1], [3]), ([1], [4]))
    chain.nats[1, 3] -= 0.001  # scored in another batch, it came out lower
    nats = continuations.score(chain.api, {}, pairs)
    chain.nats[1, 3] += 0.001
    assert continuations.are_greedy(chain.api, {}, pairs, nats, prompts_per_call=4) == [True, False]


def letters():
    """A chain over ids of the toy tokenizer that are a letter each."""
    tokenizer = texts.tokenizer()
    first = tokenizer.encode("e")[-1]
    assert all(len(tokenizer.piece(token)) == 1 for token in range(first, first + SIZE))
    return first


def request(prompt, num_tokens, *stops):
    return continuations.GenerationRequest((prompt,), num_tokens, stops)


@pytest.mark.parametrize("prompts_per_call", [1, 2, 64])
def test_texts_are_those_of_one_greedy_run_cut_at_the_first_stop(monkeypatch, prompts_per_call):
    monkeypatch.setattr(continuations, "FIRST_TOKENS", 2)
    first = letters()
    chain = Chain(first)
    whole = {start: texts.tokenizer().decode(chain.continue_([[start]], 50)[0]) for start in range(first, first + SIZE)}
    assert all(len(text) == 50 for text in whole.values())
    requests = [request(start, 1 + (start - first) * 4) for start in whole]
    result = continuations.generate_until(chain.api, {}, requests, prompts_per_call=prompts_per_call)
    assert result == [whole[r.prompt[0]][: r.num_tokens] for r in requests]
    start, text = next(iter(whole.items()))
    stops = (text[4:6], text[9:12], "never")
    result = continuations.generate_until(
        chain.api, {}, [request(start, 50, *stops)], prompts_per_call=prompts_per_call
    )
    assert result == [text[: min(text.find(stops[0]), text.find(stops[1]))]]


def test_nothing_is_generated_far_behind_a_stop():
    first = letters()
    chain = Chain(first)
    text = texts.tokenizer().decode(chain.continue_([[first]], 5)[0])
    chain.requests.clear()
    assert continuations.generate_until(chain.api, {}, [request(first, 5_000, text[0])], prompts_per_call=1) == [""]
    assert chain.requests["tokens"] == continuations.FIRST_TOKENS


def test_a_text_ends_where_the_document_does(monkeypatch):
    monkeypatch.setattr(continuations, "FIRST_TOKENS", 2)
    first = letters()
    ids = Chain(first).continue_([[first]], 3)[0]
    chain = Chain(first, last=ids[-1])
    expected = texts.tokenizer().decode(ids[: ids.index(ids[-1])])
    assert continuations.generate_until(chain.api, {}, [request(first, 100)], prompts_per_call=1) == [expected]
