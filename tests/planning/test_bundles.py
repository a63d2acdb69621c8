"""Our estimates of cycles against products of a small table by hand, and the reader of libtpu's low-level dump."""

import functools
import importlib.util
import json
import pathlib

import pytest

from gemma3_jax import chips
from gemma3_jax.planning import bundles, hlo

V5E = next(chip for chip in chips.CHIPS if chip.name == "v5e")
TABLE = {
    "libtpu": "1.0",
    "chips": {
        "v5e": {
            "scatter_elements": {"bundles": {"elements": 8.0}},
            "scatter_rows": {"bundles": {"rows": 2.0, "tiles": 4.0}},
            "gather_elements": {"bundles": {"elements": 7.0}},
            "gather_rows": {"bundles": {"rows": 1.0, "tiles": 0.5}},
            "sort_rows": {"bundles": {"elements": 0.5, "stages": 0.01}},
            "sort_flat": {"bundles": {"elements": 1.0, "stages": 0.0}},
            "top_k": {"bundles": {"elements": 0.25, "choices": 3.0, "comparisons": 0.001}},
            "top_k_128": {"bundles": {"elements": 0.75}},
            "reshape_f32": {"bundles": {"elements": 0.002}},
            "splash_fwd": {"bundles": {"flops": 1e-5, "scores": 0.01}},
            "weights_of_few_ids": {"bundles": {"elements": 0.003, "flops": 1e-5}},
            "teacher_summary": {"bundles": {"elements": 0.006}},
        }
    },
}
SCRIPT = pathlib.Path(__file__).parents[2] / "experiments" / "benchmarks" / "tpu_bundles.py"


