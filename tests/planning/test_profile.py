"""The profile of stored TPU programs of three generations, and of instructions that a hand can sum."""

import pathlib
import re

import pytest

from gemma3_jax import chips
from gemma3_jax.planning import hlo, places, profile, profile_comparison, profile_file
from tests.golden import make_tpu_programs
from tests.planning import profiles

ROOT = pathlib.Path(__file__).parents[2]
NUM_PERIODS, NUM_LOCAL = make_tpu_programs.NUM_PERIODS, make_tpu_programs.NUM_LOCAL


def profile_of(what: str, name: str) -> profile.Profile:
    chip, text = profiles.CHIPS[name], profiles.golden(what, name)
    costs = profile.instruction_costs(text, hlo.read(text), chip)
    return profiles.make(*costs, chip=name, clock_hz=chip.clock_hz, peak_flops=chip.peak_flops)


@pytest.fixture(scope="module", params=["v4", "v5e", "v5p"])
def chip(request):
    return request.param


@pytest.fixture(scope="module")
def step(chip):
    """The profile of a toy's training step: 2 periods of 3 local layers and a global one."""
    return profile_of("step", chip)


def cycles_by_lines(text: str) -> int:
    """The compiler's estimates times trips: from lines of text, and with the lengths of the toy's loops by hand."""
    lines: dict[str, list[str]] = {}
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%(\S+) \(.*\{$", line):
            name = "ENTRY" if head[1] else head[2]
            lines[name] = []
        elif line.startswith("  "):
            lines[name].append(line)

    def total(name: str) -> int:
        cycles = 0
        for line in lines[name]:
            cycles += sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', line)))
            if body := re.search(r" while\(.*body=%([^,\s]+)", line):
                is_nested = line.count("while") > line.replace("/while/body", "").count("while")
                cycles += (NUM_LOCAL if is_nested else NUM_PERIODS) * total(body[1])
        return cycles

    return total("ENTRY")


def test_the_sum_is_that_of_the_compilers_estimates_times_trips(chip, step):
    assert step.cycles_by("compiler") == cycles_by_lines(profiles.golden("step", chip)) > 1e6
    assert sum(step.by_place_and_kind().values()) == step.cycles == sum(map(step.cycles_by, profile.ESTIMATORS))
    assert all((one.cycles is None) == (not one.estimator) for one in step.instructions)
    ours = {one.kind for one in step.instructions if one.estimator == "bundles"}
    assert {"kernel"} <= ours <= {"kernel", "scatter/gather/sort", "layout", "copy"}


def test_local_and_global_layers_run_as_often_as_the_model_has_them(step):
    kernels = [one for one in step.instructions if one.kind == "kernel" and "fwd" in one.name]
    for phase in (places.FORWARD, places.RECOMPUTED):
        runs = {"segmented": 0, "local": 0}
        for one in (one for one in kernels if one.phase == phase):
            runs["segmented" if "segmented" in one.name else "local"] += one.num_times
        assert runs == {"segmented": NUM_PERIODS, "local": NUM_PERIODS * NUM_LOCAL}
    assert {one.part for one in kernels} == {places.ATTENTION_KERNELS}


def test_each_place_has_the_products_that_belong_there(step):
    runs: dict[str, int] = {}
    for one in step.instructions:
        if one.kind == "product":
            runs[str(one.place)] = runs.get(str(one.place), 0) + one.num_times
    num_global, num_local = NUM_PERIODS, NUM_PERIODS * NUM_LOCAL
    # Gate, up, down, query, key, value and output; some are fused into one, and no two into fewer than half.
    assert 4 * num_global <= runs["global layers, forward"] <= 7 * num_global
    assert 4 * num_local <= runs["local layers, forward"] <= 7 * num_local
    assert runs["local layers, backward"] > runs["local layers, forward"]
    assert 3 <= runs["loss, forward"] and "optimizer" not in runs  # logits, and the gradients of both of their factors


def test_little_is_in_no_place(step):
    of_rest = sum(cycles for (place, _), cycles in step.by_place_and_kind().items() if place.part == places.REST)
    assert 0 < of_rest < 0.1 * step.cycles


def test_source_lines_are_of_this_package(step):
    dearest = [one for one in step.instructions[:20] if one.source]
    assert len(dearest) >= 18 and all((ROOT / one.source.partition(":")[0]).is_file() for one in dearest)


def test_what_has_no_estimate_is_listed_and_counts_nowhere(step):
    listed = profile.without_estimate(step)
    kinds = {row.kind for row in listed}
    assert {"collective", "copy"} <= kinds and "kernel" not in kinds
    assert not any(one.cycles for one in step.instructions if one.kind == "collective")
    runs = dict.fromkeys(kinds, 0)
    for row in listed:
        runs[row.kind] += row.num_times
    assert step.runs_without_estimate == runs and all(row.num_elements > 1 for row in listed)


def test_a_planted_scatter_is_named_with_its_line(chip):
    of_step = profile_of("scatter", chip)
    [one] = [one for one in of_step.instructions if one.kind == "scatter/gather/sort" and "scatter" in one.name]
    assert (one.num_times, one.num_elements) == (make_tpu_programs.NUM_ROUNDS, 1 << 20)
    # Of a v5p the sparse cores do it, beside the step.
    assert one.estimator == ("" if chip == "v5p" else "bundles")
    if chip != "v5p":
        num_updates = make_tpu_programs.NUM_ROUNDS * make_tpu_programs.NUM_UPDATES
        assert one.cycles == pytest.approx({"v4": 4.2, "v5e": 8.1}[chip] * num_updates, rel=0.1)
    file, _, line = one.source.partition(":")
    assert file == "make_tpu_programs.py"
    assert ".at[ids].add(" in pathlib.Path(make_tpu_programs.__file__).read_text().splitlines()[int(line) - 1]


def test_an_estimate_of_ours_is_taken_where_the_compiler_has_none(monkeypatch):
    def ours(module, computation, instruction, of_chip):
        assert of_chip.name == "v5e" and instruction.name in computation.instructions
        return 7 if instruction.opcode in ("fusion", "scatter") else None

    of_compiler = {"compiler": profile.ESTIMATORS["compiler"]}
    monkeypatch.setattr(profile, "ESTIMATORS", of_compiler)
    before = profile_of("scatter", "v5e")
    monkeypatch.setattr(profile, "ESTIMATORS", {**of_compiler, "ours": ours})
    after = profile_of("scatter", "v5e")
    added = [one for one in after.instructions if one.estimator == "ours"]
    assert added and all(one.cycles == 7 * one.num_times for one in added)
    assert after.cycles == before.cycles + sum(one.cycles for one in added)


# --- what a hand can sum ---


def test_seconds_and_mfu_follow_from_cycles_and_clock():
    of_step = profiles.BEFORE
    assert (of_step.cycles, of_step.seconds) == (4000, 4e-6)
    assert of_step.mfu == pytest.approx(1e6 / (1e12 * 4e-6)) == pytest.approx(0.25)
    waiting = profiles.WAITING
    assert of_step.exposed_seconds is None and waiting.exposed_seconds == pytest.approx(1e-6)
    assert waiting.seconds == pytest.approx(5e-6) and waiting.mfu == pytest.approx(0.2)


def test_a_profile_of_nothing_has_no_mfu():
    assert profiles.make().mfu == 0 and profiles.make().by_place_and_kind() == {}


def test_operations_without_an_estimate_are_grouped_and_single_numbers_left_out():
    rows = profile.without_estimate(profiles.BEFORE)
    assert [(row.name, row.num_instructions, row.num_times, row.num_elements) for row in rows] == [
        ("scatter", 2, 8, 100),
        ("all-reduce", 1, 1, 16),
    ]
    assert profiles.BEFORE.runs_without_estimate == {"collective": 1, "scatter/gather/sort": 8}


@pytest.mark.parametrize(("name", "gigahertz"), [("v4", 1.05), ("v5e", 1.5), ("v5p", 1.75), ("v6e", 1.75)])
def test_clocks_are_those_of_the_chips(name, gigahertz):
    assert profiles.CHIPS[name].clock_hz == pytest.approx(gigahertz * 1e9, rel=0.003)
    assert chips.find("NVIDIA H100").clock_hz is None


# --- the scopes and files that places are recognized by ---


def test_the_model_opens_the_scopes_of_layers():
    source = (ROOT / "gemma3_jax" / "model" / "transformer.py").read_text()
    assert all(f'named_scope("{scope}")' in source for scope in places.LAYERS)


def test_the_files_of_places_exist():
    named = re.findall(r"gemma3_jax/[\w/]+", " ".join(pattern.pattern for pattern, _ in places.CALLS))
    assert len(named) == 6
    for path in named:
        assert (ROOT / path).is_dir() or (ROOT / path).with_suffix(".py").is_file(), path


# --- two profiles ---


def test_a_comparison_has_totals_places_kinds_and_pairs():
    rows = profile_comparison.compare(profiles.AFTER, profiles.BEFORE)
    assert [(row.place, row.kind, row.cycles, row.other_cycles) for row in rows] == [
        ("", "", 3500, 4000),
        ("local layers, forward", "", 3000, 3000),
        ("loss, forward", "", 500, 1000),
        ("", "product", 3000, 3000),
        ("", "reduction", 500, 0),
        ("", "elementwise", 0, 1000),
        ("local layers, forward", "product", 3000, 3000),
        ("loss, forward", "reduction", 500, 0),
        ("loss, forward", "elementwise", 0, 1000),
    ]
    assert [rows[number].ratio for number in (0, 4, 5)] == [0.875, float("inf"), 0.0]


def test_what_has_no_estimate_is_compared_by_its_runs():
    rows = profile_comparison.compare_unestimated(profiles.AFTER, profiles.BEFORE)
    assert {(row.kind, row.num_times, row.other_num_times) for row in rows} == {
        ("collective", 1, 1),
        ("scatter/gather/sort", 0, 8),
    }


# --- the file ---


@pytest.mark.parametrize("of_step", [profiles.BEFORE, profiles.WAITING], ids=["without waiting", "waiting"])
def test_a_profile_is_read_as_it_was_written(of_step, tmp_path):
    file = tmp_path / "profile.json"
    file.write_bytes(profile_file.dump(of_step))
    assert profile_file.load(file) == of_step


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"bad\.json is not a profile that `plan --profile` wrote: Expecting"),
        ("{}", r"is not a profile .*: it lacks 'format'"),
        ('{"format": 9}', r"its format is 9, and this version reads 1; write it again"),
        ("[]", r"is not a profile"),
    ],
)
def test_another_file_is_refused(tmp_path, content, message):
    file = tmp_path / "bad.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        profile_file.load(file)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"part": "engine"}, "its instructions have an unknown part: engine"),
        ({"kind": "magic"}, "its instructions have an unknown kind: magic"),
    ],
)
def test_a_profile_with_other_instructions_is_refused(tmp_path, fields, message):
    file = tmp_path / "bad.json"
    file.write_bytes(profile_file.dump(profiles.make(profiles.cost("a", None, **fields))))
    with pytest.raises(ValueError, match=message):
        profile_file.load(file)


