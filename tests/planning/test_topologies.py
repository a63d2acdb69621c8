"""Topologies by name, and the errors of those that do not exist."""

import math

import pytest

from gemma3_jax.planning import topologies


@pytest.mark.parametrize(
    ("name", "num_slices", "num_chips"),
    [("v5e:16x16", 2, 512), ("v5e:16x16", 8, 2_048), ("v4:16x16x24", 1, 6_144), ("v5p:16x16x24", 1, 6_144),
     ("v5e:1x1", 1, 1), ("v6e:1x1", 2, 2), ("v5e:2x2", 1, 4), ("v5p:2x2x1", 1, 4), ("v6e:8x16", 1, 128),
     ("tpu7x:2x2x1", 2, 8), ("tpu7x:8x16x16", 1, 2_048)],
)  # fmt: skip
def test_a_topology_has_so_many_chips(name, num_slices, num_chips):
    assert topologies.find(name, num_slices).num_chips == num_chips


def test_a_chip_is_a_device_but_a_tpu7x_is_two():
    assert topologies.find("v4:4x4x8", 2).num_devices == 256
    one = topologies.find("tpu7x:4x4x8", 2)
    assert (one.num_chips, one.num_devices) == (256, 512)
    assert one.chip.peak_flops * one.num_devices == 256 * 2307e12  # all figures are those of a device
    assert one.chip.hbm_bytes * one.num_devices == 256 * 192 * 2**30


def test_its_chip_is_the_one_it_is_named_after():
    assert topologies.find("v5p:4x4x8").chip.peak_flops == 459e12


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "H100:2x2", "v5e:16*16", "", "v5e:4"])
def test_what_is_no_topology_is_shown_some(name):
    with pytest.raises(
        ValueError, match=r"--topology is .*; it must be a chip and the shape of a slice: v4:2x2x4, v5e"
    ):
        topologies.find(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("v5e:16x32", "16x16"),  # two slices of 16x16
        ("v5e:3x5", "4x4"),
        ("v5e:0x0", "1x1"),
        ("v5p:4x4", "2x2x4"),
        ("v4:16x24x16", "16x16x24"),  # written in another order
    ],
)
def test_the_error_of_an_unknown_shape_names_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"v\w+ has no slice \d+(x\d+)+; the nearest: .*\b{near}\b"):
        topologies.find(name)


def test_there_is_at_least_one_slice():
    with pytest.raises(ValueError, match="--num_slices is 0; it must be at least 1"):
        topologies.find("v5e:4x4", 0)


@pytest.mark.parametrize("chip", ["v4", "v5e", "v5p", "v6e", "tpu7x"])
def test_shapes_are_within_what_one_job_gets_and_each_is_its_own_nearest(chip):
    shapes = topologies.shapes(chip)
    sizes = [math.prod(map(int, shape.split("x"))) for shape in shapes]
    largest = {"v4": 6_144, "v5e": 256, "v5p": 6_144, "v6e": 256, "tpu7x": 9_216}[chip]
    assert len(set(shapes)) == len(shapes) and max(sizes) == largest
    for shape, size in zip(shapes, sizes, strict=True):
        assert math.prod(map(int, topologies.nearest(chip, size)[0].split("x"))) == size, shape