@pytest.fixture(autouse=True)
def small_table(monkeypatch):
    monkeypatch.setattr(bundles, "table", lambda: TABLE)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("tpu_bundles", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def estimate(line, parameters, chip=V5E, callee=""):
    """The estimate of the root of a program with these parameters, at 1 GHz."""
    declared = "\n".join(f"  %p{i} = {shape} parameter({i})" for i, shape in enumerate(parameters))
    module = hlo.read(f"HloModule m\n{callee}\nENTRY %main () -> f32[] {{\n{declared}\n  ROOT %root = {line}\n}}\n")
    entry = module.computations[module.entry]
    return bundles.estimate(module, entry, entry.instructions["root"], chip, 1e9)


SCATTER = "f32[1000]{0} scatter(%p0, %p1, %p2), update_window_dims={}, to_apply=%add"
ROWS = "f32[64,300]{1,0} scatter(%p0, %p1, %p2), update_window_dims={1}, to_apply=%add"


@pytest.mark.parametrize(
    "line, parameters, cycles",
    [
        (SCATTER, ["f32[1000]{0}", "s32[50,1]{1,0}", "f32[50]{0}"], 50 * 8),
        (ROWS, ["f32[64,300]{1,0}", "s32[10,1]{1,0}", "f32[10,300]{1,0}"], 10 * (2 + 3 * 4)),  # 300 is 3 lane tiles
        ("f32[50]{0} gather(%p0, %p1), offset_dims={}, slice_sizes={1}", ["f32[1000]{0}", "s32[50,1]{1,0}"], 50 * 7),
        (
            "f32[10,300]{1,0} gather(%p0, %p1), offset_dims={1}, slice_sizes={1,300}",
            ["f32[64,300]{1,0}", "s32[10,1]{1,0}"],
            10 * (1 + 3 * 0.5),
        ),
        # 1,024 numbers take 10 x 11 / 2 stages; the table is of keys with one value each
        (
            "(f32[8,1024]{1,0}, s32[8,1024]{1,0}) sort(%p0, %p1), dimensions={1}, to_apply=%less",
            ["f32[8,1024]{1,0}", "s32[8,1024]{1,0}"],
            8 * 1024 * (0.5 + 55 * 0.01),
        ),
        ("f32[4096]{0} sort(%p0), dimensions={0}, to_apply=%less", ["f32[4096]{0}"], 4096 / 2),
        (
            '(f32[16,8]{1,0}, s32[16,8]{1,0}) custom-call(%p0), custom_call_target="TopK"',
            ["f32[16,1000]{1,0}"],
            16 * 1000 * 0.25 + 16 * 8 * 3 + 16 * 1000 * 8 * 0.001,
        ),
        (
            '(f32[16,128]{1,0}, s32[16,128]{1,0}) custom-call(%p0), custom_call_target="TopK"',
            ["f32[16,1000]{1,0}"],
            16 * 1000 * 0.75,
        ),
        ("f32[500,20]{1,0} reshape(%p0)", ["f32[10000]{0}"], 20),
    ],
)
def test_cycles_are_bundles_of_the_table_times_elements(line, parameters, cycles):
    found = estimate(line, parameters)
    assert found.cycles == round(cycles) and f"{cycles:.3g} bundles" in found.reason


def test_a_fusion_costs_what_its_scatter_costs():
    callee = """%fused (a: f32[1000], b: s32[50,1], c: f32[50]) -> f32[1000] {
  %p0 = f32[1000]{0} parameter(0)
  %p1 = s32[50,1]{1,0} parameter(1)
  %p2 = f32[50]{0} parameter(2)
  ROOT %s = SCATTER
}""".replace("SCATTER", SCATTER)
    shapes = ["f32[1000]{0}", "s32[50,1]{1,0}", "f32[50]{0}"]
    assert (
        estimate("f32[1000]{0} fusion(%p0, %p1, %p2), kind=kCustom, calls=%fused", shapes, callee=callee).cycles == 400
    )


def test_a_scatter_in_a_fusion_of_a_fusion_is_found_and_the_gather_of_its_rows_is_not_counted_beside_it():
    """As XLA writes a scatter of rows: sorted indices, rows gathered in their order, and rows added."""
    callee = """%gathered (a: f32[10,300], b: s32[10,1]) -> f32[10,300] {
  %p0 = f32[10,300]{1,0} parameter(0)
  %p1 = s32[10,1]{1,0} parameter(1)
  ROOT %g = f32[10,300]{1,0} gather(%p0, %p1), offset_dims={1}, slice_sizes={1,300}
}
%inner (a: f32[64,300], b: s32[10,1], c: f32[10,300]) -> f32[64,300] {
  %p0 = f32[64,300]{1,0} parameter(0)
  %p1 = s32[10,1]{1,0} parameter(1)
  %p2 = f32[10,300]{1,0} parameter(2)
  ROOT %s = ROWS
}
%outer (a: f32[64,300], b: s32[10,1], c: f32[10,300]) -> f32[64,300] {
  %p0 = f32[64,300]{1,0} parameter(0)
  %p1 = s32[10,1]{1,0} parameter(1)
  %p2 = f32[10,300]{1,0} parameter(2)
  %rows = f32[10,300]{1,0} fusion(%p2, %p1), kind=kCustom, calls=%gathered
  ROOT %f = f32[64,300]{1,0} fusion(%p0, %p1, %rows), kind=kCustom, calls=%inner
}""".replace("ROWS", ROWS)
    shapes = ["f32[64,300]{1,0}", "s32[10,1]{1,0}", "f32[10,300]{1,0}"]
    line = "f32[64,300]{1,0} fusion(%p0, %p1, %p2), kind=kCustom, calls=%outer"
    assert estimate(line, shapes, callee=callee).cycles == 10 * (2 + 3 * 4)


def test_arrays_beyond_the_vector_memory_pass_between_it_and_hbm(monkeypatch):
    size = 1 << 26  # 256 MiB; a v5e has 128 of vector memory
    found = estimate(f"f32[{size // 128},128]{{1,0}} reshape(%p0)", [f"f32[{size}]{{0}}"])
    assert found.cycles == pytest.approx(2 * 4 * size / 819e9 * 1e9, abs=1) and "memory traffic" in found.reason
    # Rows of 16,384 take 28 passes, each of which reads and writes keys and values.
    monkeypatch.setitem(TABLE["chips"]["v5e"], "sort_rows", {"bundles": {"elements": 0.1, "stages": 0.001}})
    shape = "[4096,16384]{1,0}"
    found = estimate(
        f"(f32{shape}, s32{shape}) sort(%p0, %p1), dimensions={{1}}, to_apply=%less", [f"f32{shape}", f"s32{shape}"]
    )
    by_bundles, by_memory = size * (0.1 + 105 * 0.001), 28 * 2 * 2 * 4 * size / 819
    assert by_memory > by_bundles and found.cycles == pytest.approx(by_memory)


@pytest.mark.parametrize(
    "line, parameters",
    [
        ("f32[8]{0} cholesky(%p0)", ["f32[8]{0}"]),
        ('f32[8]{0} custom-call(%p0), custom_call_target="tpu_custom_call"', ["f32[8]{0}"]),  # an unknown kernel
        ('(f32[16,100]{1,0}, s32[16,100]{1,0}) custom-call(%p0), custom_call_target="TopK"', ["f32[16,1000]{1,0}"]),
        ("u8[500,20]{1,0} reshape(%p0)", ["u8[10000]{0}"]),  # a width that has not been looked at
        ("bf16[500,20]{1,0} reshape(%p0)", ["bf16[10000]{0}"]),  # a kind that this table lacks
        ("f32[] copy(%p0)", ["f32[]"]),
    ],
)
def test_what_is_unknown_is_none(line, parameters):
    assert estimate(line, parameters) is None


def test_a_chip_that_the_table_lacks_has_no_estimates():
    v6e = next(chip for chip in chips.CHIPS if chip.name == "v6e")
    assert estimate("f32[500,20]{1,0} reshape(%p0)", ["f32[10000]{0}"], chip=v6e) is None


def kernel_cycles(name, result, parameters, op_name=""):
    """The estimated cycles of a Pallas kernel at 1 GHz; None without an estimate."""
    operands = ", ".join(f"%p{i}" for i in range(len(parameters)))
    module = hlo.read(
        "HloModule m\nENTRY %main () -> f32[] {\n"
        + "\n".join(f"  %p{i} = {shape} parameter({i})" for i, shape in enumerate(parameters))
        + f'\n  ROOT %{name}.1 = {result} custom-call({operands}), custom_call_target="tpu_custom_call", '
        + f'metadata={{op_name="{op_name}"}}\n}}\n'
    )
    entry = module.computations[module.entry]
    found = bundles.estimate(module, entry, entry.instructions[entry.root], V5E, 1e9)
    return found and found.cycles


def test_splash_kernels_cost_flops_and_scores():
    shapes = ["s16[1,4,2]{2,1,0}", "bf16[4,2048,256]{2,1,0}", "bf16[1,2048,256]{2,1,0}"]
    scores = 4 * 8 * 512**2  # heads, visits, a block of queries and keys
    expected = round(2 * 2 * scores * 256 * 1e-5 + scores * 0.01)
    assert kernel_cycles("splash_mha_fwd_residuals", "bf16[4,2048,256]{2,1,0}", shapes) == expected


def test_a_global_layer_takes_as_long_as_on_its_busiest_shard_unless_shards_are_balanced():
    """The last of two shards of 1,024 queries meets 3 and 4 blocks of 512 keys; a balanced one 1, 2, 3 and 4 halved."""
    shapes = ["s16[1,2,4]{2,1,0}", "bf16[4,1024,256]{2,1,0}", "bf16[1,2048,256]{2,1,0}"]
    of_visit = 4 * 512**2 * (2 * 2 * 256 * 1e-5 + 0.01)
    kernel = functools.partial(kernel_cycles, "splash_mha_fwd_segmented_residuals", "bf16[4,1024,256]{2,1,0}", shapes)
    assert kernel() == round(7 * of_visit)
    assert kernel(op_name="jit(step)/global_layer/load_balanced/splash_mha_fwd_segmented") == round(5 * of_visit)


def test_kernels_of_the_loss_and_of_drawing_cost_logits_and_the_products_of_samples():
    logits, result = "f32[64,1024]{1,0}", "bf16[64,1024]{1,0}"
    few = ["s32[64,256]{1,0}", "f32[64,256]{1,0}"]
    products = 2 * 2 * 64 * 1024 * 256  # a multiply-add for each sample, in both parts of the weights
    expected = round(64 * 1024 * 0.003 + products * 1e-5)
    assert kernel_cycles("weights_of_few_ids", result, [logits, *few]) == expected
    assert kernel_cycles("teacher_summary", result, ["s32[64,1]{1,0}", logits]) == round(64 * 1024 * 0.006)
    assert kernel_cycles("teacher_weights", result, ["s32[64,1]{1,0}", logits]) is None  # the table lacks it


@pytest.mark.parametrize(("length", "stages"), [(2, 1), (4, 3), (1024, 55), (1025, 66), (16_384, 105)])
def test_a_bitonic_sort_has_a_stage_for_each_distance(length, stages):
    assert bundles.sort_stages(length) == stages


def test_a_table_of_another_libtpu_says_so(monkeypatch):
    monkeypatch.setattr(bundles, "installed", lambda: {"jax": "1", "libtpu": "2.0"})
    assert "are for libtpu 1.0; 2.0 is installed" in bundles.version_note()
    monkeypatch.setattr(bundles, "installed", lambda: {"jax": "1", "libtpu": "1.0"})
    assert bundles.version_note() == ""


def test_the_checked_in_table_has_three_generations():
    made = json.loads(bundles.PATH.read_text())
    assert set(made["chips"]) == {"v4", "v5e", "v5p"} and made["jax"] and made["libtpu"]
    for kinds in made["chips"].values():
        assert all(value >= 0 for kind in kinds.values() for value in kind["bundles"].values())


DUMP = """LB: loop body
     0   :  { %s0 = smov 0 } /* entry bundle */
   0x1 LB: > { %s1 = sadd.s32 1, %s2 /* iteration index, stage = 1 */ } /* Start region 7 :: Start region 8 */
   0x2 LB: >> { %v1 = vadd.f32 %v, %v } /* Start region 9 */
   0x3   : >> { %p1_p1 = scmp.ge.s32.totalorder %s4, 5 /* loop exit test */ }
   0x4   : > { %10 = sbr.rel (!%p1_p1) target = $region9 }
   0x5   :  {}
   0x6   :  {}
   0x7   :  {}
   0x8   :  {}
   0x9   : > { %p2_p2 = scmp.ge.s32.totalorder %s1, INDEX /* loop exit test */ }
   0xa   :  { %11 = sbr.rel (!%p2_p2) target = $region7 }
   0xb   :  {}
   0xc   :  {}
   0xd   :  {}
   0xe   :  {}
   0xf   :  { %12 = sbr.rel (%p3_p3) target = $region12 } /* skips what follows: no loop */
  0x10   :  {} /* Start region 12 */
"""


def test_executed_bundles_multiply_the_trips_of_nested_loops(script):
    # 3 bundles once. The outer loop has 14, of which 7 are the inner one; one of its 4 trips fills the pipeline.
    assert script.executed_bundles(DUMP.replace("INDEX", "4")) == (3 + 3 * (7 + 5 * 7), 0)


def test_an_exit_test_may_wait_for_that_of_the_loop_inside(script):
    predicated = DUMP.replace("totalorder %s1, INDEX", "totalorder (%p1_p1), %s1, 4")
    assert script.executed_bundles(predicated) == script.executed_bundles(DUMP.replace("INDEX", "4"))


def test_a_loop_that_depends_on_data_counts_once_and_is_reported(script):
    assert script.executed_bundles(DUMP.replace("INDEX", "%s99")) == (3 + 7 + 5 * 7, 7 + 5 * 7)


def test_a_fit_returns_the_coefficients_that_made_the_numbers(script):
    measured = [({"rows": n, "tiles": n * t}, n * (3 + 2 * t)) for n, t in ((100, 1), (100, 5), (300, 9))]
    assert script.fit(measured) == {"bundles": {"rows": 3.0, "tiles": 2.0}, "worst_error": 0.0}
    assert script.fit(measured[:2]) == {"bundles": {"rows": 3.0, "tiles": 2.0}, "worst_error": None}
    off = script.fit([({"elements": 100}, 90), ({"elements": 100}, 110)])
    assert off["worst_error"] == pytest.approx(0.1, abs=0.02)
    negative = script.fit([({"elements": 1, "stages": 1}, 10), ({"elements": 1, "stages": 2}, 5)])
    assert min(negative["bundles"].values()) >= 0


def test_a_fit_of_too_few_programs_is_refused(script):
    with pytest.raises(ValueError, match="1 programs cannot tell"):
        script.fit([({"rows": 1, "tiles": 2}, 3)])
