"""Completions: against the argmax over whole sequences, alone and in batches, and where they end."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.inference import open_sampler, sampler, sampling
from gemma3_jax.model import masks, parameters
from gemma3_jax.tokenizer import chat
from tests import compiled, texts, toys

MODEL = dataclasses.replace(toys.TOY, vocab_size=texts.TOKENIZER_SIZE, num_layers=2, num_local_per_global=1)
PROMPTS = [[2, 92, 19, 400], list(range(2, 25)), [2]]
NUM_NEW = 12  # over twice the window of 5


@functools.cache
def params() -> dict:
    return toys.params(MODEL)


def make(tokenizer=None, **mesh) -> open_sampler.CheckpointSampler:
    mesh = sharding.make_mesh(**mesh)
    load = lambda: jax.device_put(params(), parameters.shardings(MODEL, mesh))  # noqa: E731
    return open_sampler.CheckpointSampler(sampler.build(MODEL, tokenizer, mesh=mesh, context=64), load)


@pytest.fixture(scope="module")
def gemma():
    return make()


@pytest.fixture(scope="module")
def writer():
    """One with a tokenizer."""
    return make(texts.tokenizer())


def greedy(**changes) -> sampler.GenerateOptions:
    return sampler.GenerateOptions(**({"max_new_tokens": NUM_NEW, "sampling_options": sampling.GREEDY} | changes))


@functools.cache
def expected() -> list[list[int]]:
    """The most probable id after the whole sequence, step by step."""

    @jax.jit
    def logits(tokens, last):
        bound = parameters.bind(MODEL, params())
        return bound.logits(bound(tokens, masks.whole_rows(tokens)))[0, last]

    completions = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(NUM_NEW):
            tokens = jnp.asarray([ids + [0] * (40 - len(ids))])  # after what is read: no earlier token attends there
            ids.append(int(jnp.argmax(logits(tokens, len(ids) - 1))))
        completions.append(ids[len(prompt) :])
    return completions


def test_greedy_is_the_most_probable_id_of_whole_rows_for_prompts_of_any_length_together(gemma):
    counts: list[int] = []
    completions = gemma.continue_(PROMPTS, greedy(), progress=counts.append)
    assert [completion.ids for completion in completions] == expected()
    assert sum(counts) == sampler.num_tokens(PROMPTS, greedy()) == 28 + 3 * NUM_NEW
    assert {completion.ended_by for completion in completions} == {"length"} and completions[0].text is None


def test_long_rows_go_in_smaller_batches(gemma, monkeypatch):
    monkeypatch.setattr(sampler, "MAX_BATCH_TOKENS", 32)
    assert list(sampler.batches([4, 16, 5, 40, 8, 7])) == [[0, 2, 5, 4], [1], [3]]
    assert [completion.ids for completion in gemma.continue_(PROMPTS, greedy())] == expected()


def test_a_prompt_that_is_read_in_chunks_goes_on_the_same(gemma, monkeypatch):
    monkeypatch.setattr(sampler, "PREFILL_CHUNK", 8)
    assert gemma.continue_(PROMPTS[1:2], greedy())[0].ids == expected()[1]


def test_what_is_compiled_once_serves_again(gemma):
    gemma.continue_(PROMPTS[:1], greedy())
    with compiled.counted() as events:
        gemma.continue_(PROMPTS[:1], greedy(seed=9))
    assert events == []


def test_each_call_takes_its_own_parameters(gemma):
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params())
    bound = sampler.build(MODEL, None, mesh=sharding.make_mesh(), context=64)
    of_each = [[row.ids for row in bound.continue_(each, PROMPTS, greedy())] for each in (params(), doubled, params())]
    assert of_each[0] == of_each[2] == expected() != of_each[1]


def test_a_checkpoint_is_loaded_once_and_when_it_is_needed():
    loads = []
    lazy = open_sampler.CheckpointSampler(
        sampler.build(MODEL, texts.tokenizer(), mesh=sharding.make_mesh()), lambda: loads.append(1) or params()
    )
    prompt = lazy.encode("import os")
    assert not loads
    assert lazy.continue_([prompt], greedy()) == lazy.sample(["import os"], **vars(greedy())) and loads == [1]


def test_over_a_mesh_it_goes_on_the_same():
    completions = make(data=2, model=2).continue_(PROMPTS, greedy())
    assert [completion.ids for completion in completions] == expected()


def test_a_row_ends_with_its_own_end_and_the_others_continue_(gemma, monkeypatch):
    end = expected()[0][3]
    assert end not in expected()[1]
    monkeypatch.setattr(gemma.sampler, "end_ids", [end])
    monkeypatch.setattr(gemma.sampler, "tokenizer", texts.tokenizer())
    first, second, _ = gemma.continue_(PROMPTS, greedy())
    assert first.ids == expected()[0][: expected()[0].index(end) + 1] and second.ids == expected()[1]
    assert first.ended_by == texts.tokenizer().piece(end) and second.ended_by == "length"
    assert first.text == texts.tokenizer().decode(first.ids[:-1])
    again = gemma.continue_(PROMPTS[:1], greedy(ignore_ends=True))[0]
    assert again.ids == expected()[0] and again.ended_by == "length"


def test_the_same_seed_draws_the_same_alone_and_beside_others(gemma):
    options = sampler.GenerateOptions(max_new_tokens=NUM_NEW, seed=5)
    together = gemma.continue_(PROMPTS, options)
    assert gemma.continue_(PROMPTS[:1], options)[0].ids == together[0].ids
    assert gemma.continue_(PROMPTS[:1], dataclasses.replace(options, seed=6))[0].ids != together[0].ids
    twice = gemma.continue_(PROMPTS[:1] * 2, options)
    assert twice[0].ids != twice[1].ids, "the same prompt again is another text"


def test_markers_of_images_are_never_written():
    marker = texts.tokenizer().start_of_image
    table = params()["embedder"]["table"]
    loud = {**params(), "embedder": {"table": table.at[marker].set(40 * jnp.sign(table[marker]))}}

    def written(gemma):
        completions = gemma.sampler.continue_(loud, PROMPTS, greedy())
        return {token for completion in completions for token in completion.ids}

    assert marker in written(make()), "without a tokenizer it is an id as any other"
    assert marker not in written(make(texts.tokenizer()))


def test_a_string_ends_a_text_and_is_no_part_of_it(writer):
    free = writer.continue_(PROMPTS[:1], greedy())[0]
    middle = len(free.text) // 2
    stop = free.text[middle : middle + 2]
    stopped = writer.continue_(PROMPTS[:1], greedy(stop=(stop,)))[0]
    assert stopped.text == free.text[: free.text.index(stop)] and stopped.ended_by == "stop"
    assert len(stopped.ids) < len(free.ids) and stop in texts.tokenizer().decode(stopped.ids)
    assert stop not in texts.tokenizer().decode(stopped.ids[:-1])


def test_what_is_shown_is_the_text(writer):
    shown: list[str] = []
    completion = writer.continue_(PROMPTS[:1], greedy(), show=shown.append)[0]
    assert "".join(shown) == completion.text and len(shown) > 2


def test_text_goes_in_and_out_and_a_reply_goes_on_from_turns(writer):
    (completion,) = writer.sample(["import os"], max_new_tokens=4, sampling_options=sampling.GREEDY)
    ids = [texts.tokenizer().bos, *texts.tokenizer().encode("import os")]
    assert completion.ids == writer.continue_([ids], greedy(max_new_tokens=4))[0].ids
    turns = [{"role": "user", "content": "hello"}]
    reply = writer.reply(turns, max_new_tokens=4, sampling_options=sampling.GREEDY)
    assert reply.ids == writer.continue_([chat.prompt(texts.tokenizer(), turns)], greedy(max_new_tokens=4))[0].ids


class OneOf:
    """Only these ids, in this order, each beside its successor; then an end."""

    def __init__(self, ids):
        self.left = list(ids)

    def allowed(self):
        allowed = np.zeros(MODEL.vocab_size, bool)
        allowed[self.left[0] if self.left else texts.tokenizer().eos] = True
        return allowed

    def consume(self, token):
        if self.left:
            assert token == self.left.pop(0)

    @property
    def is_done(self):
        return not self.left


def test_a_constraint_says_what_each_row_may_be(writer):
    ids = [30, 500, 31, 7], [44]
    completions = writer.continue_(
        PROMPTS[:2], sampler.GenerateOptions(max_new_tokens=8), constraints=[OneOf(each) for each in ids]
    )
    assert [completion.ids for completion in completions] == [[*each, texts.tokenizer().eos] for each in ids]
    assert completions[0].ended_by == "<eos>"


@pytest.mark.parametrize(
    ("prompts", "fields", "message"),
    [
        ([[]], {}, r"the prompt is empty; it must have at least one token"),
        ([[2], []], {}, r"prompt 1 is empty"),
        ([[2, 800]], {}, r"the prompt has id 800; ids are from 0 to 799"),
        (
            [[2] * 60],
            {},
            r"has 60 tokens, and max_new_tokens is 12; the context is 64 tokens: shorten .* raise --context",
        ),
        ([[2]], {"stop": ("x",)}, r"has no tokenizer; name one with --tokenizer=FILE"),
    ],
)
def test_what_cannot_be_written_is_refused_before_parameters_are_read(prompts, fields, message):
    unread = open_sampler.CheckpointSampler(
        sampler.build(MODEL, None, mesh=sharding.make_mesh(), context=64), lambda: pytest.fail("read")
    )
    with pytest.raises(ValueError, match=message):
        unread.continue_(prompts, greedy(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_new_tokens": 0}, r"max_new_tokens is 0; it must be at least 1"),
        ({"seed": -1}, r"seed is -1; it must be from 0 to 2\*\*32 - 1"),
        ({"stop": ("",)}, r"a stop string is empty"),
    ],
)
def test_what_cannot_be_asked_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        sampler.GenerateOptions(**fields)


def test_text_without_a_tokenizer_is_refused(gemma):
    with pytest.raises(ValueError, match=r"no tokenizer; name one with --tokenizer=FILE, or give --prompt_ids"):
        gemma.sample(["x"])
