import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax.model import masks
from tests import toys


def layout(segments, positions=None, images=None):
    as_row = lambda x: jnp.asarray([x], jnp.int32)  # noqa: E731
    positions = range(len(segments)) if positions is None else positions
    return masks.TokenLayout(as_row(segments), as_row(list(positions)), None if images is None else as_row(images))


def test_a_global_layer_sees_everything_before_the_query():
    row = layout([1] * 4)
    np.testing.assert_array_equal(masks.visible(row, row, None)[0], np.tri(4, dtype=bool))


def test_window_of_one_token_reads_only_itself():
    row = layout([1] * 4)
    np.testing.assert_array_equal(masks.visible(row, row, 1)[0], np.eye(4, dtype=bool))


def test_window_of_three_holds_three_keys_the_querys_own_included():
    row = layout([1] * 6)
    assert masks.visible(row, row, 3)[0].sum(axis=1).tolist() == [1, 2, 3, 3, 3, 3]


def test_documents_and_padding_do_not_see_each_other():
    row = layout([1, 1, 2, 2, 0], [0, 1, 0, 1, 0])
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    np.testing.assert_array_equal(masks.visible(row, row, None)[0], np.array(expected, bool))


def test_soft_tokens_see_their_own_image_ahead_but_no_other():
    row = layout([1] * 6, images=[0, 1, 1, 2, 2, 0])
    expected = np.tri(6, dtype=bool)
    expected[1, 2] = expected[3, 4] = True
    np.testing.assert_array_equal(masks.visible(row, row, None)[0], expected)


def test_an_image_does_not_reach_beyond_the_window():
    row = layout([1] * 5, images=[1] * 5)
    lag = np.abs(np.arange(5)[:, None] - np.arange(5))
    np.testing.assert_array_equal(masks.visible(row, row, 2)[0], lag < 2)


def test_images_of_two_documents_are_apart_even_with_the_same_number():
    row = layout([1, 1, 2, 2], [0, 1, 0, 1], images=[1, 1, 1, 1])
    assert not masks.visible(row, row, None)[0, :2, 2:].any()


def test_whole_rows_are_one_document_each():
    row = masks.whole_rows(jnp.asarray(toys.tokens(toys.TOY, 2, 3)))
    assert row.segments.tolist() == [[1, 1, 1]] * 2 and row.positions.tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("sliding_window", [None, 1, 4, 7, 100])
@pytest.mark.parametrize("images", [None, [0, 1, 1, 1, 1, 1, 2, 2, 0, 0, 3, 3, 3, 3, 3, 3]])
def test_spans_are_what_is_visible(sliding_window, images):
    row = layout([1] * 4 + [2] * 8 + [3] + [4] * 3, [*range(4), *range(8), 0, *range(3)], images)
    spans, index = masks.spans(row, sliding_window), jnp.arange(16)
    inside = (spans.first[..., None] <= index[None, None]) & (index[None, None] <= spans.last[..., None])
    np.testing.assert_array_equal(inside, masks.visible(row, row, sliding_window))


def test_the_span_of_padding_is_itself():
    spans = masks.spans(layout([1, 1, 0, 0], [0, 1, 0, 0]), None)
    assert spans.first.tolist() == [[0, 0, 2, 3]] and spans.last.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("make", [lambda row: masks.visible(row, row, 0), lambda row: masks.spans(row, 0)])
def test_window_below_one_is_refused_with_its_field(make):
    with pytest.raises(ValueError, match=r"sliding_window is 0 tokens; .*config\.model\.sliding_window"):
        make(layout([1] * 4))
