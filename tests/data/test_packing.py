"""Documents -> rows: none over length, no token lost, hardly a record_id empty."""

import collections

import numpy as np
import pytest

from gemma3_jax.data import packing


def log_normal_lengths(count, seed=0):
    """Lengths of documents like those of the web: median 545 tokens (recipe of the survey, log-normal)."""
    return np.maximum(2, np.random.default_rng(seed).lognormal(np.log(545), 1.2, count)).astype(int).tolist()


@pytest.mark.parametrize(("seq_len", "least"), [(2_048, 0.99), (8_192, 0.99)])
def test_rows_of_log_normal_documents_are_full(seq_len, least):
    lengths = log_normal_lengths(4_000)
    rows = packing.pack(lengths, seq_len)
    fill = sum(piece.length for row in rows for piece in row) / (len(rows) * seq_len)
    assert fill >= least


@pytest.mark.parametrize("seq_len", [2, 3, 64, 2_048])
def test_no_row_is_too_long_and_every_token_is_predicted_once(seq_len):
    lengths = [*log_normal_lengths(50, seed=1), 1, 2, 3, seq_len, seq_len + 1, 2 * seq_len - 1]
    predicted = collections.Counter()
    for row in packing.pack(lengths, seq_len):
        assert 0 < sum(piece.length for piece in row) <= seq_len
        for piece in row:
            predicted.update((piece.document, token) for token in range(piece.start + 1, piece.stop))
    assert set(predicted.values()) == {1}
    everything = {(document, token) for document, length in enumerate(lengths) for token in range(1, length)}
    assert set(predicted) == everything


def test_a_document_is_cut_with_one_token_of_context():
    pieces = packing.cut(7, 10, seq_len=4)
    assert [(piece.start, piece.stop) for piece in pieces] == [(0, 4), (3, 7), (6, 10)]
    assert packing.cut(7, 4, seq_len=4) == [packing.DocumentSpan(7, 0, 4)]
    assert packing.cut(7, 1, seq_len=4) == [packing.DocumentSpan(7, 0, 1)]


def test_a_piece_goes_where_least_room_is_left():
    rows = packing.pack([3, 6, 2, 5, 4], seq_len=10)
    assert [[piece.document for piece in row] for row in rows] == [[1, 4], [3, 0, 2]]


def test_packing_is_a_function_of_the_lengths():
    lengths = log_normal_lengths(300)
    assert packing.pack(lengths, 512) == packing.pack(list(lengths), 512)