@pytest.mark.parametrize("value", ["null", "0", "NaN", "Infinity", '"1e9"'])
def test_a_profile_without_a_clock_is_refused(tmp_path, value):
    file = tmp_path / "bad.json"
    content = profile_file.dump(profiles.BEFORE).decode()
    file.write_text(content.replace('"clock_hz": 1000000000.0', f'"clock_hz": {value}'))
    with pytest.raises(ValueError, match="bad.json is not a profile .*: clock_hz is .*, and must be a number above 0"):
        profile_file.load(file)


def test_a_profile_of_no_cycles_is_refused(tmp_path):
    file = tmp_path / "bad.json"
    file.write_bytes(profile_file.dump(profiles.make(profiles.cost("a", None))))
    with pytest.raises(ValueError, match="bad.json is not a profile .*: none of its instructions has cycles"):
        profile_file.load(file)


def test_a_profile_whose_cycles_are_no_numbers_is_refused(tmp_path):
    file = tmp_path / "bad.json"
    content = profile_file.dump(profiles.make(profiles.cost("a", 12345))).decode()
    file.write_text(content.replace('"cycles": 12345, "estimator"', '"cycles": "12345", "estimator"'))
    with pytest.raises(ValueError, match="cycles of its instructions is not an integer everywhere"):
        profile_file.load(file)


def test_the_sparse_cores_run_beside_the_step():
    """On a v5p they scatter; the compiler notes 2^63 - 1 cycles, which is no estimate."""
    assert '"estimated_cycles":"9223372036854775807"' in profiles.golden("scatter", "v5p")
    of_step = profile_of("scatter", "v5p")
    assert of_step.cycles < 1e7 and "scatter/gather/sort" in of_step.runs_without_estimate
