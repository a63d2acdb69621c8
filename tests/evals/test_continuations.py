"""Continuations, with a stand-in whose next token depends on the last one alone."""

import collections
import itertools

import numpy as np
import pytest

from gemma3_jax.evals import continuations, task
from tests import texts, toys

SIZE = 12  # ids that follow one another


class Chain:
    """A Markov chain over the ids from `first` on, as a Subject; it counts what it is asked."""

    def __init__(self, first: int = 0, last: int | None = None):
        logits = toys.noise("chain", (SIZE, SIZE)).astype(np.float64) * 3
        self.nats = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        self.first, self.last, self.asked = first, last, collections.Counter()
        self.subject = task.Subject(tokenizer=texts.tokenizer(), score=self.score, go_on=self.go_on)

    def score(self, lists):
        self.asked["lists"] += len(lists)
        return [[float(self.nats[a - self.first, b - self.first]) for a, b in itertools.pairwise(ids)] for ids in lists]

    def go_on(self, prompts, num_tokens, *, stop=True):
        self.asked["prompts"] += len(prompts)
        self.asked["tokens"] += len(prompts) * num_tokens
        found = []
        for prompt in prompts:
            ids = [prompt[-1]]
            while len(ids) <= num_tokens:
                following = int(self.nats[ids[-1] - self.first].argmax()) + self.first
                if stop and following == self.last:
                    break
                ids.append(following)
            found.append(ids[1:])
        return found


def pairs_of(*pairs):
    return [continuations.Pair(tuple(context), tuple(continuation)) for context, continuation in pairs]


def random_pairs(num_pairs):
    """Contexts that come again with other continuations, some of them the chain's own."""
    rng, chain = np.random.default_rng(0), Chain()
    contexts = [tuple(rng.integers(0, SIZE, rng.integers(1, 5)).tolist()) for _ in range(num_pairs // 4)]
    found = []
    for number in range(num_pairs):
        context = contexts[number % len(contexts)]
        ids = rng.integers(0, SIZE, rng.integers(1, 4)).tolist() if number % 3 else chain.go_on([context], 3)[0]
        found.append(continuations.Pair(context, tuple(ids)))
    return found


def test_scores_are_the_continuations_own_and_in_order(monkeypatch):
    monkeypatch.setattr(continuations, "LISTS_AT_ONCE", 7)
    chain, pairs = Chain(), random_pairs(40)
    expected = [chain.score([[*p.context, *p.continuation]])[0][len(p.context) - 1 :] for p in pairs]
    assert continuations.score(chain.subject, pairs) == expected


def test_a_score_that_is_not_finite_is_an_error():
    chain = Chain()
    chain.nats[3, 4] = np.nan
    with pytest.raises(ValueError, match=r"request 1 a log-probability that is not finite"):
        continuations.score(chain.subject, pairs_of(([1], [2]), ([1, 3], [4])))


@pytest.mark.parametrize("prompts_at_once", [1, 3, 64])
def test_what_is_greedy_is_what_the_model_goes_on_with(prompts_at_once):
    chain, pairs = Chain(), random_pairs(60)
    expected = [tuple(chain.go_on([p.context], len(p.continuation))[0]) == p.continuation for p in pairs]
    assert 10 < sum(expected) < 50
    nats = continuations.score(chain.subject, pairs)
    assert expected == continuations.are_greedy(chain.subject, pairs, nats, prompts_at_once=prompts_at_once)


def test_the_model_is_not_asked_for_what_the_scores_say():
    chain = Chain()
    every = pairs_of(*(([1], [token]) for token in range(SIZE)))
    nats = continuations.score(chain.subject, every)
    found = continuations.are_greedy(chain.subject, every, nats, prompts_at_once=4)
    assert found == [token == chain.nats[1].argmax() for token in range(SIZE)] and not chain.asked["prompts"]


def test_a_context_is_continued_once():
    chain = Chain()
    second = int(chain.nats[1].argsort()[-2])
    pairs = pairs_of(([1], [second]), ([1], [second, 3]), ([1], [second]))
    nats = continuations.score(chain.subject, pairs)
    assert continuations.are_greedy(chain.subject, pairs, nats, prompts_at_once=4) == [False] * 3
    assert chain.asked["prompts"] == 1


def test_a_longer_continuation_is_followed_to_its_end_whatever_comes_after_it():
    chain = Chain()
    start = int(np.exp(chain.nats).max(-1).argmin())  # no id is sure to be chosen after it
    ids = chain.go_on([[start]], 3)[0]
    pairs = pairs_of(([start], ids), ([start], ids[:1]))
    nats = continuations.score(chain.subject, pairs)
    assert nats[1][0] < np.log(0.5)
    assert continuations.are_greedy(chain.subject, pairs, nats, prompts_at_once=4) == [True, True]


def test_of_two_that_are_nearly_level_the_model_says_which():
    chain = Chain()
    chain.nats[1] = np.log(0.001)
    chain.nats[1, [3, 4]] = np.log([0.4951, 0.4949])
    pairs = pairs_of(([1], [3]), ([1], [4]))
    chain.nats[1, 3] -= 0.001  # scored in another batch, it came out lower
    nats = continuations.score(chain.subject, pairs)
    chain.nats[1, 3] += 0.001
    assert continuations.are_greedy(chain.subject, pairs, nats, prompts_at_once=4) == [True, False]


def letters():
    """A chain over ids of the toy tokenizer that are a letter each."""
    tokenizer = texts.tokenizer()
    first = tokenizer.encode("e")[-1]
    assert all(len(tokenizer.piece(token)) == 1 for token in range(first, first + SIZE))
    return first


def wish(prompt, num_tokens, *stops):
    return continuations.Wish((prompt,), num_tokens, stops)


@pytest.mark.parametrize("prompts_at_once", [1, 2, 64])
def test_texts_are_those_of_one_greedy_run_cut_at_the_first_stop(monkeypatch, prompts_at_once):
    monkeypatch.setattr(continuations, "FIRST_TOKENS", 2)
    first = letters()
    chain = Chain(first)
    whole = {start: texts.tokenizer().decode(chain.go_on([[start]], 50)[0]) for start in range(first, first + SIZE)}
    assert all(len(text) == 50 for text in whole.values())
    wishes = [wish(start, 1 + (start - first) * 4) for start in whole]
    found = continuations.until(chain.subject, wishes, prompts_at_once=prompts_at_once)
    assert found == [whole[w.prompt[0]][: w.num_tokens] for w in wishes]
    start, text = next(iter(whole.items()))
    stops = (text[4:6], text[9:12], "never")
    found = continuations.until(chain.subject, [wish(start, 50, *stops)], prompts_at_once=prompts_at_once)
    assert found == [text[: min(text.find(stops[0]), text.find(stops[1]))]]


def test_nothing_is_generated_far_behind_a_stop():
    first = letters()
    chain = Chain(first)
    text = texts.tokenizer().decode(chain.go_on([[first]], 5)[0])
    chain.asked.clear()
    assert continuations.until(chain.subject, [wish(first, 5_000, text[0])], prompts_at_once=1) == [""]
    assert chain.asked["tokens"] == continuations.FIRST_TOKENS


def test_a_text_ends_where_the_document_does(monkeypatch):
    monkeypatch.setattr(continuations, "FIRST_TOKENS", 2)
    first = letters()
    ids = Chain(first).go_on([[first]], 3)[0]
    chain = Chain(first, last=ids[-1])
    expected = texts.tokenizer().decode(ids[: ids.index(ids[-1])])
    assert continuations.until(chain.subject, [wish(first, 100)], prompts_at_once=1) == [expected]
