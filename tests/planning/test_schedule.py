"""Exposed seconds of hand-made schedules, against seconds computed by hand."""

import re

import pytest
from jax.sharding import AbstractMesh, AxisType

from gemma3_jax import sharding
from gemma3_jax.planning import costs, hlo, schedule, topologies

FOUR = AbstractMesh((1, 4, 1, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 4)
# 100 bytes a second from devices of the slice, 10 from other slices, 1,000 from memory; a cycle is a second.
CHIP = schedule.Bandwidths((schedule.TorusAxis(4, 100.0),), 10.0, 1_000.0, 50.0)
GROUPS = "channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}"


def program(entry, callees="", head="is_scheduled=true, num_partitions=4"):
    """A program whose x is 400 bytes: an all-gather brings a device 3 x 400, in 12 seconds."""
    return hlo.read(f"""HloModule m, {head}
{callees}
ENTRY %main (x: f32[100]) -> f32[100] {{
  %x = f32[100]{{0}} parameter(0)
{entry}
}}
""")


def walk(module, mesh=FOUR, num_slices=1, **cycles):
    """Walks; instructions run as many seconds as `cycles` has under their name."""
    return schedule.walk(
        module,
        mesh,
        CHIP,
        cycles_of=lambda one: cycles.get(one.name),
        clock_hz=1.0,
        num_slices=num_slices,
        place_of=lambda one: one.name,
    )


def exposed(timeline):
    return {(one.kind, one.axes, one.place): pytest.approx(one.seconds) for one in timeline.exposed}


def test_a_synchronous_collective_stops_the_chip():
    timeline = walk(
        program(f"""  %a = f32[100]{{0}} negate(%x)
  %gather = f32[400]{{0}} all-gather(%a), {GROUPS}
  ROOT %b = f32[100]{{0}} slice(%gather)"""),
        a=2,
        b=3,
    )
    assert exposed(timeline) == {("all-gather", ("data",), "gather"): 12}
    assert (timeline.chip_seconds, timeline.seconds) == (5, 17)


@pytest.mark.parametrize("seconds, left", [(5, 7), (12, 0), (20, 0)])
def test_a_done_waits_for_what_the_chip_has_not_hidden(seconds, left):
    entry = f"""  %start = (f32[100]{{0}}, f32[400]{{0}}) all-gather-start(%x), {GROUPS}
  %a = f32[100]{{0}} negate(%x)
  ROOT %done = f32[400]{{0}} all-gather-done(%start)"""
    timeline = walk(program(entry), a=seconds)
    assert exposed(timeline) == ({("all-gather", ("data",), "start"): left} if left else {})
    assert timeline.seconds == seconds + left and timeline.link_seconds == {schedule.ICI: 12}


def test_a_done_waits_through_updates_of_what_was_started():
    callee = f"""%wrapped (p: f32[100]) -> f32[400] {{
  %p = f32[100]{{0}} parameter(0)
  ROOT %gather = f32[400]{{0}} all-gather(%p), {GROUPS}
}}"""
    entry = """  %start = ((f32[100]{0}), f32[400]{0}, s32[]) async-start(%x), calls=%wrapped
  %update = ((f32[100]{0}), f32[400]{0}, s32[]) async-update(%start)
  %again = ((f32[100]{0}), f32[400]{0}, s32[]) async-update(%update)
  ROOT %done = f32[400]{0} async-done(%again)"""
    assert walk(program(entry, callee)).exposed_seconds == 12


def test_transfers_on_the_same_links_follow_each_other_and_memory_has_its_own():
    entry = f"""  %first = (f32[100]{{0}}, f32[400]{{0}}) all-gather-start(%x), {GROUPS}
  %second = (f32[100]{{0}}, f32[400]{{0}}) all-gather-start(%x), {GROUPS}
  %copy = (f32[100]{{0}}, f32[100]{{0}}, u32[]) copy-start(%x)
  %copied = f32[100]{{0}} copy-done(%copy)
  %a = f32[100]{{0}} negate(%x)
  %done.2 = f32[400]{{0}} all-gather-done(%second)
  ROOT %done = f32[400]{{0}} all-gather-done(%first)"""
    timeline = walk(program(entry), a=10)
    # The copy takes 400 bytes / 1,000. Then 10 seconds pass; the second gather ends at 24, and the first did at 12.
    assert exposed(timeline) == {("memory", (), "copy"): 0.4, ("all-gather", ("data",), "second"): 24 - 10.4}
    assert timeline.link_seconds == {schedule.ICI: 24, schedule.MEMORY: pytest.approx(0.4)}


@pytest.mark.parametrize(
    "start, num_bytes",
    [  # of a slice what it takes, of an update what it puts into the larger array
        ("((f32[100]{0}), f32[25]{0}, s32[]) slice-start(%x), slice={[0:25]}", 100),
        ("((f32[100]{0}), f32[50]{0}, s32[]) dynamic-slice-start(%x, %x), dynamic_slice_sizes={50}", 200),
        ("(f32[100]{0}, f32[100]{0}, u32[]) copy-start(%x)", 400),
        ("((f32[100]{0}, f32[5]{0}), f32[100]{0}, s32[]) dynamic-update-slice-start(%x, %update, %x)", 20),
        ("((f32[100]{0}), f32[100]{0}, u32[]) call-start(%x), calls=%other", 0),  # another core's work is no copy
    ],
)
def test_copies_move_the_smaller_array(start, num_bytes):
    done = re.search(r"\S+-start", start)[0].replace("-start", "-done")
    entry = f"""  %update = f32[5]{{0}} constant({{1, 2, 3, 4, 5}})
  %start = {start}
  ROOT %done = f32[100]{{0}} {done}(%start)"""
    other = "%other (p: f32[100]) -> f32[100] {\n  ROOT %p = f32[100]{0} parameter(0)\n}"
    assert walk(program(entry, other)).exposed_seconds == pytest.approx(num_bytes / 1_000)


FUSIONS = """%fused_start (p: f32[100]) -> f32[400] {
  %p = f32[100]{0} parameter(0)
  %gather.1 = f32[400]{0} all-gather(%p), GROUPS, backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %start.1 = (f32[100]{0}, f32[400]{0}, u32[]) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}
%fused_middle (q: f32[100]) -> f32[400] {
  %q = f32[100]{0} parameter(0)
  ROOT %gather.2 = f32[400]{0} all-gather(%q), GROUPS, backend_config={"async_collective_fusion_config":{"flag":"2"}}
}
%fused_done (r: f32[100]) -> f32[400] {
  %r = f32[100]{0} parameter(0)
  %gather.3 = f32[400]{0} all-gather(%r), GROUPS, backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
  ROOT %done.1 = f32[400]{0} custom-call(%r, %gather.3), custom_call_target="AsyncCollectiveDone"
}""".replace("GROUPS", GROUPS)


def test_a_collective_in_fusions_runs_from_its_start_to_its_done():
    entry = """  %begin = f32[400]{0} fusion(%x), kind=kOutput, calls=%fused_start
  %product = f32[400]{0} fusion(%x), kind=kOutput, calls=%fused_middle
  ROOT %end = f32[400]{0} fusion(%x), kind=kOutput, calls=%fused_done"""
    timeline = walk(program(entry, FUSIONS), begin=1, product=4, end=2)
    assert exposed(timeline) == {("all-gather", ("data",), "begin"): 12 - 5}  # once, in three fusions
    assert timeline.seconds == 1 + 4 + 7 + 2 and timeline.link_seconds == {schedule.ICI: 12}


def test_a_fusion_that_scatters_a_sum_is_synchronous():
    callee = f"""%fused (p: f32[100]) -> f32[25] {{
  %p = f32[100]{{0}} parameter(0)
  %sum = f32[100]{{0}} all-reduce(%p), {GROUPS}
  ROOT %slice = f32[25]{{0}} dynamic-slice(%sum, %p), dynamic_slice_sizes={{25}}
}}"""
    timeline = walk(program("  ROOT %f = f32[25]{0} fusion(%x), kind=kCustom, calls=%fused", callee), f=1)
    assert exposed(timeline) == {("reduce-scatter", ("data",), "f"): 3.0}  # 400 bytes x 3 / 4 at 100 a second


LOOP = """%body (s: (s32[], f32[100])) -> (s32[], f32[100]) {
  %s = (s32[], f32[100]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %y = f32[100]{0} get-tuple-element(%s), index=1
BODY
  ROOT %out = (s32[], f32[100]{0}) tuple(%next, %y)
}
%condition (t: (s32[], f32[100])) -> pred[] {
  %t = (s32[], f32[100]{0}) parameter(0)
  %j = s32[] get-tuple-element(%t), index=0
  %bound = s32[] constant(TRIPS)
  ROOT %less = pred[] compare(%j, %bound), direction=LT
}"""
ENTRY = """  %zero = s32[] constant(0)
  %init = (s32[], f32[100]{0}) tuple(%zero, %x)
  ROOT %loop = (s32[], f32[100]{0}) while(%init), condition=%condition, body=%body"""


@pytest.mark.parametrize("num_trips", [0, 1, 2, 3, 4, 1_000])
def test_loops_count_their_trips(num_trips):
    body = f"""  %a = f32[100]{{0}} negate(%y)
  %gather = f32[400]{{0}} all-gather(%a), {GROUPS}"""
    loop = LOOP.replace("BODY", body).replace("TRIPS", str(num_trips))
    timeline = walk(program(ENTRY, loop), a=2)
    assert timeline.chip_seconds == pytest.approx(2 * num_trips)
    assert timeline.exposed_seconds == pytest.approx(12 * num_trips)


def test_what_one_trip_starts_the_next_one_waits_for():
    """The gather of a trip overlaps with the 5 seconds of the next: 7 are exposed in each trip but the first."""
    body = f"""  %done = f32[400]{{0}} all-gather-done(%y)
  %start = (f32[100]{{0}}, f32[400]{{0}}) all-gather-start(%y), {GROUPS}
  %a = f32[100]{{0}} negate(%y)"""
    for num_trips in (1, 3, 10):
        loop = LOOP.replace("BODY", body).replace("TRIPS", str(num_trips))
        timeline = walk(program(ENTRY, loop), a=5)
        assert timeline.exposed_seconds == pytest.approx(7 * (num_trips - 1))


@pytest.mark.parametrize("num_trips", [2, 10])
@pytest.mark.parametrize("seconds", [5, 20])
def test_what_the_last_trip_starts_the_rest_of_the_step_waits_for(num_trips, seconds):
    """Nobody waits in the loop: transfers queue behind each other if a trip is shorter than one."""
    body = f"""  %start = (f32[100]{{0}}, f32[400]{{0}}) all-gather-start(%y), {GROUPS}
  %a = f32[100]{{0}} negate(%y)"""
    loop = LOOP.replace("BODY", body).replace("TRIPS", str(num_trips))
    entry = f"""{ENTRY.replace("ROOT ", "")}
  %b = f32[100]{{0}} negate(%x)
  ROOT %last = (f32[100]{{0}}, f32[400]{{0}}) all-gather(%b), {GROUPS}"""
    timeline = walk(program(entry, loop), a=seconds, b=1)
    links_free = 12 * num_trips if seconds < 12 else seconds * (num_trips - 1) + 12
    assert timeline.seconds == pytest.approx(max(links_free, seconds * num_trips + 1) + 12)
    ended = entry.replace("(f32[100]{0}, f32[400]{0}) all-gather(%b)", "f32[400]{0} all-gather-done(%b)")
    timeline = walk(program(ended, loop), a=seconds, b=1)
    assert timeline.seconds == pytest.approx(max(links_free, seconds * num_trips + 1))


def test_the_condition_of_a_loop_runs_once_more_than_its_body():
    loop = LOOP.replace("BODY", "").replace("TRIPS", "10")
    assert walk(program(ENTRY, loop), less=1, next=100).chip_seconds == pytest.approx(11 + 1_000)


def test_loops_in_loops_multiply():
    inner = LOOP.replace("BODY", f"  %gather = f32[400]{{0}} all-gather(%y), {GROUPS}").replace("TRIPS", "5")
    start = """  %start = s32[] constant(0)
  %state = (s32[], f32[100]{0}) tuple(%start, %y)
  %inner = (s32[], f32[100]{0}) while(%state), condition=%condition, body=%body"""
    outer = LOOP.replace("BODY", start).replace("TRIPS", "7").replace("%body ", "%body.2 ")
    outer = outer.replace("%condition ", "%condition.2 ")
    entry = ENTRY.replace("condition=%condition, body=%body", "condition=%condition.2, body=%body.2")
    assert walk(program(entry, f"{inner}\n{outer}")).exposed_seconds == pytest.approx(5 * 7 * 12)


def test_hosts_exchange_what_crosses_slices_on_a_clock_of_its_own():
    transfer = 'frontend_attributes={_xla_host_transfer_rendezvous="sum_0",_xla_megascale_transfer_type="ALL_REDUCE"}'
    entry = f"""  %send = (f32[100]{{0}}, u32[], token[]) send(%x, %x), {transfer}
  %recv = (f32[100]{{0}}, u32[], token[]) recv(%x), {transfer}
  %gather = f32[400]{{0}} all-gather(%x), {GROUPS}
  %received = (f32[100]{{0}}, token[]) recv-done(%recv)
  ROOT %sent = token[] send-done(%send)"""
    mesh = AbstractMesh((2, 4, 1, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 4)
    timeline = walk(program(entry), mesh, num_slices=2)
    # A device receives 400 bytes of an all-reduce of two, at 10 a second; the gather's 12 seconds overlap with it.
    assert exposed(timeline) == {("all-gather", ("data",), "gather"): 12, ("all-reduce", ("replica",), "send"): 28}


@pytest.mark.parametrize(
    "collective",
    [
        f"all-gather(%x), {GROUPS}".replace("{{0,1,2,3}}", "{{0},{1},{2},{3}}"),
        "collective-permute(%x), channel_id=1, source_target_pairs={{0,0},{1,1}}",
    ],
)
def test_what_has_no_links_to_cross_takes_no_time(collective):
    assert walk(program(f"  ROOT %y = f32[100]{{0}} {collective}")).exposed == ()
    callee = f"""%fused (p: f32[100]) -> f32[100] {{
  %x = f32[100]{{0}} parameter(0)
  ROOT %y = f32[100]{{0}} {collective}
}}"""
    assert walk(program("  ROOT %f = f32[100]{0} fusion(%x), kind=kCustom, calls=%fused", callee)).exposed == ()


def test_a_group_uses_the_torus_axes_that_it_spans():
    axes = (schedule.TorusAxis(16, 90.0), schedule.TorusAxis(4, 45.0))
    chip = schedule.Bandwidths(axes, 10.0, 1_000.0, 45.0)
    seconds = {
        size: chip.seconds(costs.Transfer("all-gather", ("data",), False, size, 900.0)) for size in (4, 16, 32, 64)
    }
    assert seconds == {4: 10, 16: 10, 32: 900 / 135, 64: 900 / 135}
    assert chip.seconds(costs.Transfer("all-reduce", ("replica",), True, 2, 900.0)) == 90
    assert chip.seconds(costs.Transfer("collective-permute", ("seq",), False, 2, 900.0)) == 20  # over one link


@pytest.mark.parametrize(
    "topology, sizes_and_neighbors",
    [  # whether the ends of an axis are linked decides how many neighbors each chip has
        ("v5e:4x4", [(4, 1), (4, 1)]),
        ("v5e:16x16", [(16, 2), (16, 2)]),
        ("v5p:4x4x8", [(4, 2), (4, 2), (8, 2)]),
        ("v4:2x2x4", [(2, 1), (2, 1), (4, 1)]),
        ("v4:2x2x1", [(2, 1), (2, 1)]),
    ],
)
def test_bandwidths_follow_the_shape_of_the_slice(topology, sizes_and_neighbors):
    slice_ = topologies.find(topology)
    chip = slice_.chip
    expected = [(size, neighbors * chip.link.bytes_per_second) for size, neighbors in sizes_and_neighbors]
    made = schedule.bandwidths(slice_)
    assert list(made.torus_axes) == expected
    assert (made.between_slices, made.memory) == (chip.link.between_slices, chip.hbm_bytes_per_second)


def test_a_program_that_is_not_scheduled_has_no_order():
    with pytest.raises(ValueError, match="is_scheduled=true is not in its first line"):
        walk(program("  ROOT %a = f32[100]{0} negate(%x)", head="num_partitions=4"))


def test_a_program_of_another_mesh_is_refused():
    with pytest.raises(ValueError, match="the program is for 8 devices, the mesh has 4"):
        walk(program("  ROOT %a = f32[100]{0} negate(%x)", head="is_scheduled=true, num_partitions=8"))
