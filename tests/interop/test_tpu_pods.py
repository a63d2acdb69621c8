"""Published pod jobs at their real width, by the real TPU compiler: one each for v5e, v4 and v5p."""

import math

import pytest

from experiments import pods
from gemma3_jax.model import config, splash

pytest.importorskip("libtpu")

pytestmark = [pytest.mark.slow, pytest.mark.interop]

GIB = 1 << 30
JOBS = {job.name: job for job in pods.JOBS}


@pytest.fixture(scope="module", params=["1b pretrain", "12b qat", "27b pretrain"])
def made(request):
    """The job's name, and its plan."""
    return request.param, pods.compile_job(JOBS[request.param])


def received(plan, kind, axes):
    """Bytes that a chip receives in a step, by collectives of one kind along these axes."""
    found = [one for one in plan["collective_bytes"] if one["kind"] == kind and set(one["axes"]) == set(axes)]
    return math.fsum(one["received_bytes"] for one in found)


def test_it_fits_with_room_to_spare(made):
    name, plan = made
    assert plan["fits"] and plan["hbm_bytes_per_chip"] < 0.8 * plan["hbm_bytes_allowed"]
    assert name != "27b pretrain" or plan["hbm_bytes_per_chip"] <= 10 * GIB


def test_little_is_computed_twice(made):
    name, plan = made
    assert 1.3 < plan["flops_ratio"] <= {"27b pretrain": 1.36}.get(name, 1.45)  # 4/3: each layer once more


def test_replicas_exchange_no_more_than_their_shards_of_the_gradients(made):
    _, plan = made
    size = plan["mesh"]["replica"]
    shards = plan["hbm_bytes_by_kind"]["gradients"]
    summed = received(plan, "all-reduce", ["replica"])
    assert 0 < summed <= 1.1 * 2 * (size - 1) / size * shards  # vectors, too, which all have whole
    assert plan["dcn_bytes_per_step"] <= 1.1 * 2 * shards


def test_local_layers_fetch_two_halos_and_no_row(made):
    """Forward, once more before the backward pass, and their gradients back."""
    name, plan = made
    model = config.SIZES[name.split()[0]]
    halo = -(-(model.window - 1) // splash.LARGEST_BLOCK) * splash.LARGEST_BLOCK
    one_way = 2 * halo * model.num_key_heads * model.head_width * 2  # keys and values, in bfloat16
    num_local = model.num_layers - model.num_layers // (model.num_local_per_global + 1)
    assert received(plan, "collective-permute", ["seq"]) <= 3.01 * num_local * one_way
