"""FLOPs and collective bytes of a step, against counts by hand, on eight CPU devices."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from gemma3_jax import sharding
from gemma3_jax.planning import costs, hlo


def module_of(f, *shapes):
    return hlo.read(jax.jit(f).lower(*shapes).compile().as_text())


def array(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


def flops_of(f, *shapes):
    return costs.flops(module_of(f, *shapes)).matmul_flops


def abstract_mesh(*sizes):
    return AbstractMesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * 4)


def test_products_in_nested_scans_are_counted_exactly():
    def f(x, weights):
        def period(x, ws):
            x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)
            return x @ weights[0, 0], None

        return lax.scan(period, x, weights)[0]

    one = 2 * 4 * 16 * 16
    assert flops_of(f, array(4, 16), array(3, 5, 16, 16)) == (3 * 5 + 3) * one


def test_a_gradient_through_remat_multiplies_four_times_as_often():
    def loss(weights, x):
        layer = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None), policy=jax.checkpoint_policies.nothing_saveable)
        return jnp.sum(lax.scan(layer, x, weights)[0] ** 2)

    # Forward, again before the backward pass, and a product for each of its two operands.
    assert flops_of(jax.grad(loss, argnums=(0, 1)), array(6, 16, 16), array(4, 16)) == 4 * 6 * 2 * 4 * 16 * 16


def test_batch_dims_of_a_product_are_not_contracted():
    f = functools.partial(jnp.einsum, "bqnh,bknh->bnqk")
    assert flops_of(f, array(2, 5, 3, 7), array(2, 11, 3, 7)) == 2 * 2 * 3 * 5 * 11 * 7


def test_products_are_counted_by_the_dtype_they_are_fed_with():
    def f(x, y):
        return (x @ x).astype(jnp.float32), y @ y

    # As it reaches the compiler: a CPU widens bfloat16 before it multiplies.
    text = PRODUCTS.format(instruction="f32[4,16]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}")
    assert costs.flops(hlo.read(text)).matmul_flops_by_dtype == {"bf16": 2 * 4 * 8 * 16}
    assert costs.flops(module_of(f, array(4, 4), array(8, 8))).matmul_flops_by_dtype == {"f32": 2 * (4**3 + 8**3)}


def test_a_loop_of_unknown_trips_is_reported_beside_the_count():
    def f(x):
        return lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: x @ x, x)

    flops = costs.flops(module_of(f, array(8, 8)))
    assert flops.matmul_flops == 2 * 8**3 and len(flops.runs.unknown_loops) == 1


PRODUCTS = """HloModule m
ENTRY %main (x: bf16[4,8], y: bf16[8,16]) -> f32[4,16] {{
  %x = bf16[4,8]{{1,0}} parameter(0)
  %y = bf16[8,16]{{1,0}} parameter(1)
  ROOT %product = {instruction}
}}
"""


def convolution(left, right, result, attributes):
    text = PRODUCTS.format(instruction=f"{result} convolution(%x, %y), {attributes}")
    text = text.replace("bf16[4,8]{1,0} parameter", f"{left} parameter")
    return costs.flops(hlo.read(text.replace("bf16[8,16]{1,0} parameter", f"{right} parameter"))).matmul_flops


@pytest.mark.parametrize(
    "left, right, result, attributes, multiply_adds",
    [  # As libtpu 0.0.42 has the products of a layer; what they are in letters, and how many multiply-adds that is.
        # BD,DF->BF
        ("bf16[2048,1152]", "bf16[1152,6912]", "bf16[2048,6912]", "dim_labels=bf_io->bf", 2048 * 1152 * 6912),
        # BF,BD->FD, of which B is contracted
        ("bf16[256,32768]", "bf16[256,1152]", "f32[32768,1152]", "dim_labels=fb_io->bf", 256 * 32768 * 1152),
        # BD,DNH->BNH, N as a window over a padded dim of 1
        (
            "bf16[2048,1152,1]", "bf16[1152,4,256]", "bf16[2048,4,256]",
            "window={size=4 pad=3_3 rhs_reversal=1}, dim_labels=bf0_i0o->b0f", 2048 * 1152 * 4 * 256,
        ),
        # BNH,NHD->BD: the window covers N, and is contracted
        (
            "bf16[2048,4,256]", "bf16[4,256,1152]", "bf16[2048,1152,1]",
            "window={size=4}, dim_labels=b0f_0io->bf0", 2048 * 4 * 256 * 1152,
        ),
        # RNTH,RSH->RNTS: R is a batch dim, 16 blocks of queries that each read 640 keys
        (
            "bf16[16,4,128,256]", "bf16[16,640,256,1]", "f32[16,4,128,640]",
            "window={size=16x1 stride=15x1 lhs_dilate=16x1}, dim_labels=01bf_0oi1->01bf", 16 * 4 * 128 * 640 * 256,
        ),
        # RTNH,RNTS->RHS: N and T are contracted
        (
            "bf16[16,128,4,256]", "bf16[16,4,128,640]", "bf16[16,256,640,1]",
            "window={size=4x16 stride=1x15 lhs_dilate=1x16}, dim_labels=1f0b_10io->1bf0", 16 * 4 * 128 * 256 * 640,
        ),
        # RSH,RNTS->RNTH, with N as a padded window
        (
            "bf16[16,640,256,1]", "bf16[16,4,128,640]", "bf16[16,256,4,128]",
            "window={size=16x4 stride=15x1 pad=0_0x3_3 lhs_dilate=16x1 rhs_reversal=0x1}, dim_labels=0fb1_01oi->0b1f",
            16 * 640 * 256 * 4 * 128,
        ),
    ],
)  # fmt: skip
def test_a_product_that_a_tpu_writes_as_a_convolution_is_counted_as_a_product(
    left, right, result, attributes, multiply_adds
):
    assert convolution(left, right, result, attributes) == 2 * multiply_adds


@pytest.mark.parametrize(
    "left, right, result, attributes, multiply_adds",
    [
        # A row of 5 and 3 taps, "same": of 15 pairs one at each end is with padding.
        ("f32[2,5,4]", "f32[3,4,6]", "f32[2,5,6]", "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f", 2 * 4 * 6 * 13),
        # Every second position of 7 with taps two apart: positions -2, 0, 2 | 0, 2, 4 | 2, 4, 6 | 4, 6, 8.
        (
            "f32[1,7,1]", "f32[3,1,1]", "f32[1,4,1]",
            "window={size=3 stride=2 pad=2_2 rhs_dilate=2}, dim_labels=b0f_0io->b0f", 10,
        ),
        # Cropped: padding of -1 takes the first away.
        ("f32[1,4,1]", "f32[2,1,1]", "f32[1,2,1]", "window={size=2 pad=-1_0}, dim_labels=b0f_0io->b0f", 4),
        # Two groups of features: each of 6 outputs reads 2 of 4 inputs.
        (
            "f32[2,5,4]", "f32[1,2,6]", "f32[2,5,6]",
            "window={size=1}, dim_labels=b0f_0io->b0f, feature_group_count=2", 2 * 5 * 2 * 6,
        ),
        # Two groups of rows, as the gradient of that has them: 6 outputs, half of the rows contracted for each.
        (
            "f32[4,5,2]", "f32[1,2,6]", "f32[2,5,6]",
            "window={size=1}, dim_labels=b0f_0io->b0f, batch_group_count=2", 2 * 5 * 2 * 6,
        ),
    ],
)  # fmt: skip
def test_a_convolution_is_counted_where_its_window_meets_the_input(left, right, result, attributes, multiply_adds):
    assert convolution(left, right, result, attributes) == 2 * multiply_adds


@pytest.mark.parametrize("num_groups", [1, 2])
def test_both_gradients_of_a_convolution_multiply_as_often_as_it_does(num_groups):
    def f(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (2,), [(2, 1)], dimension_numbers=("NHC", "HIO", "NHC"), feature_group_count=num_groups
        )

    shapes = array(2, 9, 4), array(3, 4 // num_groups, 6)
    forward = flops_of(f, *shapes)
    assert forward > 0
    assert flops_of(lambda x, k, y: jax.vjp(f, x, k)[1](y), *shapes, jax.eval_shape(f, *shapes)) == 2 * forward


KERNEL = """HloModule m
ENTRY %main (x: f32[128,256]) -> f32[128,256] {
  %x = f32[128,256]{1,0} parameter(0)
  %note.1 = f32[128,256]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %splash.1 = f32[128,256]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"TU","cost_estimate":{"flops":"12345","transcendentals":"0"}}}
  ROOT %plain.2 = f32[128,256]{1,0} custom-call(%splash.1, %x), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"TU"}}
}
"""  # noqa: E501


def test_kernels_are_listed_apart_with_the_estimates_of_their_authors():
    flops = costs.flops(hlo.read(KERNEL))
    shape = hlo.Shape("f32", (128, 256))
    assert flops.matmul_flops == 0
    assert flops.custom_calls == (
        costs.CustomCall("tpu_custom_call", "splash.1", 1, (shape,), (shape,), 12345),
        costs.CustomCall("tpu_custom_call", "plain.2", 1, (shape, shape), (shape,), None),
    )


def test_every_collective_over_named_axes_is_counted_to_the_byte():
    mesh, num_trips = sharding.make_mesh(replica=2, data=2, seq=2), 7
    spec = PartitionSpec(None, ("replica", "data"), "seq")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    def f(x):
        def body(x, _):
            summed = lax.psum(x, "data") + lax.psum(x, ("replica", "seq"))
            gathered = lax.all_gather(x, "seq")
            scattered = lax.psum_scatter(x, ("data", "seq"), scatter_dimension=1, tiled=True)
            moved = lax.ppermute(x, "seq", [(0, 1), (1, 0)]) + lax.ppermute(x, "replica", [(0, 1)])
            swapped = lax.all_to_all(x, "data", split_axis=1, concat_axis=2, tiled=True)
            return x + summed + moved + gathered.sum(0) + scattered.sum() + swapped.sum(), None

        return lax.scan(body, x, None, length=num_trips)[0]

    module = module_of(f, array(2, 16, 16))
    local_bytes = 2 * 4 * 8 * 4
    expected = {
        ("all-reduce", ("data",)): 2 * 1 / 2,
        ("all-reduce", ("replica", "seq")): 2 * 3 / 4,
        ("all-gather", ("seq",)): 1,
        ("reduce-scatter", ("data", "seq")): 3 / 4,
        ("collective-permute", ("seq",)): 1,
        ("collective-permute", ("replica",)): 1,
        ("all-to-all", ("data",)): 1 / 2,
    }
    for num_slices in (1, 2):
        collectives = costs.traffic(module, mesh, num_slices=num_slices).collectives
        assert {(each.kind, each.axes): each.num_bytes for each in collectives} == {
            what: fraction * local_bytes * num_trips for what, fraction in expected.items()
        }
        assert all(each.num_times == num_trips for each in collectives)
        assert all(each.crosses_slices == (num_slices == 2 and "replica" in each.axes) for each in collectives)
        num_bytes = [each.num_bytes for each in collectives]
        assert num_bytes == sorted(num_bytes, reverse=True)


def test_devices_count_as_they_stand_in_the_mesh_whatever_their_ids():
    grid = np.array(jax.devices()).reshape(2, 4)[::-1, [2, 0, 3, 1]].reshape(1, 4, 2, 1)
    mesh = Mesh(grid, sharding.AXES, axis_types=(AxisType.Auto,) * 4)
    assert [device.id for device in mesh.devices.flat] == [6, 4, 7, 5, 2, 0, 3, 1]
    spec = PartitionSpec(("data", "seq"))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    def f(x):
        return lax.psum(x, "seq") + lax.ppermute(x, "data", [(0, 1), (2, 3)])

    collectives = costs.traffic(module_of(f, array(8, 3)), mesh).collectives
    assert {(each.kind, each.axes): each.num_bytes for each in collectives} == {
        ("all-reduce", ("seq",)): 12,
        ("collective-permute", ("data",)): 12,
    }


def test_zero_gathers_what_it_splits_and_sums_its_gradient():
    """By annotations alone: weights rest split over `data` and `seq`, rows over `replica` and `data`."""
    mesh, num_layers, width = sharding.make_mesh(replica=2, data=2, seq=2), 6, 16
    rest = NamedSharding(mesh, PartitionSpec(None, ("data", "seq")))

    def loss(weights, x):
        @jax.checkpoint
        def layer(x, w):
            return jnp.tanh(x @ lax.with_sharding_constraint(w, NamedSharding(mesh, PartitionSpec()))), None

        return jnp.sum(lax.scan(layer, x, weights)[0])

    weights = jax.ShapeDtypeStruct((num_layers, width, width), jnp.float32, sharding=rest)
    x = jax.ShapeDtypeStruct((8, width), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(("replica", "data"))))
    compiled = jax.jit(jax.grad(loss), out_shardings=rest).lower(weights, x).compile()
    module = hlo.read(compiled.as_text())
    num_bytes = {(each.kind, each.axes): each.num_bytes for each in costs.traffic(module, mesh).collectives}
    layer_bytes = width * width * 4
    assert num_bytes["all-gather", ("data", "seq")] == 2 * num_layers * 3 / 4 * layer_bytes
    assert num_bytes["all-reduce", ("replica", "data")] == num_layers * 2 * 3 / 4 * layer_bytes
    assert costs.flops(module).matmul_flops == 4 * num_layers * 2 * 2 * width * width  # of two rows


EXCHANGE = """HloModule m, num_partitions={num_partitions}
%fused (p: bf16[64]) -> bf16[16] {{
  %p = bf16[64]{{0}} parameter(0)
  %sum.1 = bf16[64]{{0}} all-reduce(%p), replica_groups={{{{0,1,2,3}}}}, use_global_device_ids=true, to_apply=%add
  %partition-id.1 = u32[] partition-id()
  ROOT %slice.1 = bf16[16]{{0}} dynamic-slice(%sum.1, %partition-id.1), dynamic_slice_sizes={{16}}
}}
%begun (p: bf16[16]) -> (bf16[16], bf16[64], u32[]) {{
  %p = bf16[16]{{0}} parameter(0)
  %gather.1 = bf16[64]{{0}} all-gather(%p), channel_id=2, replica_groups={{{{0,1,2,3}}}}, backend_config={{"async_collective_fusion_config":{{"flag_start":"-1"}}}}
  ROOT %start.1 = (bf16[16]{{0}}, bf16[64]{{0}}, u32[]) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}}
