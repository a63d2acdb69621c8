"""The benchmarks run and print JSON lines. Asserted is what holds on every machine: how their figures hang together."""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys

import jax
import pytest

from gemma3_jax.distill import settings
from gemma3_jax.model import config, parameters

pytestmark = pytest.mark.slow
BENCHMARKS = pathlib.Path(__file__).parents[1] / "experiments" / "benchmarks"


def lines(script, *flags):
    command = [sys.executable, str(BENCHMARKS / script), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS.parents[1])
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def by(name, found):
    """The lines by what they are of, each once."""
    assert len({line[name] for line in found}) == len(found)
    return {line[name]: line for line in found}


def one(name, found):
    """What all lines have in common."""
    [value] = {line[name] for line in found}
    return value


def assert_quotient(quotient, above, below):
    """Each is a printed figure and the places that it was rounded to, None if it is exact: all that is known of it."""
    spans = []
    for figure, places in (quotient, above, below):
        half = 0 if places is None else 0.5 * 10.0**-places
        spans.append((max(0, figure - half), figure + half))
    (least, most), (least_above, most_above), (least_below, most_below) = spans
    largest = most_above / least_below if least_below else math.inf
    rounding = 1 + 1e-9
    assert least_above / most_below <= most * rounding and least <= largest * rounding, (quotient, above, below)


def test_depth_does_not_grow_the_27b_program():
    *models, ratios = lines("depth.py")
    small, large, cut = by("model", models).values()
    assert large["layers"] > small["layers"] == cut["layers"] == config.SIZES["1b"].num_layers
    assert large["hlo_instructions"] == cut["hlo_instructions"] > 100 and ratios["27b_over_27b_cut"] == 1.0
    assert_quotient((ratios["27b_over_1b"], 3), (large["hlo_instructions"], None), (small["hlo_instructions"], None))
    assert abs(ratios["27b_over_1b"] - 1) < 0.05  # 1B's only key head spares it some reshapes


def test_banded_attention_needs_less_memory_than_dense():
    dense, banded, ratios = lines("attention.py", "--tokens=2048", "--sliding_window=128", "--repeats=1")
    assert dense["path"] == "dense" and banded["path"] == "banded"
    assert one("tokens", (dense, banded)) == 2048 and one("sliding_window", (dense, banded)) == 128
    for line in (dense, banded):
        assert_quotient((line["tokens_per_second"], 0), (line["tokens"], None), (line["seconds"], 4))
    assert_quotient((ratios["banded_is_faster_by"], 2), (dense["seconds"], None), (banded["seconds"], None))
    sizes = [(line["peak_temporary_bytes"], None) for line in (dense, banded)]
    assert_quotient((ratios["banded_is_smaller_by"], 2), *sizes)
    assert ratios["banded_is_smaller_by"] > 3


def test_the_loss_needs_less_memory_than_a_dense_target():
    ours, dense, ratios = lines("vocabulary_loss.py", "--tokens=512", "--embed_dim=16", "--samples=16", "--rounds=1")
    assert ours["loss"] == "ours" and dense["loss"] == "dense" and one("tokens", (ours, dense)) == 512
    assert_quotient((ratios["ours_is_faster_by"], 2), (dense["seconds"], 3), (ours["seconds"], 3))
    sizes = [(line["peak_temporary_bytes"], None) for line in (dense, ours)]
    assert_quotient((ratios["ours_is_smaller_by"], 2), *sizes)
    assert ratios["ours_is_smaller_by"] > 2 and 0 <= ratios["relative_difference"] < 1e-4
    # A dense target's gradient is at least one float32 array [tokens, V].
    assert dense["peak_temporary_bytes"] >= 4 * dense["tokens"] * dense["vocab_size"]


def test_the_stream_is_many_times_faster_than_a_step():
    found = lines("stream.py", "--steps=20", "--library_files=40")
    threads, _, from_memory, from_stream = by("what", found).values()
    for line in found:
        assert_quotient((line["rows_per_second"], 1), (line["tokens_per_second"], 0), (512, None))
    speeds = [(line["tokens_per_second"], 0) for line in (threads, from_memory)]
    assert_quotient((from_memory["stream_is_faster_by"], 1), *speeds)
    assert from_memory["stream_is_faster_by"] > 20  # three orders of magnitude where it was measured
    assert 0 <= from_stream["waiting_fraction"] < 1


def test_prepare_is_measured_by_stage_against_plain_sentencepiece():
    by_stage = by("stage", lines("prepare.py", "--copies=1", "--library_files=40", "--size=800"))
    plain = by_stage["plain SentencePiece"]
    for line in by_stage.values():
        assert line["documents"] == plain["documents"] > 10
        assert_quotient((line["documents_per_second"], 0), (line["documents"], None), (line["seconds"], 3))
        assert_quotient((line["of_plain"], 3), (plain["seconds"], 3), (line["seconds"], 3))
        for unit, places in (("tokens", 0), ("megabytes", 2)):
            speeds = [(of[f"{unit}_per_second"], places) for of in (line, plain)]
            assert_quotient((line["of_plain"], 3), *speeds)
    assert {"read", "tokenize", "MinHash", "pack", "prepare"} < set(by_stage)


