"""The benchmarks run and print JSON lines. Only what holds on every machine is asserted, not times."""

import json
import pathlib
import subprocess
import sys

import pytest

from gemma3_jax.distill import settings

pytestmark = pytest.mark.slow
BENCHMARKS = pathlib.Path(__file__).parents[1] / "experiments" / "benchmarks"


def lines(script, *flags):
    command = [sys.executable, str(BENCHMARKS / script), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS.parents[1])
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_depth_does_not_grow_the_27b_program():
    *_, ratios = lines("depth.py")
    assert ratios["27b_over_27b_cut"] == 1.0
    assert abs(ratios["27b_over_1b"] - 1) < 0.05  # 1B's only key head spares it some reshapes


def test_banded_attention_needs_less_memory_than_dense():
    dense, banded, ratios = lines("attention.py", "--tokens=2048", "--sliding_window=128", "--repeats=1")
    assert dense["path"] == "dense" and banded["path"] == "banded"
    assert ratios["banded_is_smaller_by"] > 3


def test_the_loss_needs_less_memory_than_a_dense_target():
    ours, dense, ratios = lines("vocabulary_loss.py", "--tokens=512", "--embed_dim=16", "--samples=16", "--rounds=1")
    assert ours["loss"] == "ours" and dense["loss"] == "dense"
    assert ratios["ours_is_smaller_by"] > 2 and ratios["relative_difference"] < 1e-4


def test_the_stream_is_many_times_faster_than_a_step():
    threads, workers, from_memory, from_stream = lines("stream.py", "--steps=20", "--library_files=40")
    assert min(threads["rows_per_second"], workers["rows_per_second"]) > 0
    assert from_memory["stream_is_faster_by"] > 20  # three orders of magnitude where it was measured
    assert 0 <= from_stream["waiting_fraction"] < 1


def test_prepare_is_measured_by_stage_against_plain_sentencepiece():
    by_stage = {line["stage"]: line for line in lines("prepare.py", "--copies=1", "--library_files=40", "--size=800")}
    stages = {"read", "length", "quality", "personal data", "decontamination", "tokenize", "MinHash", "pack"}
    assert set(by_stage) == stages | {"plain SentencePiece", "prepare without near-duplicates", "prepare"}
    assert by_stage["plain SentencePiece"]["of_plain"] == 1.0


def test_the_loop_costs_little_over_the_bare_step():
    bare, full = lines("train.py", "--steps=3", "--rounds=1", "--library_files=40", "--devices=2")
    assert min(bare["tokens_per_second"], full["tokens_per_second"], full["peak_memory_mib"]) > 0
    assert full["devices"] == 2 and full["overhead"] < 1  # a hundredth where it was measured


def test_every_estimator_is_measured_against_top_k():
    by_path = {line["path"]: line for line in lines("estimators.py", "--vocab_size=4096", "--tokens=16", "--repeats=1")}
    assert set(by_path) == {"jax.lax.top_k", *settings.ESTIMATORS}
    assert all(line["microseconds_per_token"] > 0 for line in by_path.values())


def test_a_step_is_measured_with_stored_targets_and_with_its_teacher():
    by_step = {line["what"]: line for line in lines("distill.py", "--steps=1", "--rounds=1", "--batch_size=2")}
    assert set(by_step) == {"next token", "stored targets", "with teacher", "teacher alone"}
    assert by_step["with teacher"]["teacher_parameter_bytes"] > 1_000_000
    assert by_step["next token"]["against_next_token"] == 1.0


def test_export_is_measured_by_kind_and_format():
    exports = lines("export.py", "--layers=1", "--embed_dim=64", "--vocabulary=2048")
    kinds = {(line["kind"], line["matrices"]) for line in exports}
    assert kinds >= {("hf", "int4"), ("gguf", "q4_0"), ("gguf", "q8_0")}
    assert all(line["megabytes_per_second"] > 0 for line in exports)


def test_prefill_and_decoding_are_measured_against_transformers():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    ours, theirs, ratios, *caches = lines("decode.py", "--prompt=40", "--new=6", "--rows=2", "--rounds=1")
    assert ours["program"] == "gemma3_jax" and theirs["program"] == "transformers" and ratios["same_ids"]
    assert all(0.16 < line["fraction"] < 0.2 for line in caches) and len(caches) == 5


def test_a_step_is_measured_by_format_against_one_without_rounding():
    flags = ("--formats=q4_0", "--steps=1", "--rounds=1", "--batch_size=1")
    by_format = {line["format"]: line for line in lines("rounding.py", *flags)}
    assert set(by_format) == {"unrounded", "q4_0"} and by_format["unrounded"]["against_unrounded"] == 1.0
    assert min(line["temporary_bytes"] for line in by_format.values()) > 1_000_000