%carried_on (p: bf16[16]) -> bf16[64] {{
  %p = bf16[16]{{0}} parameter(0)
  ROOT %gather.2 = bf16[64]{{0}} all-gather(%p), channel_id=2, replica_groups={{{{0,1,2,3}}}}, backend_config={{"async_collective_fusion_config":{{"flag_start":"2"}}}}
}}
%wrapped (p: f32[8]) -> f32[2] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %scatter.1 = f32[2]{{0}} reduce-scatter(%p), replica_groups=[1,4]<=[4], dimensions={{0}}, to_apply=%add
}}
ENTRY %main (x: bf16[64], y: bf16[16], z: f32[8]) -> bf16[16] {{
  %x = bf16[64]{{0}} parameter(0)
  %y = bf16[16]{{0}} parameter(1)
  %z = f32[8]{{0}} parameter(2)
  {instructions}
  ROOT %done = bf16[16]{{0}} copy(%y)
}}
"""  # noqa: E501


def traffic_of(*instructions, mesh=None, num_slices=1, num_partitions=4):
    text = EXCHANGE.format(instructions="\n  ".join(instructions), num_partitions=num_partitions)
    traffic = costs.traffic(hlo.read(text), mesh or abstract_mesh(1, 4, 1, 1), num_slices=num_slices)
    return [tuple(each) for each in traffic.collectives]


@pytest.mark.parametrize(
    "instructions, expected",
    [
        # In a fusion with a slice of its result, a TPU sums no more than the slice.
        (["%a = bf16[16]{0} fusion(%x), kind=kCustom, calls=%fused"], ("reduce-scatter", 128 * 3 / 4, 1)),
        # Begun, carried on in two products, and ended: one exchange.
        (
            [
                "%a = (bf16[16]{0}, bf16[64]{0}, u32[]) fusion(%y), kind=kCustom, calls=%begun",
                "%b = bf16[64]{0} fusion(%y), kind=kOutput, calls=%carried_on",
                "%c = bf16[64]{0} fusion(%y), kind=kOutput, calls=%carried_on",
            ],
            ("all-gather", 32 * 3, 1),
        ),
        (
            [
                "%a = ((f32[8]), f32[2], u32[]) async-start(%z), calls=%wrapped",
                "%b = f32[2]{0} async-done(%a), calls=%wrapped",
            ],
            ("reduce-scatter", 32 * 3 / 4, 1),
        ),
        (
            [
                "%a = ((bf16[16], f32[8]), (bf16[64], f32[32])) all-gather-start(%y, %z), replica_groups=[1,4]<=[4]",
                "%b = (bf16[64], f32[32]) all-gather-done(%a)",
            ],
            ("all-gather", (32 + 32) * 3, 1),
        ),
        (["%a = (f32[8], bf16[64]) all-reduce(%z, %x), replica_groups={}"], ("all-reduce", 2 * (32 + 128) * 3 / 4, 1)),
        (
            [
                "%a = bf16[64]{0} ragged-all-to-all(%x, %x, %z, %z, %z, %z), replica_groups={{0,1,2,3}}",
            ],
            ("ragged-all-to-all", 128 * 3 / 4, 1),
        ),
        (["%a = f32[8]{0} collective-permute(%z), source_target_pairs={{0,0},{1,2}}"], ("collective-permute", 32, 1)),
    ],
)  # fmt: skip
def test_every_way_to_write_an_exchange_counts_once(instructions, expected):
    kind, num_bytes, num_times = expected
    assert traffic_of(*instructions) == [(kind, ("data",), False, num_bytes, num_times)]


def test_groups_of_one_and_permutations_that_stay_move_nothing():
    assert traffic_of(
        "%a = f32[8]{0} all-reduce(%z), replica_groups={{0},{1},{2},{3}}",
        "%b = f32[8]{0} collective-permute(%z), source_target_pairs={{0,0},{1,1}}",
    ) == []  # fmt: skip


def test_a_program_of_one_slice_sends_to_the_others_by_its_host():
    """As libtpu compiles for two slices of four: groups within a slice, and what hosts exchange along `replica`."""
    send = "(bf16[8,8], u32[], token[]) send(%x, %y), is_host_transfer=true"
    attributes = 'frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}'
    collectives = traffic_of(
        "%a = f32[8]{0} all-reduce(%z), replica_groups={{0,2},{1,3}}",
        "%b = f32[8]{0} all-reduce(%z), replica_groups={{0,1},{2,3}}",
        f"%c = {send}, {attributes}",
        f"%d = {send}",  # to the host itself, for a callback
        mesh=abstract_mesh(4, 2, 1, 1),
        num_slices=2,
    )
    assert collectives == [
        ("all-reduce", ("replica",), True, 2 * 128 / 2, 1),
        ("all-reduce", ("replica",), False, 2 * 32 / 2, 1),
        ("all-reduce", ("data",), False, 2 * 32 / 2, 1),
    ]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{{0,1},{2,3}}, use_global_device_ids=true", [[0, 1], [2, 3]]),
        ("{}, dimensions={0}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("[2,4]<=[8], dimensions={0}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("[2,4]<=[2,2,2]T(1,0,2), use_global_device_ids=true", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("mesh['a'=8,'b'=1] {'a'}, dimensions={1}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("mesh['a'=2,'b'=1,'c'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("mesh['a'=2,'b'=4] {'a','b':(2)2}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", [[0, 2], [1, 3]]),
    ],
)
def test_groups_of_devices_are_read_in_every_form(text, expected):
    groups = costs.replica_groups(text, 8)
    assert sorted(sorted(group) for group in groups) == expected


def test_groups_in_an_unknown_form_are_refused():
    with pytest.raises(
        ValueError, match=r"replica_groups=@mesh<a=2> \{a\} has an unknown form; compile with a version of jax"
    ):
        traffic_of("%a = f32[8]{0} all-reduce(%z), replica_groups=@mesh<a=2> {a}")


@pytest.mark.parametrize("sizes, num_slices", [((1, 8, 1, 1), 1), ((4, 2, 1, 1), 1), ((1, 4, 1, 1), 2)])
def test_a_program_for_another_mesh_is_refused(sizes, num_slices):
    expected = f"is for 4 devices, the mesh has {math.prod(sizes)} in {num_slices} slices with replica {sizes[0]}; pass"
    with pytest.raises(ValueError, match=re.escape(expected)):
        traffic_of(mesh=abstract_mesh(*sizes), num_slices=num_slices)
