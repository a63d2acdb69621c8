"""The batches of a stage: any step at any time, read ahead while steps are consecutive."""

import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.data import batches, order, stream
from tests import texts


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return texts.toy_dataset(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def streams():
    return []


@pytest.fixture
def opened(monkeypatch, streams):
    """The first steps of the streams that were opened; the streams are in `streams`."""
    steps, open_stream = [], stream.Stream

    def count(*arguments, first_step, **options):
        steps.append(first_step)
        streams.append(open_stream(*arguments, first_step=first_step, **options))
        return streams[-1]

    monkeypatch.setattr(stream, "Stream", count)
    return steps


@pytest.fixture
def next_batch(data, opened):
    rows = order.find(data, seq_len=64, batch_size=8, seed=3)
    made = batches.Batches(data, rows, sharding.make_mesh(data=8), 5, 0)
    yield made
    made.close()


def test_consecutive_steps_are_read_from_one_stream(next_batch, opened):
    assert [next_batch(step).step for step in range(5)] == list(range(5)) and opened == [0]


def test_any_step_can_be_read_and_is_the_same(next_batch, opened):
    straight = {step: next_batch(step) for step in range(4)}
    for step in (2, 1, 3):
        again = next_batch(step)
        assert (again.step, again.id) == (step, straight[step].id)
        np.testing.assert_array_equal(again.rows.tokens, straight[step].rows.tokens)
    assert opened == [0, 2, 1, 3]


def test_nothing_is_read_ahead_after_the_last_step(next_batch, opened, streams):
    next_batch(4)
    with pytest.raises(ValueError, match="this stream is closed"):
        next(streams[0])
    assert next_batch(0).step == 0 and opened == [4, 0]


def test_closing_before_the_first_step_is_no_error(next_batch, opened):
    next_batch.close()
    assert opened == []
