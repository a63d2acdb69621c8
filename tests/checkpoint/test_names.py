import jax
import numpy as np
import pytest

from gemma3_jax.checkpoint import names
from gemma3_jax.model import config, parameters
from tests import toys

SIZES = {"N": 2, "H": 3, "D": 5}


def test_shape_of_a_layout_multiplies_what_is_in_brackets():
    assert names.shape_of("(N H) D", SIZES) == (6, 5)
    assert names.shape_of("D (N H)", SIZES) == (5, 6)
    assert names.shape_of("N D H", SIZES) == (2, 5, 3)


def test_relayout_by_hand():
    rows = np.arange(30).reshape(6, 5)  # row n * H + h, column d
    ours = names.relayout(rows, "(N H) D", "D N H", SIZES)
    assert ours.shape == (5, 2, 3) and ours[4, 1, 2] == rows[1 * 3 + 2, 4]
    np.testing.assert_array_equal(names.relayout(ours, "D N H", "(N H) D", SIZES), rows)


@pytest.mark.parametrize("name", toys.VARIANTS)
def test_slots_fill_every_parameter_of_the_tree_exactly_once(name):
    model = toys.variant(name)
    counts = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.int32), parameters.shapes(model))
    for slot in names.slots(model):
        names.get(counts, slot.path)[slot.index] += 1
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(counts))


def test_layouts_here_are_the_dims_that_annotate_the_parameters():
    model = config.SIZES["4b"]
    dims = parameters.dims(model)
    for slot in names.slots(model):
        assert names.get(dims, slot.path)[len(slot.index) :] == tuple(slot.spec.layout.split())
