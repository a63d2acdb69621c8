"""Rows that are written on: against the argmax of whole rows, alone and together, and where they end."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.inference import sampler, sampling
from gemma3_jax.model import masks, parameters
from gemma3_jax.tokenizer import chat
from tests import texts, toys

MODEL = dataclasses.replace(toys.TOY, vocab_size=texts.TOKENIZER_SIZE, num_layers=7)
PROMPTS = [[2, 92, 19, 400], list(range(2, 25)), [2]]
NUM_NEW = 12  # over twice the window of 5


@functools.cache
def params() -> dict:
    return toys.params(MODEL)


def make(tokenizer=None, **mesh) -> sampler.Sampler:
    mesh = sharding.make_mesh(**mesh)
    load = lambda: jax.device_put(params(), parameters.shardings(MODEL, mesh))  # noqa: E731
    return sampler.Sampler(MODEL, load, tokenizer, mesh=mesh, context=64)


@pytest.fixture(scope="module")
def gemma():
    return make()


@pytest.fixture(scope="module")
def writer():
    """One with a tokenizer."""
    return make(texts.tokenizer())


def greedy(**changes) -> sampler.Asked:
    return sampler.Asked(**({"max_new_tokens": NUM_NEW, "how": sampling.GREEDY} | changes))


@functools.cache
def expected() -> list[list[int]]:
    """The most probable id after the whole row, again and again."""

    @jax.jit
    def logits(tokens, last):
        bound = parameters.bind(MODEL, params())
        return bound.logits(bound(tokens, masks.whole_rows(tokens)))[0, last]

    found = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(NUM_NEW):
            tokens = jnp.asarray([ids + [0] * (40 - len(ids))])  # behind what is read: no earlier token looks there
            ids.append(int(jnp.argmax(logits(tokens, len(ids) - 1))))
        found.append(ids[len(prompt) :])
    return found


def test_greedy_is_the_most_probable_id_of_whole_rows_for_prompts_of_any_length_together(gemma):
    told: list[int] = []
    answers = gemma.go_on(PROMPTS, greedy(), progress=told.append)
    assert [answer.ids for answer in answers] == expected()
    assert sum(told) == sampler.num_tokens(PROMPTS, greedy()) == 28 + 3 * NUM_NEW
    assert {answer.ended_by for answer in answers} == {"length"} and answers[0].text is None


def test_long_rows_go_in_smaller_batches(gemma, monkeypatch):
    monkeypatch.setattr(sampler, "TOKENS_AT_ONCE", 32)
    assert list(sampler._batches([4, 16, 5, 40, 8, 7])) == [[0, 2, 5, 4], [1], [3]]
    assert [answer.ids for answer in gemma.go_on(PROMPTS, greedy())] == expected()


def test_a_prompt_that_is_read_in_chunks_goes_on_the_same(gemma, monkeypatch):
    monkeypatch.setattr(sampler, "CHUNK", 8)
    assert gemma.go_on(PROMPTS[1:2], greedy())[0].ids == expected()[1]


def test_what_is_compiled_once_serves_again(gemma):
    gemma.go_on(PROMPTS[:1], greedy())
    sizes = lambda: [made._cache_size() for made in (gemma.programs._read, gemma.programs._write)]  # noqa: E731
    before, begun = sizes(), dict(gemma.programs._begin)
    gemma.go_on(PROMPTS[:1], greedy(seed=9))
    assert sizes() == before and gemma.programs._begin == begun


def test_over_a_mesh_it_goes_on_the_same():
    answers = make(data=2, model=2).go_on(PROMPTS, greedy())
    assert [answer.ids for answer in answers] == expected()


def test_a_row_ends_with_its_own_end_and_the_others_go_on(gemma, monkeypatch):
    end = expected()[0][3]
    assert end not in expected()[1]
    monkeypatch.setattr(gemma, "ends", [end])
    monkeypatch.setattr(gemma, "tokenizer", texts.tokenizer())
    first, second, _ = gemma.go_on(PROMPTS, greedy())
    assert first.ids == expected()[0][: expected()[0].index(end) + 1] and second.ids == expected()[1]
    assert first.ended_by == texts.tokenizer().piece(end) and second.ended_by == "length"
    assert first.text == texts.tokenizer().decode(first.ids[:-1])
    again = gemma.go_on(PROMPTS[:1], greedy(ignore_ends=True))[0]
    assert again.ids == expected()[0] and again.ended_by == "length"


def test_the_same_seed_draws_the_same_alone_and_beside_others(gemma):
    asked = sampler.Asked(max_new_tokens=NUM_NEW, seed=5)
    together = gemma.go_on(PROMPTS, asked)
    assert gemma.go_on(PROMPTS[:1], asked)[0].ids == together[0].ids
    assert gemma.go_on(PROMPTS[:1], dataclasses.replace(asked, seed=6))[0].ids != together[0].ids
    twice = gemma.go_on(PROMPTS[:1] * 2, asked)
    assert twice[0].ids != twice[1].ids, "the same prompt again is another text"


def test_markers_of_images_are_never_written():
    marker = texts.tokenizer().start_of_image
    table = params()["embedder"]["table"]
    loud = {**params(), "embedder": {"table": table.at[marker].set(40 * jnp.sign(table[marker]))}}

    def written(gemma):
        gemma.params = loud
        return {token for answer in gemma.go_on(PROMPTS, greedy()) for token in answer.ids}

    assert marker in written(make()), "without a tokenizer it is an id as any other"
    assert marker not in written(make(texts.tokenizer()))


def test_a_string_ends_a_text_and_is_no_part_of_it(writer):
    free = writer.go_on(PROMPTS[:1], greedy())[0]
    middle = len(free.text) // 2
    stop = free.text[middle : middle + 2]
    found = writer.go_on(PROMPTS[:1], greedy(stop=(stop,)))[0]
    assert found.text == free.text[: free.text.index(stop)] and found.ended_by == "stop"
    assert len(found.ids) < len(free.ids) and stop in texts.tokenizer().decode(found.ids)
    assert stop not in texts.tokenizer().decode(found.ids[:-1])


def test_what_is_shown_is_the_text(writer):
    shown: list[str] = []
    answer = writer.go_on(PROMPTS[:1], greedy(), show=shown.append)[0]
    assert "".join(shown) == answer.text and len(shown) > 2


def test_text_goes_in_and_out_and_a_reply_goes_on_from_turns(writer):
    (answer,) = writer.sample(["import os"], max_new_tokens=4, how=sampling.GREEDY)
    ids = [texts.tokenizer().bos, *texts.tokenizer().encode("import os")]
    assert answer.ids == writer.go_on([ids], greedy(max_new_tokens=4))[0].ids
    turns = [{"role": "user", "content": "hello"}]
    reply = writer.reply(turns, max_new_tokens=4, how=sampling.GREEDY)
    assert reply.ids == writer.go_on([chat.prompt(texts.tokenizer(), turns)], greedy(max_new_tokens=4))[0].ids


class OneOf:
    """Only these ids, in this order, each beside its successor; then an end."""

    def __init__(self, ids):
        self.left = list(ids)

    def allowed(self):
        found = np.zeros(MODEL.vocab_size, bool)
        found[self.left[0] if self.left else texts.tokenizer().eos] = True
        return found

    def take(self, token):
        if self.left:
            assert token == self.left.pop(0)

    @property
    def is_done(self):
        return not self.left


def test_a_constraint_says_what_each_row_may_be(writer):
    ids = [30, 500, 31, 7], [44]
    answers = writer.go_on(PROMPTS[:2], sampler.Asked(max_new_tokens=8), constraints=[OneOf(each) for each in ids])
    assert [answer.ids for answer in answers] == [[*each, texts.tokenizer().eos] for each in ids]
    assert answers[0].ended_by == "<eos>"


@pytest.mark.parametrize(
    ("prompts", "columns", "says"),
    [
        ([[]], {}, r"the prompt is empty; it must have at least one token"),
        ([[2], []], {}, r"prompt 1 is empty"),
        ([[2, 800]], {}, r"the prompt has id 800; ids are from 0 to 799"),
        ([[2] * 60], {}, r"has 60 tokens, and 12 more .* the context is 64 tokens: shorten it, .* raise --context"),
        ([[2]], {"stop": ("x",)}, r"has no tokenizer; name one with --tokenizer=FILE"),
    ],
)
def test_what_cannot_be_written_is_refused_before_parameters_are_read(prompts, columns, says):
    unread = sampler.Sampler(MODEL, lambda: pytest.fail("read"), None, mesh=sharding.make_mesh(), context=64)
    with pytest.raises(ValueError, match=says):
        unread.go_on(prompts, greedy(**columns))


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"max_new_tokens": 0}, r"max_new_tokens is 0; it must be at least 1"),
        ({"seed": -1}, r"seed is -1; it must be from 0 to 2\*\*32 - 1"),
        ({"stop": ("",)}, r"a stop string is empty"),
    ],
)
def test_what_cannot_be_asked_is_refused(columns, says):
    with pytest.raises(ValueError, match=says):
        sampler.Asked(**columns)


def test_text_without_a_tokenizer_is_refused(gemma):
    with pytest.raises(ValueError, match=r"no tokenizer; name one with --tokenizer=FILE, or give --prompt_ids"):
        gemma.sample(["x"])