def test_the_loop_costs_little_over_the_bare_step():
    bare, full = lines("train.py", "--steps=3", "--rounds=1", "--library_files=40", "--devices=2")
    for line in (bare, full):  # four rows of 512 tokens
        assert_quotient((line["tokens_per_second"], 0), (4 * 512, None), (line["step_seconds"], 4))
        assert line["devices"] == 2 and line["peak_memory_mib"] > 100
    assert_quotient((1 + full["overhead"], 4), (full["step_seconds"], 4), (bare["step_seconds"], 4))
    assert full["overhead"] < 1  # a hundredth where it was measured


def test_every_estimator_is_measured_against_top_k():
    by_path = by("path", lines("estimators.py", "--vocab_size=4096", "--tokens=16", "--repeats=3"))
    top_k = by_path.pop("jax.lax.top_k")
    assert [*by_path] == [*settings.ESTIMATORS] and top_k["times_top_k"] == 1.0
    for line in (top_k, *by_path.values()):
        assert line["microseconds_per_token"] >= line["fastest"] > 0 and line["peak_temporary_bytes"] > 0
        assert_quotient((line["times_top_k"], 2), (line["fastest"], 1), (top_k["fastest"], 1))


def test_a_step_is_measured_with_stored_targets_and_with_its_teacher():
    by_step = by("what", lines("distill.py", "--steps=1", "--rounds=1", "--batch_size=1", "--num_samples=16"))
    next_token, with_teacher, alone = (by_step[name] for name in ("next token", "with teacher", "teacher alone"))
    for line in by_step.values():
        assert line["tokens"] == next_token["tokens"] > 0
        assert_quotient((line["against_next_token"], 3), (line["seconds"], 4), (next_token["seconds"], 4))
    # The teacher's parameters are an input of the steps that run it, and of no other.
    assert with_teacher["teacher_parameter_bytes"] == alone["teacher_parameter_bytes"] > 1_000_000
    assert sum("teacher_parameter_bytes" in line for line in by_step.values()) == 2
    assert by_step["stored targets"]["temporary_bytes"] > next_token["temporary_bytes"] > 1_000_000


def test_export_is_measured_by_kind_and_format():
    exports = lines("export.py", "--layers=1", "--embed_dim=64", "--vocabulary=2048")
    model = dataclasses.replace(config.SIZES["270m"], num_layers=1, embed_dim=64, vocab_size=2048)
    parameter_megabytes = 4e-6 * sum(leaf.size for leaf in jax.tree.leaves(parameters.shapes(model)))
    for line in exports:
        seconds = line["seconds"], 2
        assert_quotient((line["megabytes_per_second"], 1), (line["megabytes"], 1), seconds)
        assert_quotient((line["parameter_megabytes_per_second"], 1), (parameter_megabytes, None), seconds)
    megabytes = {(line["kind"], line["matrices"], line["embedding"]): line["megabytes"] for line in exports}
    assert len(megabytes) == len(exports)
    # What is float32 holds the parameters; narrower formats give smaller files.
    assert min(megabytes[kind, "float32", "float32"] for kind in ("hf", "gguf")) >= round(parameter_megabytes, 1)
    sizes = [megabytes["gguf", *formats] for formats in (("float32",) * 2, ("q4_0", "float16"), ("q4_0", "q8_0"))]
    assert sizes == sorted(sizes, reverse=True) and megabytes["gguf", "q8_0", "q8_0"] > sizes[-1]
    assert megabytes["hf", "int4", "float16"] < megabytes["hf", "sfp8", "float16"]


def test_prefill_and_decoding_are_measured_against_transformers():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    ours, theirs, ratios, *caches = lines("decode.py", "--prompt=40", "--new=6", "--rows=2", "--rounds=1")
    assert ours["program"] == "gemma3_jax" and theirs["program"] == "transformers" and ratios["same_ids"]
    for kind in ("prefill", "decode"):
        speeds = [(line[f"{kind}_tokens_per_second"], None) for line in (ours, theirs)]
        assert_quotient((ratios[f"{kind}_is_faster_by"], 2), *speeds)
    assert [line["size"] for line in caches] == [*config.SIZES]
    for line in caches:
        assert_quotient((line["fraction"], 3), (line["bytes"], None), (line["bytes_all_global"], None))
        assert 0.16 < line["fraction"] < 0.2  # one layer in six is global, and the others hold their windows


def test_a_step_is_measured_by_format_against_one_without_rounding():
    flags = ("--formats=q4_0", "--steps=1", "--rounds=1", "--batch_size=1")
    unrounded, rounded = by("format", lines("rounding.py", *flags)).values()
    assert (unrounded["format"], rounded["format"]) == ("unrounded", "q4_0")
    assert one("tokens", (unrounded, rounded)) > 0 and unrounded["against_unrounded"] == 1.0
    assert_quotient((rounded["against_unrounded"], 3), (rounded["seconds"], 4), (unrounded["seconds"], 4))
    assert min(unrounded["temporary_bytes"], rounded["temporary_bytes"]) > 1_000_000
